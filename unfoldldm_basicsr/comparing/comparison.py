"""A comparison from a folder of option files to a folder with its report."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from unfoldldm_basicsr.common.cost import network_cost
from unfoldldm_basicsr.common.files import write_bytes_atomic
from unfoldldm_basicsr.comparing import deployment
from unfoldldm_basicsr.comparing.report import Entry, build
from unfoldldm_basicsr.comparing.runs import Run, Say, call, differences, only_one, plan, train
from unfoldldm_basicsr.comparing.tables import read_csv
from unfoldldm_basicsr.comparing.task import ROWS, Side, Task, known, merged, read_task
from unfoldldm_basicsr.comparing.testing import metrics_of, tested, tested_plainly
from unfoldldm_basicsr.compat.imports import load_data_only

UNITS = {
    'iterations': 'iterations',
    'time': 'seconds of training steps (of the process on CPU, of the device on GPU)',
    'macs': 'x 10^12 multiply-accumulates of training steps',
}
COST_NOTE = (
    'Parameters and multiply-accumulates as deployed (without what only training needs); latency '
    '(the fastest of ten rounds) and peak memory of one image without tiles, all sides in turn in '
    'one process; training time and '
    'multiply-accumulates are those of the steps, measured in turn, times the iterations.'
)


def compare(
    folder: Path, root: Path, overrides: Sequence[str], only: Sequence[str], say: Say = print
) -> str:
    """Trains, tests and reports.

    Args:
        folder: of the option files, see :mod:`.task`.
        root: where ``experiments`` and ``results`` are.
        overrides: changes to ``common.yml``.
        only: names of the sides to look at; all where empty.
        say: gets lines about the progress.

    Returns:
        One line that says where the report is.
    """
    load_data_only()
    task = chosen(read_task(folder, overrides), only)
    report = root / 'results' / task.label
    torch.set_num_threads(task.settings.threads)
    with only_one(report, say):
        runs = plan(task, root, report, say)
        train(runs, root, report, task.settings.threads, say)
        entries = [entry(task, side, runs, root, report, say) for side in task.sides]
        trained = [side for side in task.sides if side.classical is None]
        networks = {s.name: task.test_options(s, 0, root)['network_g'] for s in trained}
        say('Measuring latency and memory in turn ...')
        costs = deployment_costs(networks, task.settings.sizes, report, task.settings.threads)
        metrics = metrics_of(task.common)
        build(
            report, entries, protocol(task, metrics), costs,
            root=root, reference=task.settings.reference, metrics=metrics,
        )  # fmt: skip
    return f'Report: {report / "report.md"}'


def chosen(task: Task, only: Sequence[str]) -> Task:
    """The task with some of its sides, and those that they need."""
    names = [side.name for side in task.sides]
    for name in only:
        known(name, names, '--only')
    if not only:
        return task
    needed = {side.trained_as for side in task.sides if side.name in only}
    wanted = needed | {*only, task.settings.reference}
    return replace(task, sides=tuple(side for side in task.sides if side.name in wanted))


def entry(task: Task, side: Side, runs: Sequence[Run], root: Path, report: Path, say: Say) -> Entry:
    """Tests a side with every seed."""
    metrics = metrics_of(task.common)
    if side.classical is not None:
        say(f'Testing {side.name} ...')
        rows, _ = tested_plainly(side.classical, task.test_sets, metrics, report, side.name)
        return Entry(side.name, side.title, '', (rows,), report / 'restored' / side.name, ())
    tables, own_runs = [], []
    for number, seed in enumerate(task.settings.seeds):
        options = task.test_options(side, seed, root)
        say(f'Testing {options["name"]} ...')
        weights = Path(options['path']['pretrain_network_g'])
        tables.append(tested(options, weights, report, pictures=number == 0))
        own = [r for r in runs if r.side.name == side.trained_as and r.seed == seed]
        own_runs.append(tuple(own))
    name = task.test_options(side, task.settings.seeds[0], root)['name']
    pictures = report / 'restored' / name
    return Entry(side.name, side.title, side.paper or '', tables, pictures, own_runs)


def deployment_costs(
    networks: Mapping[str, Mapping[str, Any]], sizes: Sequence[int], report: Path, threads: int
) -> pd.DataFrame:
    """Parameters, MACs, latency and memory of every network at every size."""
    networks = {name: deployment.deployed(opt) for name, opt in networks.items()}
    text = yaml.safe_dump(json.loads(json.dumps(networks)), sort_keys=False)
    digest = hashlib.sha256(f'{text}{sizes}{threads}'.encode()).hexdigest()[:8]
    file, table = report / 'options' / 'networks.yml', report / f'deployment_{digest}.csv'
    if not table.exists():
        write_bytes_atomic(file, text.encode())
        arguments = ['-m', deployment.__name__, str(file), '-o', str(table), '--sizes']
        call([*arguments, *map(str, sizes)], threads, report / 'logs' / 'deployment.txt')
    costs = read_csv(table)
    counted = [
        network_cost(networks[side], size)
        for side, size in zip(costs['side'], costs['size'], strict=True)
    ]
    costs.insert(2, 'params_M', [cost.params / 1e6 for cost in counted])
    costs.insert(3, 'GMACs', [cost.macs / 1e9 for cost in counted])
    return costs


def machine(threads: int) -> str:
    """Processor or GPU, threads and the version of torch."""
    name, info = platform.processor() or platform.machine(), Path('/proc/cpuinfo')
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    elif info.exists():
        lines = [s for s in info.read_text().splitlines() if s.startswith('model name')]
        name = lines[0].partition(':')[2].strip() if lines else name
    return f'{name}, {threads} CPU thread{"s" * (threads > 1)}, torch {torch.__version__}'


def protocol(task: Task, metrics: Mapping[str, Mapping]) -> dict[str, str]:
    """How the numbers of a comparison were made, topic by topic."""
    settings, data = task.settings, task.common['datasets']
    command = 'ablate' if (task.folder / ROWS).is_file() else 'compare'
    train_set = data['train']
    differing = {
        f'{side.title}: {key}'
        for side in task.sides for phase in side.phases
        for key in _own_keys(task, side, phase)
    }  # fmt: skip
    return {
        'title': task.name,
        'budget': f'{settings.budget.amount:g} {UNITS[settings.budget.equal]} for each side, all '
        'its phases together',
        'seeds': ', '.join(map(str, settings.seeds)),
        'training data': data_words(train_set)
        + f', patches of {train_set.get("gt_size")}, batch {train_set.get("batch_size_per_gpu")}',
        'test data': '; '.join(map(data_words, task.test_sets.values())),
        'scores': score_words(metrics),
        'allowed to differ besides network, optimiser and schedule': ', '.join(settings.allow),
        'choices of the test': '; '.join(
            f'{s.title}: {json.dumps(s.test.model_dump(exclude_defaults=True))}'
            for s in task.sides
            if s.test.model_dump(exclude_defaults=True)
        ),
        'own options': '; '.join(sorted(differing)),
        'unseen': ', '.join(settings.out_of_distribution),
        'machine': machine(settings.threads),
        'cost': COST_NOTE,
        'made by': f'unfoldldm {command} -opt {task.folder}',
    }


def _own_keys(task: Task, side: Side, phase: Mapping) -> list[str]:
    own = merged(merged(task.common, side.own), phase)
    plain = ('name', 'model_type', 'network_', 'path')
    return [f'{d.key} {d.second}' for d in differences(task.common, own, plain)]


def score_words(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Metrics with their settings, and what they are computed on."""
    words = [
        ' '.join([name, *(f'{k}: {v}' for k, v in metric.items())])
        for name, metric in metrics.items()
    ]
    return f'{"; ".join(words)}; RGB, inputs as the data set gives them, outputs rounded to 8 bit'


def data_words(data: Mapping[str, Any]) -> str:
    """A data set in words."""
    steps = [
        ' '.join([s['type'], *(f'{k} {v}' for k, v in s.items() if k != 'type')])
        for s in data.get('degradations', ())
    ]
    source = Path(str(data.get('dataroot_lq', data.get('dataroot_gt', '')))).name
    return f'{data.get("name", "")} ({source}{": " if steps else ""}{", ".join(steps)})'
