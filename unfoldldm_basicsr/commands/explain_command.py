"""``unfoldldm explain``: what the network did to an image, as pictures and tables."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unfoldldm_basicsr.commands.restore_command import restorer_of
from unfoldldm_basicsr.common.files import write_bytes_atomic
from unfoldldm_basicsr.data.images import read_picture
from unfoldldm_basicsr.pictures.drawing import save_picture
from unfoldldm_basicsr.pictures.trace_picture import trace_picture
from unfoldldm_basicsr.pictures.vlu_pictures import attention_picture, prompt_picture, step_picture
from unfoldldm_basicsr.restoring.explanation import can_explain, explain_vlunet, reduce_image
from unfoldldm_basicsr.restoring.restorer import Restorer
from unfoldldm_basicsr.restoring.traces import (
    csv_text,
    prompt_rows,
    score_rows,
    step_rows,
    trace_rows,
)
from unfoldldm_basicsr.weights.conditioning import AUTO

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run(args: argparse.Namespace) -> int:
    """Writes the pictures and tables and names them.

    Raises:
        FileNotFoundError, FileExistsError, ValueError, OSError: the message says what is wrong.
    """
    original = read_picture(args.image).pixels
    image = reduce_image(original, args.max_size)
    restorer = restorer_of(args)
    size = f'{image.shape[1]} x {image.shape[0]} pixels'
    if image.shape != original.shape:
        size += f', reduced from {original.shape[1]} x {original.shape[0]}'
    note = f'{args.image.name} ({size}), {type(restorer.net).__name__}, {restorer.name}'
    if args.degradation != AUTO:
        note += f", told '{args.degradation}'"
    files, remark = {}, ''
    if can_explain(restorer):
        files, remark = vlunet_files(restorer, image, note)
    if restorer.contract.can_trace:
        trace, _ = restorer.trace(image)
        files['trace.png'] = trace_picture(trace, note=note)
        files['stages.csv'] = csv_text(trace_rows(trace))
    if not files:
        raise ValueError(
            f'{restorer.name}: {type(restorer.net).__name__} has no unfolding stages to explain;'
            f' UnfoldLDM and VLU-Net have.'
        )
    write_files(args.output, args.image.stem, files, overwrite=args.overwrite)
    if remark:
        print(remark)
    return 0


def vlunet_files(
    restorer: Restorer, image: np.ndarray, note: str
) -> tuple[dict[str, Figure | str], str]:
    """Pictures and tables of a VLU-Net by the end of their names, and what is missing and why."""
    explanation = explain_vlunet(restorer, image)
    files: dict[str, Figure | str] = {
        'prompts.png': prompt_picture(explanation, note=note),
        'prompts.csv': csv_text(prompt_rows(explanation)),
        'steps.png': step_picture(explanation, note=note),
        'steps.csv': csv_text(step_rows(explanation)),
    }
    if explanation.attention is not None:
        files['attention.png'] = attention_picture(explanation.attention, note=note)
        files['attention.csv'] = csv_text(score_rows(explanation.attention))
    return files, explanation.attention_note


def write_files(
    folder: Path, stem: str, files: Mapping[str, Figure | str], *, overwrite: bool
) -> None:
    """Writes ``STEM_NAME`` for every entry and prints it.

    Raises:
        FileExistsError: one of them exists; then none is written.
        ValueError: ``folder`` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f'--output {folder}: is a file; give a folder.')
    paths = {folder / f'{stem}_{name}': content for name, content in files.items()}
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        raise FileExistsError(
            f'{existing[0]}: exists; choose another --output or pass --overwrite.'
        )
    for path, content in paths.items():
        if isinstance(content, str):
            write_bytes_atomic(path, content.encode())
        else:
            save_picture(path, content)
        print(path)
