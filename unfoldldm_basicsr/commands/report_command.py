"""``unfoldldm report``: the curves of one run, or the results page of the documentation."""

import argparse

from unfoldldm_basicsr.comparing.report import write_page
from unfoldldm_basicsr.comparing.single import report


def run(args: argparse.Namespace) -> int:
    """Writes the report."""
    if args.page is not None:
        print(write_page(args.page, args.folders, not args.no_crops))
        return 0
    if len(args.folders) != 1:
        raise ValueError('name one RUN, or the page to write after --page.')
    print(report(args.folders[0], args.root.resolve(), args.output))
    return 0
