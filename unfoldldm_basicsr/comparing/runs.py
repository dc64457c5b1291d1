"""Trainings: what may differ between them, and what the budget buys."""

import re
import shlex
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from unfoldldm_basicsr.common.option_files import apply_overrides, build_parser, read_option_file
from unfoldldm_basicsr.comparing.measuring import code_of, key_of
from unfoldldm_basicsr.comparing.tables import read_csv, write_csv
from unfoldldm_basicsr.comparing.task import COMMON, LATEST, PREVIOUS, ROWS, Task
from unfoldldm_basicsr.comparing.testing import data_files
from unfoldldm_basicsr.comparing.workspace import Workspace
from unfoldldm_basicsr.options.preflight import examine
from unfoldldm_basicsr.options.run import Report
from unfoldldm_basicsr.training import resume

# What leaves the result as it is.
WITHOUT_EFFECT = (
    'train.accum_iter', 'train.max_nonfinite', 'train.use_compile', 'train.use_cuda_graphs',
    'val.val_freq', 'val.trace', 'val.pbar', 'logger', 'num_gpu', 'dist_params', 'scan_backend',
)  # fmt: skip
# What a side may have of its own: the network, how it is optimised, and the parts of its loss that
# other networks lack.
ALLOWED = (
    'name', 'model_type', 'network_', 'manual_seed', 'train.optim_', 'train.scheduler',
    'train.total_iter', 'train.warmup_iter', 'train.use_grad_clip', 'train.grad_clip_norm',
    'train.isda_opt', 'train.diffusion_opt', 'train.stage_loss_weight', 'train.prior_warmup_iter',
    'train.prior_context', 'val.prior_source', *WITHOUT_EFFECT,
)  # fmt: skip
# Steps are measured with this many iterations and one seed, so that another budget or a seed that
# joins later finds the same.
_PROVISIONAL, _MEASURED_SEED = 1000, 0
_STARTS = re.compile('pretrain_network|resume_state')


@dataclass(frozen=True)
class Run:
    """One training, finished or not."""

    folder: Path  # with its weights and its log, below experiments
    options: Mapping[str, Any]  # its complete option file
    seconds: float = float('nan')  # of an iteration: of the device, or of the process
    macs: float = float('nan')  # of an iteration: multiply-accumulates

    @property
    def name(self) -> str:
        return self.options['name']

    @property
    def weights(self) -> Path:
        """The file that exists once it is finished."""
        return self.folder / LATEST

    @property
    def iterations(self) -> int:
        return int(self.options['train']['total_iter'])


def read_run(path: Path, root: Path) -> list[Run]:
    """A run by its folder, or its name below ``experiments``, after the runs it started from.

    Raises ValueError: no such run, or it has no option file.
    """
    folder = (path if path.is_dir() else root / 'experiments' / path).absolute()
    runs = _runs_of(folder)
    if not runs:
        raise ValueError(
            f'{path}: neither a weight file nor a run: no folder {folder} with the option file of '
            'a training.'
        )
    return runs


def _runs_of(folder: Path) -> list[Run]:
    files = map(_as_started, sorted(folder.glob('*.yml')))
    options = next((o for o in files if 'train' in o and o.get('name') == folder.name), None)
    if options is None:
        return []
    runs = []
    for key, value in (options.get('path') or {}).items():
        if key.startswith('pretrain_network') and isinstance(value, str):
            before = Path(value).expanduser().parent.parent
            runs += _runs_of(before) or _runs_of(folder.parent / before.name)
    return [*runs, Run(folder, options)]


def _as_started(file: Path) -> dict[str, Any]:
    """The options in the copy that a run keeps of its file, with what its command line changed."""
    written, text = read_option_file(file), file.read_text(encoding='utf-8')
    options = deepcopy(written)
    try:
        words = shlex.split(text.partition('# CMD:\n# ')[2].partition('\n')[0])
        args, _ = build_parser().parse_known_args(['-opt', str(file), *words[1:]])
        apply_overrides(options, args.force_yml or [])
    except (ValueError, SystemExit):  # a line of another script, or one that BasicSR cut short
        return written
    if args.debug:
        options['name'] = f'debug_{str(options.get("name")).removeprefix("debug_")}'
    return options


