"""``unfoldldm prepare``: published data sets, or a folder of one's own, as LMDBs."""

import argparse
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from unfoldldm_basicsr.common.suggest import check_choice
from unfoldldm_basicsr.data.listing import find_images, left_out
from unfoldldm_basicsr.preparing.layouts import Layout
from unfoldldm_basicsr.preparing.lmdb_writer import SubImages, check_destination
from unfoldldm_basicsr.preparing.prepare import MATLAB, destinations, expected, plan, refusal, write
from unfoldldm_basicsr.preparing.sets import SETS, DataSet, Part, Source

_OWN = ('gt', 'lq', 'part', 'crop_size', 'step', 'thresh_size', 'payload')


def run_prepare(args: argparse.Namespace) -> int:
    """Prepares the set."""
    if args.set is None and (args.input or args.output):
        raise ValueError('SET is missing; for images of your own: unfoldldm prepare folder -i ...')
    if args.output and args.input is None:
        raise ValueError('-i is missing: the folder of the images.')
    if args.set is None:
        print(*(f'{n}: {s.where}' for n, s in SETS.items()), 'folder: your own images', sep='\n')
        return 0
    for name, least in {'crop_size': 1, 'step': 1, 'threads': 1, 'thresh_size': 0}.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f'--{name.replace("_", "-")} must be at least {least}.')
    dataset = _own_set(args) if args.set == 'folder' else _published(args)
    if args.input is None:
        print(expected(dataset))
        return 0
    output = args.output or Path('datasets', args.set)
    plans = plan(dataset, args.input)
    others = find_images(args.input, more=MATLAB)[1]
    if others:
        print(f'{args.input}: {left_out(others)}')
    problems = refusal(dataset, plans, args.input)
    found = {name: part for name, part in plans.items() if part.gt or part.lq}
    if problems and not (args.incomplete and found):
        raise ValueError(problems)
    targets = {name: output if output.suffix == '.lmdb' else output / name for name in found}
    for name, part in found.items():  # before hours of work
        for root in destinations(part, targets[name]):
            check_destination(root, args.force)
    for name, part in plans.items():
        for note in part.problems + part.notes:
            print(f'note: {args.set} {name}: {note}')
    for name, part in found.items():
        where = args.input if args.set == 'folder' else ', '.join(part.layouts)
        print(f'{args.set} {name}: {len(part.pairs)} images in {where}')
        for rest in sorted(targets[name].parent.glob('.*.lmdb.*')):
            print(f'note: {rest} is of a run that was interrupted (remove it) or goes on')
        written = write(
            dataset.parts[name], part, targets[name], force=args.force, num_threads=args.threads,
            progress=partial(tqdm, unit='image', file=sys.stderr),
        )  # fmt: skip
        for root, count in written.items():
            size = (root / 'data.mdb').stat().st_size / 2**20
            print(f'{root}: {count} images, {size:.1f} MiB, verified')
    if dataset.note:
        print(f'note: {dataset.note}')
    return 0


def _published(args: argparse.Namespace) -> DataSet:
    check_choice('SET', args.set, [*SETS, 'folder'])
    given = [name for name in _OWN if getattr(args, name) is not None]
    if given:
        raise ValueError(f'--{given[0].replace("_", "-")} is for folder; a set has its own.')
    return SETS[args.set]


def _own_set(args: argparse.Namespace) -> DataSet:
    if args.crop_size is None and (args.step or args.thresh_size):
        raise ValueError('--step and --thresh-size need --crop-size.')
    if args.part and args.output and args.output.suffix == '.lmdb':
        raise ValueError(f'--part names LMDBs in a folder; --output {args.output} is one.')
    if args.gt and args.gt == args.lq:
        raise ValueError(f'--lq {args.lq}: names the clean images.')
    squares = None
    if args.crop_size:
        step = args.step or max(1, args.crop_size // 2)
        squares = SubImages(args.crop_size, step, args.thresh_size or 0)
    layout = Layout(args.gt or (None if args.lq else '{path}'), args.lq)
    part = Part((Source('', None, (layout,)),), squares, args.payload or 'png')
    return DataSet({args.part or 'train': part}, 'you')
