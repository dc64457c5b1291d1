"""PSNR of a VLU-Net on every degradation, told each of the degradations it knows.

    python scripts/compare/steering_table.py -opt options/smoke/vlunet.yml \
        -w experiments/smoke_vlunet/models/net_g_latest.pth -o results/steering

A row per degradation of the option file's validation set (degraded as in validation): the degraded
input, then the same images restored with the vector of each name. The diagonal is the result, the
rest shows what the steering is worth. For weights with a label embedding, since other embeddings
look at the image. OUTPUT gets ``table.md`` and ``table.csv``; PSNR in dB on 8-bit RGB.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from tqdm import tqdm

from unfoldldm_basicsr.comparing.tables import markdown, write_csv
from unfoldldm_basicsr.pictures import psnr
from unfoldldm_basicsr.restoring import Restorer


def to_8bit(tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] -> uint8 (H, W, 3)."""
    return (tensor.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('-opt', required=True, help='option file with a validation set')
    parser.add_argument('-w', '--weights', required=True, help='net_g_*.pth of the training')
    parser.add_argument('-o', '--output', default='results/steering', help='folder')
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    from basicsr.data import build_dataset  # importable once unfoldldm_basicsr is imported

    options = yaml.safe_load(Path(args.opt).read_text(encoding='utf-8'))
    dataset = build_dataset(dict(options['datasets']['val'], phase='val', scale=1))
    names = list(dataset.degradation_names)
    restorers = {name: Restorer(args.weights, degradation=name) for name in names}
    scores: dict[str, dict[str, list[float]]] = {}
    for index in tqdm(range(len(dataset)), unit='image'):
        item = dataset[index]
        truth = to_8bit(item['gt'])
        row = scores.setdefault(item['degradation_name'], {})
        row.setdefault('degraded', []).append(psnr(to_8bit(item['lq']), truth))
        for name, restorer in restorers.items():
            restored = restorer.restore_tensor(item['lq'][None].to(restorer.device))[0].cpu()
            row.setdefault(f'told {name}', []).append(psnr(to_8bit(restored), truth))
    rows = [
        {'degradation': name, **{key: float(np.mean(values)) for key, values in row.items()}}
        for name, row in scores.items()
    ]
    rows.append({**pd.DataFrame(rows).mean(numeric_only=True), 'degradation': 'mean'})
    folder = Path(args.output)
    protocol = f'Mean PSNR in dB (8-bit RGB) over the images of {args.opt}: datasets.val, weights '
    write_csv(pd.DataFrame(rows), folder / 'table.csv')
    table = markdown(pd.DataFrame(rows), f'{protocol}{args.weights}.')
    (folder / 'table.md').write_text(table, encoding='utf-8')
    print((folder / 'table.md').read_text(encoding='utf-8'))


if __name__ == '__main__':
    main()
