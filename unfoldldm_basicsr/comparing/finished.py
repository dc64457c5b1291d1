"""Finished runs and plain weight files in place of a folder of option files."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unfoldldm_basicsr.comparing.comparison import (
    COST_NOTE,
    data_words,
    deployment_costs,
    machine,
    score_words,
)
from unfoldldm_basicsr.comparing.report import Entry, build
from unfoldldm_basicsr.comparing.runs import (
    ALLOWED,
    Run,
    Say,
    differences,
    measured_costs,
    only_one,
)
from unfoldldm_basicsr.comparing.steps import Costs
from unfoldldm_basicsr.comparing.task import (
    COMMON,
    CompareOptions,
    TestOptions,
    options_of_test,
    sections,
    weights_of,
)
from unfoldldm_basicsr.comparing.testing import metrics_of, tested, tested_plainly
from unfoldldm_basicsr.compat.imports import load_data_only
from unfoldldm_basicsr.options.read import read_option_file

_SEED = re.compile(r'[_-]?seed[_-]?\d+')


@dataclass(frozen=True)
class Finished:
    """A training that has ended, or the phases of one.

    Attributes:
        folder: of its last phase below ``experiments``.
        phases: option files of its phases, as they were run.
    """

    folder: Path
    phases: tuple[Mapping[str, Any], ...]

    @property
    def options(self) -> Mapping[str, Any]:
        """Of the last phase."""
        return self.phases[-1]


def read_run(path: Path, root: Path) -> Finished:
    """A run by its folder, or its name below ``experiments``, with the runs it started from.

    Raises:
        ValueError: no such run, or it has no option file.
    """
    folder = path if path.is_dir() else root / 'experiments' / path
    options = option_file_of(folder)
    if options is None:
        raise ValueError(
            f'{path}: neither a weight file nor a run: no folder {folder} with the option file of '
            'a training.'
        )
    return Finished(folder, (*_earlier(options), options))


def option_file_of(folder: Path) -> dict[str, Any] | None:
    """The option file that a training copied into its folder."""
    for file in sorted(folder.glob('*.yml')):
        options = read_option_file(file)
        if 'train' in options and options.get('name') == folder.name:
            return options
    return None


def _earlier(options: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Option files of the trainings whose weights this one started from, the first one first."""
    for key, value in (options.get('path') or {}).items():
        if key.startswith('pretrain_network') and isinstance(value, str):
            before = option_file_of(Path(value).expanduser().parent.parent)
            if before is not None:
                yield from _earlier(before)
                yield before


def check_runs(runs: Sequence[Finished], allow: Sequence[str]) -> None:
    """
    Raises:
        ValueError: two runs differ outside the allow-list.
    """
    found = [
        f'{run.folder.name}: {d.key} is {d.second!r}, in {runs[0].folder.name} {d.first!r}'
        for run in runs[1:]
        for d in differences(runs[0].options, run.options, (*ALLOWED, *allow))
    ]
    if found:
        raise ValueError(
            'these runs are not comparable:\n  ' + '\n  '.join(found) + '\n'
            'Where that is meant, name the keys after --allow; the report then says so.'
        )


def side_name(name: str) -> str:
    """The name of a run without its seed: runs that differ in it alone are one side."""
    return _SEED.sub('', name)


def compare_finished(
    names: Sequence[str],
    root: Path,
    opt: Path | None,
    folder: Path,
    settings: CompareOptions,
    say: Say = print,
) -> str:
    """Tests finished runs and plain weights, and writes a report.

    Args:
        names: folders or names of runs, or weight files.
        root: where ``experiments`` is.
        opt: option file (or folder of a comparison) whose test sets are used; None: the validation
            sets of the first run.
        folder: of the report.
        settings: what ``common.yml`` says otherwise.
        say: gets lines about the progress.

    Returns:
        One line that says where the report is.

    Raises:
        ValueError: no such run, runs that are not comparable, or no test set.
    """
    load_data_only()
    torch.set_num_threads(settings.threads)
    files = [Path(name) for name in names if Path(name).is_file()]
    runs = [read_run(Path(name), root) for name in names if not Path(name).is_file()]
    check_runs(runs, settings.allow)
    common = dict(runs[0].options) if runs else {}
    if opt is not None:
        common = read_option_file(opt / COMMON if opt.is_dir() else opt)
    data = common.get('datasets') or {}
    sets = sections(data, 'test') or sections(data, 'val')
    if not sets:
        raise ValueError('plain weights come without test sets: name an option file after -opt.')
    metrics = metrics_of(common)
    with only_one(folder, say):
        with tempfile.TemporaryDirectory() as scratch:
            groups = [{options['name']: options for options in run.phases} for run in runs]
            costs = measured_costs(groups, folder, Path(scratch), settings.threads, say)
        entries, networks = [], {}
        for name in dict.fromkeys(side_name(run.folder.name) for run in runs):
            own = [run for run in runs if side_name(run.folder.name) == name]
            tables = []
            for number, run in enumerate(own):
                weights = weights_of(run.folder.parent.parent, run.folder.name)
                val = {'metrics': common['val'].get('metrics')}
                test_opt = options_of_test(
                    run.folder.name, run.options, sets, weights, TestOptions(val=val)
                )
                say(f'Testing {run.folder.name} ...')
                tables.append(tested(test_opt, weights, folder, pictures=number == 0))
            trained = tuple(_trained(run, number, costs) for number, run in enumerate(own))
            pictures = folder / 'restored' / own[0].folder.name
            entries.append(Entry(name, name, '', tables, pictures, trained))
            networks[name] = own[0].options['network_g']
        for file in files:
            say(f'Testing {file} ...')
            table, networks[file.stem] = tested_plainly(file, sets, metrics, folder, file.stem)
            entries.append(
                Entry(file.stem, file.stem, '', (table,), folder / 'restored' / file.stem, ())
            )
        say('Measuring latency and memory in turn ...')
        words = {
            'title': ', '.join(names),
            'budget': 'that of each run, see the cost; weights without runs have none',
            'test data': '; '.join(data_words(section) for section in sets.values()),
            'scores': score_words(metrics),
            'allowed to differ besides network, optimiser and schedule': ', '.join(settings.allow),
            'machine': machine(settings.threads),
            'cost': COST_NOTE,
            'made by': 'unfoldldm compare --runs ' + ' '.join(names),
        }
        table = deployment_costs(networks, settings.sizes, folder, settings.threads)
        reference = settings.reference
        build(folder, entries, words, table, root=root, reference=reference, metrics=metrics)
    return f'Report: {folder / "report.md"}'


def _trained(run: Finished, seed: int, costs: Costs) -> tuple[Run, ...]:
    return tuple(
        Run(o['name'], None, seed, phase, int(o['train']['total_iter']), *costs[o['name']], o)
        for phase, o in enumerate(run.phases)
    )
