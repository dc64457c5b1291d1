"""The trainings of a comparison: equal but for an allow-list, within their budget, resumable."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from unfoldldm_basicsr.common.files import write_bytes_atomic
from unfoldldm_basicsr.comparing import steps
from unfoldldm_basicsr.comparing.task import COMMON, Side, Task, merged, weights_of
from unfoldldm_basicsr.options.preflight import preflight
from unfoldldm_basicsr.options.read import read_option_file

# What a side may have of its own: the network, how it is optimised, the parts of its loss that
# other networks lack, and what leaves the result as it is.
ALLOWED = (
    'name', 'model_type', 'network_', 'path', 'train.optim_', 'train.scheduler',
    'train.total_iter', 'train.warmup_iter', 'train.use_grad_clip', 'train.grad_clip_norm',
    'train.isda_opt', 'train.diffusion_opt', 'train.stage_loss_weight', 'train.prior_warmup_iter',
    'train.accum_iter', 'val.val_freq', 'val.prior_source', 'val.trace', 'val.pbar', 'logger',
    'manual_seed', 'num_gpu', 'dist_params', 'scan_backend',
)  # fmt: skip
Say = Callable[[str], None]
_PROVISIONAL = 1000  # iterations of the trainings whose steps are measured
_MEASURED_SEED = 0  # and their seed: a seed that joins later gets the same iterations


class Difference(NamedTuple):
    """An option key with its values on two sides."""

    key: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: its folder below ``experiments``.
        side: of the comparison.
        seed: of this training.
        phase: from 0.
        iterations: what its share of the budget buys.
        seconds: of the device (or process) for one iteration.
        macs: multiply-accumulates of one iteration.
        options: the complete option file.
    """

    name: str
    side: Side
    seed: int
    phase: int
    iterations: int
    seconds: float
    macs: float
    options: Mapping[str, Any]


def flat(value: Any, path: str = '') -> dict[str, Any]:
    """Key paths of all single values, places in lists counted from 0."""
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {path: value}
    return {k: v for key, item in items for k, v in flat(item, f'{path}.{key}'.lstrip('.')).items()}


def differences(
    first: Mapping[str, Any], second: Mapping[str, Any], allowed: Sequence[str] = ()
) -> list[Difference]:
    """Where two option files differ; 'absent' for a missing key.

    Args:
        first: options.
        second: options.
        allowed: beginnings of key paths that may differ.
    """
    one, other = flat(first), flat(second)
    return [
        Difference(key, one.get(key, 'absent'), other.get(key, 'absent'))
        for key in dict.fromkeys([*one, *other])
        if one.get(key, 'absent') != other.get(key, 'absent') and not key.startswith(tuple(allowed))
    ]


def check_equal(task: Task) -> None:
    """
    Raises:
        ValueError: a side differs from the common options outside the allow-list.
    """
    found = []
    for side in task.sides:
        for phase in side.phases:
            own = merged(merged(task.common, side.own), phase)
            found += [
                f'{side.name}: {d.key} is {d.second!r}, in {COMMON} {d.first!r}'
                for d in differences(task.common, own, (*ALLOWED, *task.settings.allow))
            ]
    if found:
        raise ValueError(
            f'{task.folder}: these sides are not comparable:\n  '
            + '\n  '.join(dict.fromkeys(found))
            + f'\nMove what is meant for all into {COMMON}, or allow the key there '
            '(compare.allow; the report then says so).'
        )


def plan(task: Task, root: Path, folder: Path, say: Say) -> list[Run]:
    """All trainings of a comparison in their order; measures steps that are not known yet.

    Args:
        task: the comparison.
        root: where ``experiments`` is.
        folder: of the report, which keeps the measured steps.
        say: gets lines about the progress.

    Raises:
        ValueError: sides that differ, option files with problems, or runs of other options.
    """
    check_equal(task)
    tests = [task.test_options(s, task.settings.seeds[0], root) for s in task.sides if s.phases]
    refuse([line for test in tests for line in option_problems(test['name'], test, False)])
    costs = step_costs(task, folder, say)
    budget, runs = task.settings.budget, []
    trained = [side for side in task.sides if side.trained_as == side.name]
    for seed in task.settings.seeds:
        for side in trained:
            for phase, share in enumerate(side.shares):
                seconds, macs = costs[task.run_name(side, _MEASURED_SEED, phase)]
                unit = {'iterations': 1, 'time': seconds, 'macs': macs / 1e12}[budget.equal]
                iterations = max(1, round(budget.amount * share / unit))
                options = task.options(side, phase, iterations, seed, root)
                runs.append(
                    Run(options['name'], side, seed, phase, iterations, seconds, macs, options)
                )
    refuse([line for run in runs for line in _problems(run, folder, root)])
    return runs


def step_costs(task: Task, folder: Path, say: Say) -> steps.Costs:
    """Seconds and multiply-accumulates of an iteration of every training, whatever its seed."""
    seed = _MEASURED_SEED
    with tempfile.TemporaryDirectory() as scratch:
        groups = []
        for side in task.sides:
            if side.trained_as == side.name and side.phases:
                phases = range(len(side.phases))
                options = [task.options(side, p, _PROVISIONAL, seed, Path(scratch)) for p in phases]
                groups.append({o['name']: o for o in options})
        return measured_costs(groups, folder, Path(scratch), task.settings.threads, say)


