"""Training: ``python -m unfoldldm_basicsr.train -opt FILE [--root FOLDER] [BasicSR's options]``.

The option file is checked as a whole, then BasicSR's own pipeline runs. Experiments go below the
current folder, or below ``--root``.
"""

from __future__ import annotations

import argparse
import os
import sys

import unfoldldm_basicsr  # noqa: F401  (at the top: spawned workers import this file first)
from unfoldldm_basicsr.training.memory import prefer_huge_pages


def take_root(argv: list[str]) -> tuple[str, list[str]]:
    """Splits ``--root FOLDER`` (default: current folder) off the command line."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--root', default=os.curdir)
    known, rest = parser.parse_known_args(argv)
    return os.path.abspath(os.path.expanduser(known.root)), rest


def main(argv: list[str] | None = None) -> None:
    """Runs BasicSR's ``train_pipeline``.

    A problem with the options ends with status 2; what stops a run that has begun (a full disk,
    images that cannot be read, the loss of another process, ...) with one message and status 1.
    """
    prefer_huge_pages()
    import basicsr.train

    from unfoldldm_basicsr.common.errors import run_to_end

    root, rest = take_root(sys.argv[1:] if argv is None else argv)
    sys.argv[1:] = rest  # where BasicSR reads its options
    run_to_end(basicsr.train.train_pipeline, root)


if __name__ == '__main__':
    main()
