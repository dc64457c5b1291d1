"""The trainings of a comparison: equal but for an allow-list, within their budget, resumable."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
    costs = step_costs(task, folder, say)
    budget, runs = task.settings.budget, []
    trained = [side for side in task.sides if side.trained_as == side.name]
    for seed in task.settings.seeds:
        for side in trained:
            for phase, share in enumerate(side.shares):
                seconds, macs = costs[task.run_name(side, task.settings.seeds[0], phase)]
                unit = {'iterations': 1, 'time': seconds, 'macs': macs / 1e12}[budget.equal]
                iterations = max(1, round(budget.amount * share / unit))
                options = task.options(side, phase, iterations, seed, root)
                runs.append(
                    Run(options['name'], side, seed, phase, iterations, seconds, macs, options)
                )
    problems = [line for run in runs for line in _problems(run, folder, root)]
    if problems:
        raise ValueError('\n'.join(problems))
    return runs


def step_costs(task: Task, folder: Path, say: Say) -> dict[str, tuple[float, float]]:
    """Seconds and multiply-accumulates of an iteration of every training (of the first seed)."""
    file, seed = folder / 'steps.csv', task.settings.seeds[0]
    with tempfile.TemporaryDirectory() as scratch:
        root, files = Path(scratch), {}
        known = steps.mean_costs(file) if file.exists() else {}
        costs = {}
        for side in task.sides:
            if side.trained_as != side.name:
                continue
            group = {}
            for phase in range(len(side.phases)):
                options = task.options(side, phase, _PROVISIONAL, seed, root)
                name, digest = options['name'], _digest(options, root)
                group[name] = (write_options(root / f'{name}.yml', options), digest)
            if all((name, digest) in known for name, (_, digest) in group.items()):
                costs |= {name: known[name, digest] for name, (_, digest) in group.items()}
            else:
                files |= group
        if files:
            say(f'Measuring the steps of {len(files)} trainings in turn ...')
            arguments = ['-m', steps.__name__, '--root', scratch, '-o', str(file)]
            arguments += [f'{path}={digest}' for path, digest in files.values()]
            call(arguments, task.settings.threads, folder / 'logs' / 'steps.txt')
            measured = steps.mean_costs(file)
            costs |= {name: measured[name, digest] for name, (_, digest) in files.items()}
    return costs


def train(runs: Sequence[Run], root: Path, folder: Path, threads: int, say: Say) -> None:
    """Trains what is not trained yet, one run after the other.

    Raises:
        ChildProcessError: a training failed; the message ends with its last lines.
    """
    for number, run in enumerate(runs, 1):
        file = folder / 'options' / f'{run.name}.yml'
        if weights_of(root, run.name).exists():
            continue
        say(f'[{number}/{len(runs)}] {run.name}: {run.iterations} iterations')
        write_options(file, run.options)
        arguments = ['-m', 'unfoldldm_basicsr.train', '-opt', str(file), '--auto_resume']
        call([*arguments, '--root', str(root)], threads, folder / 'logs' / f'{run.name}.txt')
        if not weights_of(root, run.name).exists():
            raise ChildProcessError(f'{run.name} was stopped; the same command goes on with it.')


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


def _digest(options: Mapping[str, Any], root: Path) -> str:
    text = json.dumps(options, sort_keys=True).replace(str(root), '')
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _problems(run: Run, folder: Path, root: Path) -> list[str]:
    """What speaks against a training: option problems, or a run of its name of other options."""
    file = folder / 'options' / f'{run.name}.yml'
    if file.exists() and (root / 'experiments' / run.name).exists():
        return [
            f'{root / "experiments" / run.name}: was trained with {d.key} {d.first!r}, now '
            f'{d.second!r}: give the comparison another name, or remove that folder.'
            for d in differences(read_option_file(file), json.loads(json.dumps(run.options)))
        ]
    phases = f'phase{run.phase + 1}', f'phase{run.phase}'
    awaited = str(weights_of(root, run.name.replace(*phases)))  # written when it is its turn
    lines = preflight(json.loads(json.dumps(run.options)), run.name, True)
    return [line for line in lines if not (run.phase and awaited in line)]