# ---- what is equal --------------------------------------------------------------------------


def differences(
    first: Mapping[str, Any], second: Mapping[str, Any], allowed: Sequence[str] = ()
) -> list[tuple[str, Any, Any]]:
    """Where two option files differ: key path and both values, 'not set' for a missing key.

    Key paths that begin like one of ``allowed`` may differ.
    """
    found = resume.differences(resume.flatten(first, ''), resume.flatten(second, ''))
    return [item for item in found if not item[0].startswith(tuple(allowed))]


def check_equal(task: Task) -> None:
    """Raises ValueError where a side differs from the common options outside the allow-list."""
    found: list[str] = []
    for side in task.sides:
        for phase in side.phases:
            allowed = (*ALLOWED, *task.settings.allow, *_of_its_loss(phase, side.phases[-1]))
            found += _differing(side.name, phase, COMMON, task.common, allowed)
    remedy = (
        f'Move what is meant for all into {COMMON}, or allow the key there (compare.allow; the '
        'report then says so).'
    )
    refuse(found, f'{task.folder}: these sides are not comparable:', remedy)


def check_runs(runs: Sequence[Sequence[Run]], allow: Sequence[str]) -> None:
    """Raises ValueError where finished runs, each with its phases, differ outside the allow-list,
    one is not finished, or starts from weights of no run.

    Every phase of a run must be like one of the first run's, and the other way round.
    """
    lacking = [last for *_, last in runs if not last.weights.exists()]
    hint = f'is not finished, it has no {LATEST}: go on with its training (--auto_resume)'
    refuse(f'{run.folder}: {hint}' for run in lacking)
    found = []
    for phases in runs:
        known = {run.folder.name for run in phases}
        paths = ((run.name, *p) for run in phases for p in (run.options.get('path') or {}).items())
        for name, key, file in paths:
            free = not _STARTS.search(key) or f'path.{key}'.startswith(allow)
            if not free and isinstance(file, str) and Path(file).parent.parent.name not in known:
                found.append(f'{name}: path.{key} is {file}, trained on nobody knows what')
    for own in runs[1:]:
        for run, last, others in (
            *((run, own[-1], runs[0]) for run in own),
            *((run, runs[0][-1], own) for run in runs[0][:-1]),
        ):
            free = (*ALLOWED, *allow, 'path', *_of_its_loss(run.options, last.options))
            pairs = ((run.name, run.options, o.name, o.options) for o in reversed(others))
            found += min((_differing(*pair, free) for pair in pairs), key=len)
    remedy = 'Where that is meant, name the keys after --allow; the report then says so.'
    refuse(found, 'these runs are not comparable:', remedy)


def check_seeds(runs: Sequence[Sequence[Run]], allow: Sequence[str]) -> None:
    """Raises ValueError where runs, each with its phases, differ in more than the seed."""
    found, own = [], ('name', 'manual_seed', 'path', *WITHOUT_EFFECT, *allow)
    for phases in runs[1:]:
        if len(phases) != len(runs[0]):
            found.append(f'{phases[-1].name}: has {len(phases)} phases, not {len(runs[0])}')
        for run, other in zip(phases, runs[0], strict=False):
            found += _differing(run.name, run.options, other.name, other.options, own)
    remedy = 'Compare them as two sides under two names, or name the keys after --allow.'
    before = 'these runs have one name but for the seed, and are no seeds of one training:'
    refuse(found, before, remedy)


def _of_its_loss(phase: Mapping, last: Mapping) -> tuple[str, ...]:
    """What a phase may have of its own that trains another network: VLU-Net's embedding."""
    kinds = [(options.get('network_g') or {}).get('type') for options in (phase, last)]
    return ('train', 'val') if kinds[0] != kinds[1] else ()


