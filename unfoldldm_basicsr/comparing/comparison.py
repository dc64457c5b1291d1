"""A comparison, from option files or finished runs and weights, to a folder with its report."""

import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from unfoldldm_basicsr import __version__
from unfoldldm_basicsr.common.cost import network_cost
from unfoldldm_basicsr.common.option_files import read_option_file
from unfoldldm_basicsr.common.suggest import check_choice
from unfoldldm_basicsr.comparing import runs as trainings
from unfoldldm_basicsr.comparing import task as tasks
from unfoldldm_basicsr.comparing.measuring import code_of, deployed, machine
from unfoldldm_basicsr.comparing.report import Entry, build
from unfoldldm_basicsr.comparing.tables import made_once, read_csv
from unfoldldm_basicsr.comparing.testing import metrics_of, tested
from unfoldldm_basicsr.comparing.workspace import Workspace
from unfoldldm_basicsr.options.run import flatten
from unfoldldm_basicsr.restoring import Restorer

UNITS = {
    'iterations': 'iterations',
    'time': 'seconds of training steps (of the process on CPU, of the device on GPU)',
    'macs': 'x 10^12 multiply-accumulates of training steps',
}
COST_NOTE = (
    'Parameters and multiply-accumulates as deployed (without what only training needs); latency '
    '(the fastest of ten rounds) and peak memory of one image without tiles, all sides in turn in '
    'one process; training time and multiply-accumulates are those of the steps (the fastest of '
    'eight, measured in turn) times the iterations.'
)
_SEED = re.compile(r'[_-]?seed[_-]?\d+')
DIFFERING = 'allowed to differ besides network, optimiser and schedule'


def compare(
    folder: Path, root: Path, overrides: Sequence[str], only: Sequence[str], made_by: str
) -> str:
    """Trains, tests and reports; returns one line that says where the report is.

    ``made_by``: the command, for the report; the others are those of :func:`.task.read_task`.
    """
    task = tasks.read_task(folder, overrides, only)
    settings = task.settings
    metrics_of(task.common)  # before anything is trained
    place = Workspace(root, root / 'results' / task.label, settings.threads)
    with place.alone():
        runs = trainings.plan(task, place)
        trainings.train([run for phases in runs.values() for run in phases], place)
        entries = []
        for side in task.sides:
            seeds = settings.seeds if side.phases else settings.seeds[:1]
            tests = [task.test_options(side, seed, root) for seed in seeds]
            own = [runs[side.trained_as, seed] for seed in seeds if side.phases]
            entries.append(Entry(side.name, side.title, side.file.paper, seeds, tests, own))
        words = {**words_of_task(task), 'made by': made_by}
        return _finish(entries, settings, words, place)


def compare_finished(
    names: Sequence[str],
    root: Path,
    opt: Path | None,
    folder: Path,
    settings: tasks.CompareOptions,
    made_by: str,
) -> str:
    """Tests finished runs and plain weights (``names``), and writes a report to ``folder``; says
    where.

    Test sets are those of ``opt`` (an option file or the folder of a comparison), else the
    validation sets of the first run; ``settings`` is what ``common.yml`` says otherwise.

    Raises ValueError: no such run, runs that are not comparable, or no test set.
    """
    place = Workspace(root, folder, settings.threads)
    files = [Path(name).resolve() for name in names if Path(name).is_file()]
    runs = [trainings.read_run(Path(name), root) for name in names if not Path(name).is_file()]
    trainings.check_runs(runs, settings.allow)
    common = runs[0][-1].options if runs else {}
    if opt is not None:
        common = read_option_file(opt / tasks.COMMON if opt.is_dir() else opt)
    sets, val = tasks.test_sets(common), {'metrics': (common.get('val') or {}).get('metrics')}
    if not sets:
        raise ValueError('plain weights come without test sets: name an option file after -opt.')
    metrics_of({'val': val})
    of_files, side_of = named_files(files), lambda phases: _SEED.sub('', phases[-1].name)
    known = [*dict.fromkeys(map(side_of, runs)), *of_files.values()]
    if len({*known}) < len(known):
        raise ValueError(f'every run and file needs a name of its own, got {known}.')
    if settings.reference is not None:
        check_choice('--reference', settings.reference, known)
    for name in map(side_of, runs):  # runs that differ in the seed alone are one side
        same = [phases for phases in runs if side_of(phases) == name]
        trainings.check_seeds(same, settings.allow)
    with place.alone():
        with tempfile.TemporaryDirectory() as scratch:
            runs = trainings.with_costs(runs, Path(scratch), place)
        sides: dict[str, list] = {}
        for phases in runs:
            sides.setdefault(side_of(phases), []).append(phases)
        seeds = [last.options.get('manual_seed') for *_, last in runs]
        entries, changes = [], tasks.TestOptions(val=val)
        for name, own in sides.items():
            tests = [
                tasks.options_of_test(r.name, r.options, sets, r.weights, changes) for *_, r in own
            ]
            entries.append(Entry(name, name, None, range(len(own)), tests, own))
        for file, name in of_files.items():
            meta = Restorer(file).meta
            own = {'network_g': {'type': meta['type'], **meta['kwargs']}, 'val': val}
            test = tasks.options_of_test(name, own, sets, file)
            entries.append(Entry(name, name, None, [0], [test], []))
        words = {
            'title': ', '.join(names),
            'budget': 'that of each run, see the cost; weights without runs have none',
            'seeds': ', '.join(dict.fromkeys(str(seed) for seed in seeds if seed is not None)),
            'training data': '; '.join(dict.fromkeys(training_words(r.options) for *_, r in runs)),
            'test data': '; '.join(data_words(data, test=True) for data in sets.values()),
            DIFFERING: ', '.join(settings.allow),
            'made by': made_by,
        }
        return _finish(entries, settings, words, place)


