"""``unfoldldm check``: are option files right, before anything is started?"""

import argparse
import sys

from unfoldldm_basicsr.common.cost import SIZE, network_cost
from unfoldldm_basicsr.common.errors import first_line
from unfoldldm_basicsr.common.option_files import apply_overrides, read_option_file
from unfoldldm_basicsr.options.preflight import examine, project_hint
from unfoldldm_basicsr.options.run import Report, is_training


def run(args: argparse.Namespace) -> int:
    """Prints one line per correct file, and every problem of the others (status 2)."""
    failed, hint = False, ''
    for file in args.opt:
        try:
            options = read_option_file(file)
            apply_overrides(options, args.force_yml)
            report = examine(
                options, file, is_training(options), here=not args.no_data,
                strict=not args.no_strict,
            )  # fmt: skip
        except ValueError as error:
            failed = True
            print(error, file=sys.stderr)
            continue
        notes = [f'{file}: {note}' for note in report.notes]
        notes += [f'warning: {line}' for line in report.warnings]
        for line in (*report.problems, *notes):
            print(line, file=sys.stderr)
        if not report.problems:
            print(f'{file}: OK ({describe(report)})')
        failed = failed or bool(report.problems)
        hint = hint or project_hint(report.problems)
    if hint:
        print(hint, file=sys.stderr)
    return 2 if failed else 0


def describe(report: Report) -> str:
    """One line about a correct option file."""
    network = report.run.network_sections.get('network_g', {})  # models of others need none
    words = f'{"training" if report.run.is_train else "test"}, {network.get("type", "no network")}'
    net = report.run.networks.get('network_g')
    if net is None:
        return words
    words += f': {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters'
    try:
        macs = network_cost(network).macs
    except Exception as error:  # noqa: BLE001  (a network of anybody, called with one image)
        return f'{words}, operations not counted: {first_line(error)}'
    return f'{words}, {macs / 1e9:.1f} GMACs for {SIZE} x {SIZE}'
