"""``unfoldldm compare``, ``ablate`` and ``report``: which network is better, and at what cost?"""

import argparse

from unfoldldm_basicsr.common.declaration import read
from unfoldldm_basicsr.comparing.comparison import compare, compare_finished
from unfoldldm_basicsr.comparing.report import write_page
from unfoldldm_basicsr.comparing.single import report
from unfoldldm_basicsr.comparing.task import CompareOptions


def run_compare(args: argparse.Namespace) -> int:
    """Trains, tests and reports; what is done already is not repeated."""
    of_finished = {key: getattr(args, key) for key in ('allow', 'sizes', 'threads', 'reference')}
    settings = {key: value for key, value in of_finished.items() if value is not None}
    root = args.root.resolve()
    if args.runs:
        for name in ('force_yml', 'only'):
            if getattr(args, name):
                raise ValueError(f'--{name} is for comparisons that train, not for --runs.')
        settings['budget'] = {'equal': 'iterations', 'amount': 1}  # theirs is spent
        settings = read(CompareOptions, settings, '--runs')
        output = args.output or root / 'results' / 'runs'
        print(compare_finished(args.runs, root, args.opt, output, settings, args.line))
        return 0
    if args.opt is None:
        raise ValueError('-opt FOLDER, or --runs RUN RUN ..., says what to compare.')
    for name in (*settings, *(['output'] if args.output else [])):
        raise ValueError(f'--{name} is for --runs; a comparison has it in its common.yml.')
    print(compare(args.opt, root, args.force_yml, args.only, args.line))
    return 0


run_ablate = run_compare


def run_report(args: argparse.Namespace) -> int:
    """Writes the report."""
    if args.page is not None and args.output is None:
        print(write_page(args.page, args.folders, not args.no_crops))
        return 0
    if len(args.folders) != 1 or args.page is not None or args.no_crops:
        raise ValueError(
            'name one RUN, or folders after --page FILE; -o is for RUN, --no-crops for --page.'
        )
    print(report(args.folders[0], args.root.resolve(), args.output))
    return 0