def named_files(files: Iterable[Path]) -> dict[Path, str]:
    """Weight files and their names in a report; where some are called alike, with their folders."""
    names = {file: file.stem for file in files}
    for file, name in names.items():
        alike = [other for other in names if other.stem == file.stem]
        above = os.path.commonpath([other.parent for other in alike])
        names[file] = '_'.join(file.relative_to(above).parts) if len(alike) > 1 else name
    return names


def _finish(
    entries: Sequence[Entry],
    settings: tasks.CompareOptions,
    words: Mapping[str, str],
    place: Workspace,
) -> str:
    metrics, scores = metrics_of(entries[0].tests[0]), {}
    torch.set_num_threads(place.threads)
    for entry in entries:
        for seed, test in zip(entry.seeds, entry.tests, strict=True):
            place.say(f'Testing {test["name"]} ...')
            scores[entry.title, seed] = tested(test, place, pictures=seed == entry.seeds[0])
    place.say('Measuring latency and memory in turn ...')
    costs = deployment_costs(entries, settings.sizes, place)
    # metrics with their settings, and what they are computed on
    said = (' '.join([n, *(f'{k}: {v}' for k, v in m.items())]) for n, m in metrics.items())
    rgb = '' if any(m.get('test_y_channel') for m in metrics.values()) else 'RGB, '
    protocol = {
        **words,
        'scores': f'{"; ".join(said)}; {rgb}inputs as the data set gives them, outputs rounded to '
        '8 bit', 'networks': '; '.join(map(network_words, entries)), 'cost': COST_NOTE,
        'version': f'unfoldldm_basicsr {__version__}', 'machine': machines(place),
    }  # fmt: skip
    build(place.folder, entries, scores, protocol, costs, metrics, settings.reference)
    return f'Report: {place.folder / "report.md"}'


def deployment_costs(
    entries: Sequence[Entry], sizes: Sequence[int], place: Workspace
) -> pd.DataFrame:
    """Parameters, MACs, latency and memory of every network at every size."""
    networks = {entry.title: deployed(entry.tests[0]['network_g']) for entry in entries}
    networks = {title: network for title, network in networks.items() if network}
    job = {'networks': networks, 'sizes': sizes, 'threads': place.threads}
    table, made_with = place.folder / 'deployment.csv', [job, machine(place.threads)]
    made_with += [code for network in networks.values() for code in code_of(network)]
    costs = made_once(table, made_with, lambda: place.measure('deployment', job))
    counted = [network_cost(networks[row.side], row.size) for row in costs.itertuples(index=False)]
    costs.insert(2, 'params_M', [cost.params / 1e6 for cost in counted])
    costs.insert(3, 'GMACs', [cost.macs / 1e9 for cost in counted])
    return costs


