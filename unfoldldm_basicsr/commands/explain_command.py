"""``unfoldldm explain``: what the network did to an image, as pictures and tables."""

import argparse

import numpy as np
import pandas as pd

from unfoldldm_basicsr.commands.restore_command import restorer_of
from unfoldldm_basicsr.comparing.tables import write_csv
from unfoldldm_basicsr.data.images import read_picture
from unfoldldm_basicsr.pictures.drawing import save_picture
from unfoldldm_basicsr.pictures.stages import (
    attention_picture,
    levels,
    prompt_picture,
    step_picture,
    trace_picture,
)
from unfoldldm_basicsr.restoring.explanation import can_explain, explain_vlunet, reduce_image
from unfoldldm_basicsr.restoring.restorer import Trace
from unfoldldm_basicsr.weights.conditioning import AUTO

VLUNET_FILES = (
    'prompts.png', 'prompts.csv', 'steps.png', 'steps.csv', 'attention.png', 'attention.csv',
)  # fmt: skip
TRACE_FILES = ('trace.png', 'stages.csv')


def run(args: argparse.Namespace) -> int:
    """Writes the pictures and tables and names them, none where one exists already."""
    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f'--output {args.output}: is a file; give a folder.')
    original = read_picture(args.image).pixels
    image = reduce_image(original, args.max_size)
    restorer = restorer_of(args)
    expected = VLUNET_FILES * can_explain(restorer) + TRACE_FILES * restorer.contract.can_trace
    paths = {name: args.output / f'{args.image.stem}_{name}' for name in expected}
    existing = [path for path in paths.values() if path.exists()]
    if existing and not args.overwrite:
        raise FileExistsError(
            f'{existing[0]}: exists; choose another --output or pass --overwrite.'
        )
    size = f'{image.shape[1]} x {image.shape[0]} pixels'
    if image.shape != original.shape:
        size += f', reduced from {original.shape[1]} x {original.shape[0]}'
    note = f'{args.image.name} ({size}), {type(restorer.net).__name__}, {restorer.name}'
    if args.degradation != AUTO:
        note += f", told '{args.degradation}'"
    files, remark = {}, ''
    if can_explain(restorer):
        found = explain_vlunet(restorer, image)
        stages, attention, remark = found.stages, found.attention, found.attention_note
        names = pd.Series([stage.name for stage in stages], name='stage')
        weights = np.array([stage.weights for stage in stages], float)
        steps = {
            'channels': [stage.channels for stage in stages],
            'height': [stage.residual.shape[0] for stage in stages],
            'width': [stage.residual.shape[1] for stage in stages],
            'mean_residual': [float(stage.residual.mean()) for stage in stages],
            'mean_step': [float(stage.step.mean()) for stage in stages],
        }
        files['prompts.png'] = prompt_picture(found, note=note)
        files['prompts.csv'] = pd.DataFrame(weights, names, found.prompts).reset_index()
        files['steps.png'] = step_picture(found, note=note)
        files['steps.csv'] = pd.DataFrame(steps, names).reset_index()
        if attention is not None:
            scores = {'before': attention.scores_before, 'after': attention.scores_after}
            files['attention.png'] = attention_picture(attention, note=note)
            files['attention.csv'] = pd.DataFrame({'text': attention.texts, **scores})
    if restorer.contract.can_trace:
        trace, _ = restorer.trace(image)
        files |= {'trace.png': trace_picture(trace, note=note), 'stages.csv': stage_table(trace)}
    if not files:
        raise ValueError(
            f'{restorer.name}: {type(restorer.net).__name__} has no unfolding stages to explain;'
            f' UnfoldLDM and VLU-Net have.'
        )
    for name, content in files.items():
        if isinstance(content, pd.DataFrame):
            write_csv(content, paths[name])
        else:
            save_picture(paths[name], content)
        print(paths[name])
    if remark:
        print(remark)
    return 0


def stage_table(trace: Trace) -> pd.DataFrame:
    """Per stage of UnfoldLDM mean absolute differences in levels of 255, and the prior's size."""
    rows, before = [], trace.lq
    for number, stage in enumerate(trace.stages, start=1):
        row = {'stage': number, 'between_estimates': levels(stage.x_hat, stage.x_tilde)}
        row['moved'] = levels(stage.x, before)
        row['effect_of_prior'] = None if stage.x_null is None else levels(stage.x, stage.x_null)
        row['mean_abs_prior'] = float(np.abs(stage.prior).mean()) if stage.prior.size else None
        rows.append(row)
        before = stage.x
    return pd.DataFrame(rows)
