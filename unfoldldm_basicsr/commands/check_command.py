"""``unfoldldm check`` and ``migrate``: are option files right, before anything is started?"""

import argparse
import sys
from pathlib import Path

import yaml

from unfoldldm_basicsr.common.cost import SIZE, network_cost
from unfoldldm_basicsr.common.errors import first_line
from unfoldldm_basicsr.common.files import refuse_existing, write_bytes_atomic
from unfoldldm_basicsr.common.option_files import apply_overrides, read_option_file
from unfoldldm_basicsr.options.aliases import translate
from unfoldldm_basicsr.options.preflight import examine, project_hint
from unfoldldm_basicsr.options.run import Report, is_training


def run_check(args: argparse.Namespace) -> int:
    """Prints one line per correct file or folder, and every problem of the others (status 2)."""
    failed, hint = False, ''
    for file in args.opt:
        try:
            reports = _reports(Path(file), args)
        except ValueError as error:
            failed = True
            print(error, file=sys.stderr)
            continue
        problems = list(dict.fromkeys(line for report in reports for line in report.problems))
        notes = [f'{report.file}: {note}' for report in reports for note in report.notes]
        notes += [f'warning: {line}' for report in reports for line in report.warnings]
        for line in (*problems, *dict.fromkeys(notes)):
            print(line, file=sys.stderr)
        if not problems:
            several = f'a comparison, {len(reports)} trainings and tests'
            print(f'{file}: OK ({describe(reports[0]) if len(reports) == 1 else several})')
        failed = failed or bool(problems)
        hint = hint or project_hint(problems)
    if hint:
        print(hint, file=sys.stderr)
    return 2 if failed else 0


def _reports(file: Path, args: argparse.Namespace) -> list[Report]:
    """The check of an option file, or of all that the folder of a comparison starts."""
    settings = {'here': not args.no_data, 'strict': not args.no_strict}
    if file.is_dir():
        from unfoldldm_basicsr.comparing import runs, task

        if not any((file / part).is_file() for part in (task.COMMON, task.ROWS)):
            rest = f'a comparison, it has no {task.COMMON}; name an option file'
            raise ValueError(f'{file}: is a folder, and not that of {rest}.')
        return runs.check_task(task.read_task(file, args.force_yml), Path.cwd(), **settings)
    options = read_option_file(file)
    apply_overrides(options, args.force_yml)
    beside = 'name' not in options and file.with_name('common.yml').is_file()
    if beside or {'compare', 'rows'} & options.keys():
        raise ValueError(f'{file}: is a part of a comparison: check its folder.')
    return [examine(options, str(file), is_training(options), **settings)]


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
    for problem in examine(options, args.file, is_training(options), here=False).problems:
        print(problem, file=sys.stderr)
    return 0


def commented(options: dict, notes: list[str]) -> str:
    """YAML of an option dict, with the notes as comments above."""
    text = yaml.safe_dump(options, sort_keys=False, default_flow_style=None, allow_unicode=True)
    return ''.join(f'# {note}\n' for note in notes) + text
