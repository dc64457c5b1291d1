"""``unfoldldm export`` and ``convert``: a weight file becomes one for restoring."""

import argparse
from pathlib import Path

from unfoldldm_basicsr.weights.convert import convert_checkpoint, export_checkpoint


def run_export(args: argparse.Namespace) -> int:
    """Writes the file and prints what it holds."""
    done = export_checkpoint(
        args.weights, args.output, opt_file=args.opt, param_key=args.param_key,
        half=args.half, overwrite=args.overwrite,
    )  # fmt: skip
    left_out = f', without {", ".join(done.dropped)}' if done.dropped else ''
    print(f'{done.network}: {done.param_key} of {args.weights}{left_out}')
    new, old = (Path(file).stat().st_size / 2**20 for file in (args.output, args.weights))
    print(f'{args.output}: {done.values / 1e6:.2f} M values, {new:.2f} MiB (was {old:.2f} MiB)')
    return 0


def run_convert(args: argparse.Namespace) -> int:
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
