"""``unfoldldm compare``: which network is better, and at what cost?"""

import argparse

_OF_FINISHED = ('allow', 'sizes', 'threads', 'reference')


def run(args: argparse.Namespace) -> int:
    """Trains, tests and reports; what is done already is not repeated."""
    from unfoldldm_basicsr.common.declaration import read
    from unfoldldm_basicsr.comparing.comparison import compare, compare_finished
    from unfoldldm_basicsr.comparing.task import CompareOptions

    root, given = args.root.resolve(), {n: getattr(args, n, None) for n in _OF_FINISHED}
    given = {name: value for name, value in given.items() if value not in (None, [])}
    if not args.runs:
        if args.opt is None:
            raise ValueError('-opt FOLDER (or --runs RUN RUN ... of compare) says what to compare.')
        for name in [*given, *(['output'] if getattr(args, 'output', None) else [])]:
            raise ValueError(f'--{name} is for --runs; a comparison has it in its common.yml.')
        print(compare(args.opt, root, args.force_yml, args.only))
        return 0
    for name in ('force_yml', 'only'):
        if getattr(args, name):
            raise ValueError(f'--{name} is for comparisons that train, not for --runs.')
    budget = {'equal': 'iterations', 'amount': 1}  # theirs is spent
    settings = read(CompareOptions, {'budget': budget, **given}, '--runs')
    output = args.output or root / 'results' / 'runs'
    print(compare_finished(args.runs, root, args.opt, output, settings))
    return 0
