"""``unfoldldm export``: a training checkpoint becomes a file for restoring."""

import argparse

from unfoldldm_basicsr.weights.export import export_checkpoint


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
