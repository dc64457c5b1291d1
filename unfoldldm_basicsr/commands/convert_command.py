"""``unfoldldm convert``: released VLU-Net files become files of this package."""

import argparse

from unfoldldm_basicsr.weights.convert import convert_checkpoint


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
