"""Builds an LMDB in BasicSR's layout from a folder of images, and verifies it.

    python scripts/data/make_lmdb.py PHOTOS -o datasets/photos.lmdb
    python scripts/data/make_lmdb.py GoPro/train/blur -o datasets/gopro_lq.lmdb \\
        --crop-size 512 --step 256 --payload bmp

The LMDB is read by the datasets of this package and by BasicSR's own (io_backend: {type: lmdb}).
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from unfoldldm_basicsr.preparing.lmdb_writer import PAYLOADS, SubImages, write_lmdb


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', type=Path, help='folder of images, searched recursively')
    parser.add_argument('-o', '--output', type=Path, required=True, help='the LMDB: NAME.lmdb')
    parser.add_argument('--crop-size', type=int, help='cut into squares of this side')
    parser.add_argument('--step', type=int, help='distance of the squares (default: half a side)')
    parser.add_argument(
        '--thresh-size', type=int, default=0,
        help='no further square for a rest of at most this many pixels (default: 0)',
    )  # fmt: skip
    parser.add_argument(
        '--payload', choices=PAYLOADS, default='png',
        help='png (default); bmp: larger but decodes much faster; source: the files as they are',
    )  # fmt: skip
    parser.add_argument(
        '--only', metavar='REGEX', help="take only images whose path contains it, e.g. '/blur/'"
    )
    parser.add_argument(
        '--rename', nargs=2, action='append', default=[], metavar=('REGEX', 'TEXT'),
        help="replace in every key, e.g. --rename '\\.' _ (may be repeated)",
    )  # fmt: skip
    parser.add_argument('--force', action='store_true', help='replace an existing LMDB')
    parser.add_argument(
        '--threads', type=int, default=min(8, os.cpu_count() or 1), help='default: %(default)s'
    )
    args = parser.parse_args(argv)
    if args.crop_size is None and (args.step is not None or args.thresh_size):
        parser.error('--step and --thresh-size need --crop-size')
    for name in ('crop_size', 'step', 'threads'):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f'--{name.replace("_", "-")} must be at least 1')
    patterns = [('--only', args.only or '')] + [('--rename', pattern) for pattern, _ in args.rename]
    for option, pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            parser.error(f'{option} {pattern}: not a regular expression: {error}')
    return args


def show_progress(items: Iterable, title: str, total: int) -> Iterable:
    return tqdm(items, desc=title, total=total, unit='image')


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    sub_images = None
    if args.crop_size is not None:
        step = args.step or max(1, args.crop_size // 2)
        sub_images = SubImages(args.crop_size, step, args.thresh_size)
    for rest in sorted(args.output.parent.glob(f'.{args.output.name}.*')):
        print(
            f'note: {rest} is from a run that was interrupted (remove it) or still goes on',
            file=sys.stderr,
        )
    try:
        count = write_lmdb(
            args.source,
            args.output,
            payload=args.payload,
            sub_images=sub_images,
            only=args.only,
            renames=[tuple(pair) for pair in args.rename],
            force=args.force,
            num_threads=args.threads,
            progress=show_progress,
        )
    except (OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    size = (args.output / 'data.mdb').stat().st_size / 2**20
    print(f'{args.output}: {count} images, {size:.1f} MiB, verified')
    return 0


if __name__ == '__main__':
    sys.exit(main())