def _differing(
    name: str, own: Mapping, other_name: str, other: Mapping, allow: Sequence[str]
) -> list[str]:
    return [
        f'{name}: {key} is {mine!r}, in {other_name} {its!r}'
        for key, its, mine in differences(other, own, allow)
        if not key.startswith('path.') or (_STARTS.search(key) and mine != PREVIOUS)
    ]


def refuse(problems: Iterable[str], before: str = '', after: str = '') -> None:
    """Raises ValueError with all problems, if there are any."""
    if lines := ['  ' * bool(before) + problem for problem in dict.fromkeys(problems)]:
        raise ValueError('\n'.join(filter(None, [before, *lines, after])))


def check_task(task: Task, root: Path, **settings: bool) -> list[Report]:
    """The check of the option files of all trainings and tests, ``settings`` are its own.

    Raises ValueError: sides that differ.
    """
    check_equal(task)
    reports = []
    for side in task.sides:
        phases = range(len(side.phases) if side.trained_as == side.name else 0)
        files = [task.options(side, n, _PROVISIONAL, _MEASURED_SEED, root) for n in phases]
        files += [task.test_options(side, _MEASURED_SEED, root)] if side.phases else []
        name = str(task.folder / (ROWS if (task.folder / ROWS).is_file() else f'{side.name}.yml'))
        reports += [_checked(own, name, 'train' in own, **settings) for own in files]
    return reports


def _checked(options: Mapping[str, Any], name: str, is_train: bool, **settings: bool) -> Report:
    """The check of option files, but for weights that are not trained yet."""
    paths = [v for v in (options.get('path') or {}).values() if isinstance(v, str)]
    awaited = [path for path in paths if not (is_train and Path(path).exists())]
    report = examine(options, name, is_train, **settings)
    for place, line in [*report.refused.items()]:
        if any(path in line for path in awaited):
            del report.refused[place]
    return report


# ---- the budget -----------------------------------------------------------------------------


def plan(task: Task, place: Workspace) -> dict[tuple[str, int], list[Run]]:
    """All trainings of a comparison in their order: (side, seed) -> its phases; measures steps that
    are not known yet. ValueError: sides that differ, problems of option files, or runs of other
    options.
    """
    check_equal(task)
    tests = [task.test_options(s, _MEASURED_SEED, place.root) for s in task.sides if s.phases]
    refuse(line for test in tests for line in _checked(test, test['name'], False).problems)
    sides = [side for side in task.sides if side.phases and side.trained_as == side.name]
    with tempfile.TemporaryDirectory() as scratch:
        root, provisional = Path(scratch), []
        for side in sides:
            phases = range(len(side.phases))
            options = [task.options(side, n, _PROVISIONAL, _MEASURED_SEED, root) for n in phases]
            provisional.append([Run(root, own) for own in options])
        measured = with_costs(provisional, root, place)
    budget, runs = task.settings.budget, {}
    for seed, (side, phases) in product(task.settings.seeds, zip(sides, measured, strict=True)):
        own = runs[side.name, seed] = []
        for phase, (share, step) in enumerate(zip(side.shares, phases, strict=True)):
            unit = {'iterations': 1, 'time': step.seconds, 'macs': step.macs / 1e12}
            iterations = max(1, round(budget.amount * share / unit[budget.equal]))
            options = task.options(side, phase, iterations, seed, place.root)
            folder = place.root / 'experiments' / options['name']
            own.append(replace(step, folder=folder, options=options))
    refuse(line for own in runs.values() for run in own for line in _problems(run))
    return runs


