"""``unfoldldm report``: the curves of one run, or the results page of the documentation."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = 'report'
HELP = 'draw the curves of a training and say what its prior is worth'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options of the command."""
    parser.add_argument(
        'run_folder', type=Path, metavar='RUN', help='a name below experiments/, or its folder'
    )
    parser.add_argument('-o', '--output', type=Path, help='folder (results/report_RUN), or page')
    parser.add_argument(
        '--root', type=Path, default=Path(), help='where experiments/ and results/ are'
    )
    parser.add_argument(
        '--render', action='store_true',
        help='RUN is a folder of reports: write the page that shows them (RUN.md)',
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Writes the report."""
    if args.render:
        from unfoldldm_basicsr.comparing.report import render_all

        print(render_all(args.run_folder, args.output))
        return 0
    from unfoldldm_basicsr.comparing.single import report

    print(report(args.run_folder, args.root.resolve(), args.output))
    return 0
