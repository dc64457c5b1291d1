"""``unfoldldm explain``: what the network did to an image, as pictures and tables."""

import argparse

import numpy as np
import pandas as pd

from unfoldldm_basicsr.commands.restore_command import restorer_of
from unfoldldm_basicsr.common.files import refuse_existing
from unfoldldm_basicsr.comparing.tables import write_csv
from unfoldldm_basicsr.data.images import read_picture
from unfoldldm_basicsr.pictures import stages as pictures
from unfoldldm_basicsr.pictures.drawing import save_picture
from unfoldldm_basicsr.pictures.stages import levels
from unfoldldm_basicsr.restoring.explanation import can_explain, explain_vlunet, reduce_image
from unfoldldm_basicsr.restoring.restorer import Trace
from unfoldldm_basicsr.weights.conditioning import AUTO


def run_explain(args: argparse.Namespace) -> int:
    """Writes the pictures and tables and names them, none where one exists already."""
    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f'--output {args.output}: is a file; give a folder.')
    original = read_picture(args.image).pixels
    image = reduce_image(original, args.max_size)
    restorer = restorer_of(args)
    size = f'{image.shape[1]} x {image.shape[0]} pixels'
    if image.shape != original.shape:
        size += f', reduced from {original.shape[1]} x {original.shape[0]}'
    note = f'{args.image.name} ({size}), {type(restorer.net).__name__}, {restorer.name}'
    if args.degradation != AUTO:
        told = restorer.conditioning
        note += f", told '{told.classes[told.label]}'"
    files, remarks = {}, []
    if can_explain(restorer):
        found = explain_vlunet(restorer, image)
        names = pd.Series([stage.name for stage in found.stages], name='stage')
        weights = np.array([stage.weights for stage in found.stages], float)
        steps = [
            {
                'stage': stage.name, 'channels': stage.channels,
                'height': stage.residual.shape[0], 'width': stage.residual.shape[1],
                'mean_residual': float(stage.residual.mean()),
                'mean_step': float(stage.step.mean()),
            }
            for stage in found.stages
        ]  # fmt: skip
        files['prompts.png'] = pictures.prompt_picture(found, note=note)
        files['prompts.csv'] = pd.DataFrame(weights, names, found.prompts).reset_index()
        files['steps.png'] = pictures.step_picture(found, note=note)
        files['steps.csv'] = pd.DataFrame(steps)
        if attention := found.attention:
            scores = {'before': attention.scores_before, 'after': attention.scores_after}
            files['attention.png'] = pictures.attention_picture(attention, note=note)
            files['attention.csv'] = pd.DataFrame({'text': attention.texts, **scores})
        else:
            remarks = [found.attention_note]
    if restorer.contract.can_trace:
        trace = restorer.trace(image)
        files['trace.png'] = pictures.trace_picture(trace, note=note)
        files['stages.csv'] = stage_table(trace)
    if not files:
        raise ValueError(
            f'{restorer.name}: {type(restorer.net).__name__} has no unfolding stages to explain;'
            f' UnfoldLDM and VLU-Net have.'
        )
    files = {args.output / f'{args.image.stem}_{name}': made for name, made in files.items()}
    for path in files:
        refuse_existing(args.image, path, overwrite=args.overwrite)
    for path, made in files.items():
        if path.suffix == '.csv':
            write_csv(made, path)
        else:
            save_picture(path, made)
    print(*files, *remarks, sep='\n')
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
