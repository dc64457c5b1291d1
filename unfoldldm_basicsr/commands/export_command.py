"""``unfoldldm export``: a training checkpoint becomes a file for restoring."""

from __future__ import annotations

import argparse

from unfoldldm_basicsr.weights.export import export_checkpoint

NAME = 'export'
HELP = 'turn a training checkpoint into a smaller file for restoring'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options of the command."""
    parser.add_argument('-w', '--weights', required=True, help='checkpoint, models/net_g_*.pth')
    parser.add_argument('-o', '--output', required=True, help='file to write, for example x.pth')
    parser.add_argument('-opt', '--opt', help='option file, for a checkpoint without metadata')
    parser.add_argument(
        '--param-key', help='weights to take: params_ema (default where present) or params'
    )
    parser.add_argument('--half', action='store_true', help='float16 values: half the size')
    parser.add_argument('--overwrite', action='store_true', help='replace an existing file')


def run(args: argparse.Namespace) -> int:
    """Writes the file and prints what it holds."""
    done = export_checkpoint(
        args.weights, args.output, opt_file=args.opt, param_key=args.param_key,
        half=args.half, overwrite=args.overwrite,
    )  # fmt: skip
    left_out = f', without {", ".join(done.dropped)}' if done.dropped else ''
    print(f'{done.network}: {done.param_key} of {args.weights}{left_out}')
    print(
        f'{args.output}: {done.values / 1e6:.2f} M values,'
        f' {done.bytes_after / 2**20:.2f} MiB (was {done.bytes_before / 2**20:.2f} MiB)'
    )
    return 0
