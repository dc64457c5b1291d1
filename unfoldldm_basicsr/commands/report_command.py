"""``unfoldldm report``: the curves of one run, or the results page of the documentation."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = 'report'
HELP = 'draw the curves of a training and say what its prior is worth'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options of the command."""
    parser.add_argument(
        'folders', type=Path, nargs='*', metavar='RUN',
        help='a name below experiments/, or its folder; with --page: folders of reports',
    )  # fmt: skip
    parser.add_argument('-o', '--output', type=Path, help='folder (results/report_RUN)')
    parser.add_argument(
        '--root', type=Path, default=Path(), help='where experiments/ and results/ are'
    )
    parser.add_argument(
        '--page', type=Path, metavar='FILE.md',
        help='copy the tables and pictures of reports beside this page, and write it anew',
    )  # fmt: skip
    parser.add_argument(
        '--no-crops', action='store_true',
        help='with --page: leave out crops of photos that may not be published',
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Writes the report."""
    if args.page is not None:
        from unfoldldm_basicsr.comparing.report import write_page

        print(write_page(args.page, args.folders, not args.no_crops))
        return 0
    from unfoldldm_basicsr.comparing.single import report

    if len(args.folders) != 1:
        raise ValueError('name one RUN, or the page to write after --page.')
    print(report(args.folders[0], args.root.resolve(), args.output))
    return 0
