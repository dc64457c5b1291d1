"""``unfoldldm compare``: which network is better, and at what cost?"""

import argparse


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
