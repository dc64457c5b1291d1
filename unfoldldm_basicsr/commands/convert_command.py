"""``unfoldldm convert``: released VLU-Net files become files of this package."""

from __future__ import annotations

import argparse
import re

from unfoldldm_basicsr.weights.convert import convert_checkpoint

NAME = 'convert'
HELP = 'turn released VLU-Net files (Lightning checkpoints, clip_tuned.pth) into BasicSR files'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options of the command."""
    parser.add_argument('file', help='Lightning checkpoint, or clip_tuned.pth')
    parser.add_argument(
        '-o', '--output', help='file to write (default: NAME_basicsr.pth beside the input)'
    )
    parser.add_argument(
        '--classes', type=re.compile(r'\s*,\s*').split, metavar='A,B,...',
        help='names of the degradations in the order of their indices (default: the released'
        ' order: noise15, noise25, noise50, rain, haze, blur, lowlight)',
    )  # fmt: skip
    parser.add_argument(
        '--unsafe-pickle', action='store_true',
        help='also read files that run code while they are read; only from a source you trust',
    )  # fmt: skip
    parser.add_argument('--overwrite', action='store_true', help='replace an existing file')


def run(args: argparse.Namespace) -> int:
    """Writes the file and prints what it holds."""
    done = convert_checkpoint(
        args.file, args.output, classes=args.classes, unsafe_pickle=args.unsafe_pickle,
        overwrite=args.overwrite,
    )  # fmt: skip
    size = done.path.stat().st_size / 2**20
    print(f'{done.path}: {done.network}, {size:.2f} MiB, loaded strictly')
    for name, value in done.kwargs.items():
        print(f'  {name}: {value}')
    if done.embedding is not None:
        print(f'Degradation vectors: {done.embedding}')
        print(f'Degradations: {", ".join(done.classes)}')
    return 0
