"""``unfoldldm check`` and ``migrate``: are option files right, before anything is started?"""

import argparse
import sys
from pathlib import Path

import yaml

from unfoldldm_basicsr.common.cost import SIZE, network_cost
from unfoldldm_basicsr.common.errors import first_line
from unfoldldm_basicsr.common.files import refuse_existing, write_bytes_atomic
from unfoldldm_basicsr.common.option_files import apply_overrides, read_option_file
from unfoldldm_basicsr.comparing.runs import check_task
from unfoldldm_basicsr.comparing.task import COMMON, ROWS, read_task
from unfoldldm_basicsr.options.aliases import translate
from unfoldldm_basicsr.options.preflight import examine, preflight, project_hint
from unfoldldm_basicsr.options.run import Report, is_training


def run_check(args: argparse.Namespace) -> int:
    """Prints one line per correct file, and every problem of the others (status 2)."""
    failed, hint = False, ''
    for file in args.opt:
        settings = {'here': not args.no_data, 'strict': not args.no_strict}
        try:
            if Path(file).is_dir():
                task = read_task(Path(file), args.force_yml)
                check_task(task, Path.cwd(), **settings)
                print(f'{file}: OK ({len(task.sides)} sides of a comparison)')
                continue
            beside = [Path(file).with_name(name) for name in (COMMON, ROWS)]
            if any({'compare', 'rows'} & {*read_option_file(f)} for f in beside if f.is_file()):
                raise ValueError(f'{file}: is a part of a comparison: check its folder.')
            options = read_option_file(file)
            apply_overrides(options, args.force_yml)
            report = examine(options, file, is_training(options), **settings)
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


def run_migrate(args: argparse.Namespace) -> int:
    """Writes the translated file, and says what is still wrong with it."""
    options = read_option_file(args.file)
    text = commented(options, translate(options))
    if args.output is None:
        print(text, end='')
    else:
        refuse_existing(args.file, args.output, overwrite=args.overwrite)
        write_bytes_atomic(args.output, text.encode())
    for problem in preflight(options, args.file, is_training(options), here=False):
        print(problem, file=sys.stderr)
    return 0


def commented(options: dict, notes: list[str]) -> str:
    """YAML of an option dict, with the notes as comments above."""
    text = yaml.safe_dump(options, sort_keys=False, default_flow_style=None, allow_unicode=True)
    return ''.join(f'# {note}\n' for note in notes) + text
