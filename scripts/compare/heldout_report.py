"""Restores held-out photos with a trained UnfoldLDM and reports what its parts are worth.

    python scripts/compare/heldout_report.py -opt options/smoke/unfoldldm_phase2.yml \
        -w experiments/smoke_unfoldldm_phase2/models/net_g_latest.pth -o results/quickstart

The validation set of the option file is degraded as in validation (fixed seeds), but whole. OUTPUT
gets ``table.md`` and ``table.csv`` (degraded input, non-local means, ours with the generated, the
null and another photo's prior, and the oracle prior), ``comparison.png``, ``trace.png`` and the
degraded photos.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from skimage.restoration import denoise_nl_means
from torch import Tensor, nn
from tqdm import tqdm

from unfoldldm_basicsr.comparing.tables import markdown, write_csv
from unfoldldm_basicsr.pictures import (
    comparison_grid,
    detail_box,
    detail_boxes,
    psnr,
    psnr_captions,
    save_picture,
    trace_picture,
)
from unfoldldm_basicsr.restoring import Restorer, build_from_checkpoint

STRENGTHS = (10, 15, 20, 25, 30, 35)  # assumed noise, 8-bit units
COLUMNS = {
    'degraded': 'PSNR degraded',
    'nlm': 'PSNR non-local means',
    'generated': 'PSNR ours',
    'null': 'PSNR ours, null prior',
    'shuffled': "PSNR ours, another photo's prior",
    'oracle': 'PSNR oracle prior',
}


def non_local_means(lq: np.ndarray, gt: np.ndarray) -> tuple[np.ndarray, int]:
    """The best of several strengths, chosen with the truth: an upper bound of the method."""
    best, chosen = None, 0
    for strength in STRENGTHS:
        sigma = strength / 255
        image = denoise_nl_means(
            lq, patch_size=5, patch_distance=7, h=0.8 * sigma, sigma=sigma, fast_mode=True,
            channel_axis=2,
        )  # fmt: skip
        image = to_8bit(image)
        if best is None or psnr(image, gt) > psnr(best, gt):
            best, chosen = image, strength
    return best, chosen


def to_8bit(image: np.ndarray) -> np.ndarray:
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def to_array(tensor: Tensor) -> np.ndarray:
    return tensor.permute(1, 2, 0).numpy()


@torch.inference_mode()
def priors_of(net: nn.Module, lq: Tensor) -> Tensor:
    """Generated priors of all stages, (K, 1, C_p)."""
    return torch.stack([stage.prior for stage in net(lq, return_trace=True).stages])


@torch.inference_mode()
def restore_all(net: nn.Module, items: Sequence[dict], name: str) -> list[np.ndarray]:
    """8-bit outputs of one prior source for all items."""
    outputs = []
    for index, item in enumerate(tqdm(items, desc=name, unit='photo')):
        lq, gt = item['lq'][None], item['gt'][None]
        if name == 'shuffled':
            other = items[(index + 1) % len(items)]['lq'][None]
            output = net(lq, prior=priors_of(net, other))
        else:
            output = net(lq, gt, prior_source=name)
        outputs.append(to_8bit(to_array(output[0])))
    return outputs


def heldout_items(opt: dict) -> list[dict]:
    """The validation set of an option file, whole photos."""
    from basicsr.data import build_dataset  # importable once unfoldldm_basicsr is imported

    data = dict(opt['datasets']['val'], phase='val', scale=1)
    data.pop('center_crop', None)
    dataset = build_dataset(data)
    return [dataset[i] for i in range(len(dataset))]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('-opt', type=Path, required=True, help='option file of Phase II')
    parser.add_argument('-w', '--weights', type=Path, required=True)
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    opt = yaml.safe_load(args.opt.read_text(encoding='utf-8'))
    items = heldout_items(opt)
    net = build_from_checkpoint(args.weights)
    names = [Path(item['gt_path']).stem for item in items]
    truths = [to_8bit(to_array(item['gt'])) for item in items]
    images = {'degraded': [to_8bit(to_array(item['lq'])) for item in items]}
    pairs = [
        non_local_means(to_array(item['lq']), truth)
        for item, truth in zip(tqdm(items, desc='non-local means'), truths, strict=True)
    ]
    images['nlm'] = [image for image, _ in pairs]
    for source in ('generated', 'null', 'shuffled', 'oracle'):
        images[source] = restore_all(net, items, source)
    rows = [
        {'photo': name, **{COLUMNS[k]: psnr(v[i], truths[i]) for k, v in images.items()}}
        for i, name in enumerate(names)
    ]
    rows.append({**pd.DataFrame(rows).mean(numeric_only=True), 'photo': 'mean'})
    steps = ', '.join(
        ' '.join([s['type'], *(f'{k} {v}' for k, v in s.items() if k != 'type')])
        for s in opt['datasets']['val']['degradations']
    )
    strengths = ', '.join(f'{strength:g}' for _, strength in pairs)
    protocol = (
        f'Whole held-out photos, degraded by {steps} with fixed seeds; 8-bit RGB PSNR in dB. '
        f'Non-local means with the best of {len(STRENGTHS)} strengths for each photo (chosen with '
        f'the truth: assumed noise {strengths}). "Oracle prior" sees the truth and is '
        f'no result. Weights: {args.weights.name} of {opt["name"]}.'
    )
    args.output.mkdir(parents=True, exist_ok=True)
    table = markdown(pd.DataFrame(rows), protocol)
    (args.output / 'table.md').write_text(table, encoding='utf-8')
    write_csv(pd.DataFrame(rows), args.output / 'table.csv')
    shown = ('degraded', 'nlm', 'generated')
    grid_rows = [[*(images[k][i] for k in shown), truths[i]] for i in range(len(items))]
    grid = comparison_grid(
        grid_rows,
        ['degraded', 'non-local means', 'UnfoldLDM (quick start)', 'ground truth'],
        [psnr_captions(row, row[-1]) for row in grid_rows],
        crops=detail_boxes(grid_rows),
        highlight=(2,),
        footer=f'Held-out photos, {steps}; 8-bit RGB PSNR.',
    )
    save_picture(args.output / 'comparison.png', grid)
    for name, image in zip(names, images['degraded'], strict=True):
        save_picture(args.output / 'degraded' / f'{name}.png', image)
    first = items[0]
    trace, _ = Restorer(args.weights, device='cpu').trace(images['degraded'][0])
    truth = to_array(first['gt'])
    picture = trace_picture(
        trace, title=f'{names[0]}: what every stage does', truth=truth, box=detail_box(truth, 96)
    )
    save_picture(args.output / 'trace.png', picture)
    print((args.output / 'table.md').read_text(encoding='utf-8'))
    print(f'Pictures: {args.output / "comparison.png"}, {args.output / "trace.png"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
