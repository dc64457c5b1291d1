"""``unfoldldm compare``: which network is better, and at what cost?"""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = 'compare'
HELP = 'train, test and compare networks at an equal budget'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options of the command."""
    add_task_arguments(parser)
    finished = parser.add_argument_group('finished runs and weights in place of trainings')
    finished.add_argument(
        '--runs', nargs='+', default=[], metavar='RUN',
        help='names below experiments/, their folders, or weight files; -opt then only names the '
        'test sets (default: the validation sets of the first run)',
    )  # fmt: skip
    finished.add_argument(
        '--allow', nargs='+', default=[], metavar='KEY', help='option keys in which they may differ'
    )
    finished.add_argument('--sizes', type=int, nargs='+', default=[256], help='of costs (256)')
    finished.add_argument('--threads', type=int, default=1, help='of tests and costs (1)')
    finished.add_argument('--reference', metavar='NAME', help='that the others are compared with')
    finished.add_argument('-o', '--output', type=Path, help='folder (results/runs)')


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that ``compare`` and ``ablate`` share."""
    parser.set_defaults(runs=[])
    parser.add_argument(
        '-opt', '--opt', type=Path, metavar='FOLDER',
        help='folder of common.yml and a file for each network, or of rows.yml (an ablation)',
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
        '--only', nargs='+', default=[], metavar='NAME', help='only these (default: all)'
    )


def run(args: argparse.Namespace) -> int:
    """Trains, tests and reports; what is done already is not repeated."""
    from unfoldldm_basicsr.comparing.comparison import compare, compare_finished
    from unfoldldm_basicsr.comparing.task import BudgetOptions, CompareOptions

    root = args.root.resolve()
    if not args.runs:
        if args.opt is None:
            raise ValueError('-opt FOLDER (or --runs RUN RUN ... of compare) says what to compare.')
        print(compare(args.opt, root, args.force_yml, args.only))
        return 0
    settings = CompareOptions(
        budget=BudgetOptions(equal='iterations', amount=1), threads=args.threads,
        sizes=args.sizes, allow=args.allow, reference=args.reference,
    )  # fmt: skip
    output = args.output or root / 'results' / 'runs'
    print(compare_finished(args.runs, root, args.opt, output, settings))
    return 0