def check_data(runs: Sequence[Run], place: Workspace) -> None:
    """Raises ValueError: the images to train on are others than those of a run that is there."""
    data = runs[0].options['datasets']['train']
    files = {str(file): file.stat().st_size for file in data_files(data)}  # name -> bytes
    known = place.folder / 'options' / 'training_data.yml'
    if known.exists() and read_option_file(known) != files:
        for run in (run for run in runs if run.folder.exists()):
            raise ValueError(
                f'datasets.train: its files are others than when {run.folder} was trained: give '
                'the comparison another name, or remove that folder.'
            )
    place.write_options('training_data', files)


def tell_of_new_code(runs: Sequence[Run], place: Workspace) -> None:
    """Says which trainings were made with other code of their project; notes that of new ones."""
    file = place.folder / 'options' / 'code.yml'
    known = read_option_file(file) if file.exists() else {}
    for run in runs:
        code = code_of(run.options.get('network_g') or {})
        if run.folder.exists() and known.get(run.name, code) != code:
            hint = f'remove {run.folder} to train it anew'
            place.say(f'{run.name}: the code of its project has changed since it began: {hint}.')
        elif code:
            known[run.name] = code
    if known:
        place.write_options('code', known)


def _problems(run: Run) -> list[str]:
    """What speaks against a training: option problems, or a run of its name of other options."""
    file = run.folder / f'{run.name}.yml'
    if not file.exists():
        return _checked(run.options, run.name, True).problems
    return [
        f'{run.folder}: was trained with {key} {before!r}, now {now!r}: give the comparison '
        'another name, or remove that folder.'
        for key, before, now in differences(_as_started(file), run.options)
        # weights of a project that was moved have the same place in it
        if not (key.startswith('path.') and _same_place(str(before), str(now)))
    ]


def _same_place(before: str, now: str) -> bool:
    place = Path(now).parts[-4:]
    return place[:1] == ('experiments',) and Path(before).parts[-4:] == place


def with_costs(sides: Sequence[Sequence[Run]], scratch: Path, place: Workspace) -> list[list[Run]]:
    """Trainings (of each side its phases) with seconds and multiply-accumulates of an iteration;
    what ``steps.csv`` of the ``place`` lacks is measured below ``scratch``.
    """
    if not sides:
        return []
    file = place.folder / 'steps.csv'
    tables = [read_csv(file)] if file.exists() else []
    known = {key for table in tables for key in table['options']}
    missing = [runs for runs in sides if any(key_of(run.options) not in known for run in runs)]
    if missing:
        options = [run.options for runs in missing for run in runs]
        refuse(line for own in options for line in _checked(own, own['name'], True).problems)
        place.say(f'Measuring the steps of {len(options)} trainings in turn ...')
        tables.append(place.measure('steps', {'root': str(scratch), 'runs': options}))
        write_csv(pd.concat(tables), file)
    means = pd.concat(tables).groupby('options')[['seconds', 'macs']].mean().T
    return [[replace(run, **means[key_of(run.options)]) for run in runs] for runs in sides]


def train(runs: Sequence[Run], place: Workspace) -> None:
    """Trains what is not trained yet, one run after the other, and says how long it takes.

    Raises ChildProcessError: a training failed; the message ends with its last lines. ValueError:
    the images to train on have changed meanwhile.
    """
    waiting = [run for run in runs if not run.weights.exists()]
    tell_of_new_code(runs, place)
    if waiting:
        check_data(runs, place)
    for number, run in enumerate(waiting):
        seconds = [run.iterations * run.seconds for run in waiting[number:]]
        place.say(
            f'{datetime.now():%H:%M:%S} [{runs.index(run) + 1}/{len(runs)}] {run.name}: '
            f'{run.iterations} iterations, about {seconds[0] / 60:.1f} minutes of steps; all '
            f'trainings {sum(seconds) / 60:.1f} minutes'
        )
        file = place.write_options(run.name, run.options)
        arguments = ['-m', 'unfoldldm_basicsr.train', '-opt', file, '--auto_resume']
        place.call([*arguments, '--root', place.root], log=run.name)
        if not run.weights.exists():
            raise ChildProcessError(f'{run.name} was stopped; the same command goes on with it.')