def network_words(entry: Entry) -> str:
    """A side with all that its network was told, and the learning rates of its phases."""
    told = flatten(entry.tests[0].get('network_g') or {}, '')
    rates = [flatten(r.options, '').get('train.optim_g.lr') for own in entry.runs[:1] for r in own]
    words = [f'{key} {value}' for key, value in told.items()]
    words += [f'learning rate {" then ".join(map(str, dict.fromkeys(rates)))}'] if rates else []
    return f'{entry.title}: {", ".join(words) or "no network"}'


def machines(place: Workspace) -> str:
    """Where the tests ran, and the trainings if that was elsewhere."""
    here, file = machine(place.threads), place.folder / 'steps.csv'
    steps = read_csv(file) if file.exists() else pd.DataFrame()
    elsewhere = [name for name in steps.get('machine', pd.Series()).unique() if name != here]
    return '; '.join([here, *(f'trained on {name}' for name in elsewhere)])


def words_of_task(task: tasks.Task) -> dict[str, str]:
    """How the numbers of a comparison were made, topic by topic."""
    settings = task.settings
    # a row of an ablation is named after what it changes, and has the rest from the base
    first = settings.reference if (task.folder / tasks.ROWS).is_file() else None
    trained = [side for side in task.sides if side.name == (first or side.trained_as)]
    choices = {s.title: s.file.test.model_dump(exclude_defaults=True) for s in task.sides}
    sets = [*tasks.test_sets(task.common).values()]
    names = {data.get('name') for data in sets}
    return {
        'title': task.name,
        'budget': f'{settings.budget.amount:g} {UNITS[settings.budget.equal]} for each side, all '
        'its phases together',
        'seeds': ', '.join(map(str, settings.seeds)),
        'training data': training_words(task.common),
        'test data': '; '.join(data_words(data, test=True) for data in sets),
        DIFFERING: ', '.join(settings.allow),
        'choices of the test': '; '.join(f'{t}: {json.dumps(c)}' for t, c in choices.items() if c),
        'own options': own_options(trained, task.common),
        'unseen': ', '.join(name for name in settings.out_of_distribution if name in names),
    }


def own_options(sides: Iterable[tasks.Side], common: Mapping[str, Any]) -> str:
    """What these trainings have for themselves besides networks; equal ones are named together."""
    not_said, found = ('name', 'model_type', 'network_'), {}
    for side in sides:
        own: dict[str, list] = {}  # key -> its value in each phase, repetitions left out
        for phase in side.phases:
            said = trainings.differences(common, phase, not_said)
            for key, _, value in said:
                section = any(other.startswith(f'{key}.') for other, *_ in said)
                if value == tasks.PREVIOUS or section:  # its keys are said
                    continue
                if value not in own.setdefault(key, []):
                    own[key].append(value)
        if own:
            words = (f'{key} {" then ".join(map(str, v))}' for key, v in sorted(own.items()))
            found.setdefault(', '.join(words), []).append(side.title)
    return '; '.join(f'{", ".join(titles)}: {words}' for words, titles in found.items())


def training_words(options: Mapping[str, Any]) -> str:
    """What an option file trains on."""
    data, cut = options['datasets']['train'], options['train'].get('progressive')
    patches, batch = data.get('gt_size'), data.get('batch_size_per_gpu')
    if cut:
        sizes, batch = (' then '.join(map(str, cut[k])) for k in ('gt_sizes', 'mini_batch_sizes'))
        patches = f'{sizes} cut from {patches}'
    return f'{data_words(data)}, patches of {patches}, batch {batch}'


_OF_A_TEST = ('center_crop', 'crop_multiple', 'lq_output', 'color', 'seed')


def data_words(data: Mapping[str, Any], *, test: bool = False) -> str:
    """A data set in words: name, folder, degradations, draws for a test; those of its parts."""
    steps = ', '.join(
        ' '.join([step['type'], *(f'{k} {v}' for k, v in step.items() if k != 'type')])
        for step in data.get('degradations', ())
    )
    place = '/'.join(Path(str(data.get('dataroot_lq', data.get('dataroot_gt', '')))).parts[-2:])
    words = [': '.join(filter(None, [place, steps]))]
    words += [f'{key} {data[key]}' for key in _OF_A_TEST if test and data.get(key) is not None]
    words += [data_words(part, test=test) for part in data.get('sets', ())]
    name, times = data.get('name', data.get('degradation_name', '')), data.get('repeat', 1)
    if test and times > 1:
        words.append(f'{times} draws of each image')
    return f'{name} ({"; ".join(filter(None, words))})'
