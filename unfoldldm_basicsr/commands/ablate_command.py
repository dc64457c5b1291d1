"""``unfoldldm ablate``: what is each part of a network worth?"""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = 'ablate'
HELP = 'train, test and compare one network with parts changed'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options of the command."""
    parser.add_argument(
        '-opt', '--opt', type=Path, required=True, metavar='FOLDER',
        help='folder of a rows.yml: a network and changes to it (options/ablate/...)',
    )  # fmt: skip
    parser.add_argument(
        '--root', type=Path, default=Path(),
        help='where experiments/ and results/ are (default: the current folder)',
    )  # fmt: skip
    parser.add_argument(
        '--force_yml', nargs='+', default=[], metavar='KEY:KEY=VALUE',
        help='changes to common.yml, for example compare:budget:amount=2400',
    )  # fmt: skip
    parser.add_argument(
        '--only', nargs='+', default=[], metavar='NAME', help='only these rows (default: all)'
    )


def run(args: argparse.Namespace) -> int:
    """Trains, tests and reports; what is done already is not repeated."""
    from unfoldldm_basicsr.comparing.comparison import compare

    print(compare(args.opt, args.root.resolve(), args.force_yml, args.only))
    return 0
