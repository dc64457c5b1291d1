"""``unfoldldm ablate``: what is each part of a network worth?"""

from __future__ import annotations

import argparse
from pathlib import Path

from unfoldldm_basicsr.commands.compare_command import add_task_arguments

NAME = 'ablate'
HELP = 'train, test and compare one network with parts changed'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options of the command."""
    parser.add_argument(
        '-opt', '--opt', type=Path, required=True, metavar='FOLDER',
        help='folder of a rows.yml: a network and changes to it (options/ablate/...)',
    )  # fmt: skip
    add_task_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Trains, tests and reports; what is done already is not repeated."""
    from unfoldldm_basicsr.comparing.comparison import compare

    print(compare(args.opt, args.root.resolve(), args.force_yml, args.only))
    return 0