def measured_costs(
    groups: Sequence[Mapping[str, Mapping]], folder: Path, scratch: Path, threads: int, say: Say
) -> steps.Costs:
    """Seconds and multiply-accumulates of an iteration of trainings; measures what is not known.

    Args:
        groups: run -> options, for the phases of each side in their order.
        folder: of the report, which keeps what was measured.
        scratch: ``--root`` of the measurement.
        threads: of the measurement.
        say: gets a line when it starts.

    Raises:
        ValueError: the option files have problems.
    """
    file = folder / 'steps.csv'
    known = steps.mean_costs(file) if file.exists() else {}
    keys = {name: (name, _digest(o)) for group in groups for name, o in group.items()}
    missing = [group for group in groups if any(keys[name] not in known for name in group)]
    if missing:
        runs = [(name, options) for group in missing for name, options in group.items()]
        refuse([line for name, options in runs for line in option_problems(name, options)])
        say(f'Measuring the steps of {len(runs)} trainings in turn ...')
        files = {name: write_options(scratch / f'{name}.yml', options) for name, options in runs}
        arguments = ['-m', steps.__name__, '--root', str(scratch), '-o', str(file)]
        arguments += [f'{path}={keys[name][1]}' for name, path in files.items()]
        call(arguments, threads, folder / 'logs' / 'steps.txt')
        known = steps.mean_costs(file)
    return {name: known[key] for name, key in keys.items()}


def train(runs: Sequence[Run], root: Path, folder: Path, threads: int, say: Say) -> None:
    """Trains what is not trained yet, one run after the other.

    Raises:
        ChildProcessError: a training failed; the message ends with its last lines.
    """
    waiting = [run for run in runs if not weights_of(root, run.name).exists()]
    began, slowness = time.perf_counter(), 1.0  # wall time over measured time
    for number, run in enumerate(waiting):
        rest = slowness * sum(r.iterations * r.seconds for r in waiting[number:])
        own = slowness * run.iterations * run.seconds
        say(
            f'{datetime.now():%H:%M:%S} [{runs.index(run) + 1}/{len(runs)}] {run.name}: '
            f'{run.iterations} iterations, about {words_of_time(own)}; '
            f'all trainings {words_of_time(rest)}'
        )
        file = write_options(folder / 'options' / f'{run.name}.yml', run.options)
        arguments = ['-m', 'unfoldldm_basicsr.train', '-opt', str(file), '--auto_resume']
        call([*arguments, '--root', str(root)], threads, folder / 'logs' / f'{run.name}.txt')
        if not weights_of(root, run.name).exists():
            raise ChildProcessError(f'{run.name} was stopped; the same command goes on with it.')
        done = sum(r.iterations * r.seconds for r in waiting[: number + 1])
        slowness = max(1.0, (time.perf_counter() - began) / done)


def words_of_time(seconds: float) -> str:
    """Hours and minutes, or seconds where they are few."""
    minutes = round(seconds / 60)
    return f'{minutes // 60}:{minutes % 60:02} h' if minutes > 2 else f'{seconds:.0f} s'


def call(arguments: Sequence[str], threads: int, log: Path) -> None:
    """Runs Python in a process of its own, with its output in a file.

    Raises:
        ChildProcessError: it failed; the message ends with its last lines.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {f'{key}_NUM_THREADS': str(threads) for key in ('OMP', 'MKL')}
    command = [sys.executable, *arguments]
    with open(log, 'ab') as output:
        done = subprocess.run(  # it inherits the lock on the folder
            command, env=environment, stdout=output, stderr=output, check=False, close_fds=False
        )
    if done.returncode:
        lines = log.read_text(encoding='utf-8', errors='replace').splitlines()[-8:]
        raise ChildProcessError(
            f'{" ".join(arguments[:4])} ... ended with status {done.returncode} ({log}):\n  '
            + '\n  '.join(lines)
        )


@contextmanager
def only_one(folder: Path, say: Say) -> Iterator[None]:
    """Lets one comparison at a time work in a folder; also waits for the rest of a killed one."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / '.lock', 'w', encoding='utf-8') as lock:
        os.set_inheritable(lock.fileno(), True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f'{folder}: waiting for another comparison, or the training it left ...')
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_options(path: Path, options: Mapping[str, Any]) -> Path:
    """Writes an option file, whole or not at all."""
    text = yaml.safe_dump(json.loads(json.dumps(options)), sort_keys=False, allow_unicode=True)
    write_bytes_atomic(path, text.encode())
    return path


def option_problems(name: str, options: Mapping[str, Any], is_train: bool = True) -> list[str]:
    """What the check of option files says, but for weights that are not trained yet."""
    paths = [v for v in (options.get('path') or {}).values() if isinstance(v, str)]
    awaited = [path for path in paths if not (is_train and Path(path).exists())]
    lines = preflight(json.loads(json.dumps(options)), name, is_train)
    return [line for line in lines if not any(path in line for path in awaited)]


def refuse(problems: Sequence[str]) -> None:
    """
    Raises:
        ValueError: there are problems; all of them.
    """
    if problems:
        raise ValueError('\n'.join(dict.fromkeys(problems)))


def _digest(options: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in options.items() if key != 'path'}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def _problems(run: Run, folder: Path, root: Path) -> list[str]:
    """What speaks against a training: option problems, or a run of its name of other options."""
    file = folder / 'options' / f'{run.name}.yml'
    if file.exists() and (root / 'experiments' / run.name).exists():
        return [
            f'{root / "experiments" / run.name}: was trained with {d.key} {d.first!r}, now '
            f'{d.second!r}: give the comparison another name, or remove that folder.'
            for d in differences(read_option_file(file), json.loads(json.dumps(run.options)))
        ]
    return option_problems(run.name, run.options)
