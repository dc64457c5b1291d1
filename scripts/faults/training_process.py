"""Starting, watching and killing real trainings, one process per rank."""

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_LIMIT = 300.0  # seconds for anything a tiny training does on a busy machine


class Training:
    """One start of ``train -opt FILE --auto_resume`` in ``folder``, where ``experiments`` goes.

    Args:
        ranks: number of processes.
        fork: start from a process that has imported everything, instead of new interpreters;
            the same program, seconds sooner.
        groups: every rank leads a process group of its own, as below torchrun.
        arguments: further command line.
    """

    def __init__(
        self,
        folder: Path,
        option_file: Path,
        *,
        ranks: int = 1,
        fork: bool = False,
        groups: bool = False,
        arguments: tuple[str, ...] = ('--auto_resume',),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.begun = time.monotonic()
        command = ['-opt', str(option_file), *arguments]
        if ranks > 1:
            command += ['--launcher', 'pytorch']
        number = len(list(folder.glob('output_*_0.txt')))
        self.outputs = [folder / f'output_{number}_{rank}.txt' for rank in range(ranks)]
        port, self.groups = free_port(), groups
        start = _fork if fork else _spawn
        self.processes = [
            start(folder, command, output, _variables(rank, ranks, port), groups)
            for rank, output in enumerate(self.outputs)
        ]

    @property
    def output(self) -> str:
        """What all ranks have printed so far."""
        found = [path.read_text(errors='replace') for path in self.outputs if path.exists()]
        return '\n'.join(found)

    @property
    def codes(self) -> list[int | None]:
        """Exit statuses; None: still running, negative: ended by that signal."""
        return [process.poll() for process in self.processes]

    @property
    def iteration(self) -> int:
        """The last iteration in the log."""
        found = re.findall(r'iter: +([\d,]+), lr', self.output)
        return int(found[-1].replace(',', '')) if found else 0

    @property
    def resumed_at(self) -> int | None:
        """The iteration that this start went on from."""
        found = re.search(r'Resuming training from epoch: \d+, iter: (\d+)', self.output)
        return int(found[1]) if found else None

    @property
    def training(self) -> bool:
        """Whether the loop has begun."""
        return 'Start training from epoch' in self.output

    def wait(self, condition: Callable[[], bool] | None = None, limit: float = _LIMIT) -> bool:
        """Waits for a condition, or for the end of all ranks; False when they end before."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            if condition is not None and condition():
                return True
            if None not in self.codes:
                return condition is None
            time.sleep(0.005)
        self.kill()
        raise TimeoutError(f'nothing within {limit:g} s; the end of the output:\n{self.tail()}')

    def kill(self, rank: int | None = None, signum: int = signal.SIGKILL) -> None:
        """Sends a signal to one rank, or to all; with ``groups`` to its loader processes too."""
        for index, process in enumerate(self.processes):
            if rank in (None, index) and process.poll() is None:
                (os.killpg if self.groups else os.kill)(process.pid, signum)

    def tail(self, characters: int = 3000) -> str:
        return self.output[-characters:]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def _variables(rank: int, ranks: int, port: int) -> dict[str, str]:
    variables = {'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    if ranks > 1:
        variables |= {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(ranks)}
        variables |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    return variables


def _spawn(folder: Path, command: list[str], output: Path, variables: dict, group: bool):
    with open(output, 'w', encoding='utf-8') as file:
        return subprocess.Popen(
            [sys.executable, '-m', 'unfoldldm_basicsr.train', *command],
            cwd=folder,
            env=dict(os.environ, **variables),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=group,
        )


class _Forked:
    """A process of ``multiprocessing`` with the interface of ``subprocess.Popen``."""

    def __init__(self, process: multiprocessing.Process):
        self.process, self.pid = process, process.pid

    def poll(self) -> int | None:
        return self.process.exitcode


def _fork(folder: Path, command: list[str], output: Path, variables: dict, group: bool) -> _Forked:
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['unfoldldm_basicsr.train', 'basicsr.train'])
    arguments = folder, command, output, variables, group
    process = context.Process(target=run_training, args=arguments)
    process.start()
    return _Forked(process)


def run_training(
    folder: Path, command: list[str], output: Path, variables: dict, group: bool
) -> None:
    """Body of a forked training; ends the process."""
    if group:
        os.setsid()
    with open(output, 'w', encoding='utf-8') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(variables)
    os.chdir(folder)
    multiprocessing.set_start_method('fork', force=True)
    import torch

    from unfoldldm_basicsr import train

    torch.set_num_threads(1)
    sys.argv = ['train', *command]
    train.main(command)
