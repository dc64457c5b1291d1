"""``unfoldldm explain``: what the network did to an image, as pictures and tables."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from unfoldldm_basicsr.commands.restore_command import restorer_of
from unfoldldm_basicsr.common.files import write_bytes_atomic
from unfoldldm_basicsr.data.images import read_picture
from unfoldldm_basicsr.pictures.drawing import save_picture
from unfoldldm_basicsr.pictures.trace_picture import trace_picture
from unfoldldm_basicsr.pictures.vlu_pictures import attention_picture, prompt_picture, step_picture
from unfoldldm_basicsr.restoring.explanation import can_explain, explain_vlunet, reduce_image
from unfoldldm_basicsr.restoring.traces import (
    Row,
    prompt_rows,
    score_rows,
    step_rows,
    trace_rows,
)
from unfoldldm_basicsr.weights.conditioning import AUTO

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run(args: argparse.Namespace) -> int:
    """Writes the pictures and tables and names them."""
    original = read_picture(args.image).pixels
    image = reduce_image(original, args.max_size)
    restorer = restorer_of(args)
    size = f'{image.shape[1]} x {image.shape[0]} pixels'
    if image.shape != original.shape:
        size += f', reduced from {original.shape[1]} x {original.shape[0]}'
    note = f'{args.image.name} ({size}), {type(restorer.net).__name__}, {restorer.name}'
    if args.degradation != AUTO:
        note += f", told '{args.degradation}'"
    files: dict[str, Figure | list[Row]] = {}
    remark = ''
    if can_explain(restorer):
        found = explain_vlunet(restorer, image)
        files |= {
            'prompts.png': prompt_picture(found, note=note), 'prompts.csv': prompt_rows(found),
            'steps.png': step_picture(found, note=note), 'steps.csv': step_rows(found),
        }  # fmt: skip
        remark = found.attention_note
        if found.attention is not None:
            files['attention.png'] = attention_picture(found.attention, note=note)
            files['attention.csv'] = score_rows(found.attention)
    if restorer.contract.can_trace:
        trace, _ = restorer.trace(image)
        files |= {'trace.png': trace_picture(trace, note=note), 'stages.csv': trace_rows(trace)}
    if not files:
        raise ValueError(
            f'{restorer.name}: {type(restorer.net).__name__} has no unfolding stages to explain;'
            f' UnfoldLDM and VLU-Net have.'
        )
    write_files(args.output, args.image.stem, files, overwrite=args.overwrite)
    if remark:
        print(remark)
    return 0


def write_files(
    folder: Path, stem: str, files: Mapping[str, Figure | list[Row]], *, overwrite: bool
) -> None:
    """Writes and prints ``STEM_NAME`` of every entry, none where one exists already."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f'--output {folder}: is a file; give a folder.')
    paths = {folder / f'{stem}_{name}': content for name, content in files.items()}
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        raise FileExistsError(
            f'{existing[0]}: exists; choose another --output or pass --overwrite.'
        )
    for path, content in paths.items():
        if isinstance(content, list):
            text = pd.DataFrame(content).to_csv(index=False, lineterminator='\n')
            write_bytes_atomic(path, text.encode())
        else:
            save_picture(path, content)
        print(path)
