"""``unfoldldm check``: are option files right, before anything is started?"""

from __future__ import annotations

import argparse
import sys

from unfoldldm_basicsr.common.cost import network_cost
from unfoldldm_basicsr.compat.imports import load_data_only
from unfoldldm_basicsr.options.preflight import is_training, preflight
from unfoldldm_basicsr.options.read import apply_overrides, read_option_file

NAME = 'check'
HELP = 'find all mistakes in option files before a run is started'
SIZE = 256  # of the image that the operations are counted for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options of the command."""
    parser.add_argument(
        '-opt', '--opt', required=True, nargs='+', metavar='FILE', help='option files'
    )
    parser.add_argument(
        '--no-data',
        action='store_true',
        help='leave out what belongs to one machine: data, weights, GPUs',
    )
    parser.add_argument(
        '--force_yml', nargs='+', default=[], metavar='KEY:KEY=VALUE', help='as in training'
    )


def run(args: argparse.Namespace) -> int:
    """Prints one line per correct file, and every problem of the others.

    Returns:
        0, or 2 if a file has problems.
    """
    failed = False
    for file in args.opt:
        problems, summary = check_file(file, args.force_yml, here=not args.no_data)
        for problem in problems:
            print(problem, file=sys.stderr)
        if not problems:
            print(f'{file}: OK ({summary})')
        failed = failed or bool(problems)
    return 2 if failed else 0


def check_file(file: str, overrides: list[str], *, here: bool) -> tuple[list[str], str]:
    """Problems of an option file, and what it describes if there are none.

    Args:
        file: the option file.
        overrides: entries of ``--force_yml``.
        here: also check what belongs to this machine.
    """
    load_data_only()
    try:
        options = read_option_file(file)
        apply_overrides(options, overrides)
    except ValueError as error:
        return [str(error)], ''
    training = is_training(options)
    problems = preflight(options, file, training, here=here)
    return problems, '' if problems else describe(options, training)


def describe(options: dict, training: bool) -> str:
    """One line about a correct option dict."""
    kind = 'training' if training else 'test'
    network = options['network_g']
    try:
        params, macs = network_cost(network, SIZE)
    except RuntimeError:  # a network of BasicSR that looks at values: nothing to count
        return f'{kind}, {network["type"]}'
    return (
        f'{kind}, {network["type"]}: {params / 1e6:.2f} M parameters, '
        f'{macs / 1e9:.1f} GMACs for {SIZE} x {SIZE}'
    )
