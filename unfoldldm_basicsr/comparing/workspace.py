"""Where a comparison works: its folders, and the processes that train and measure for it."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from unfoldldm_basicsr.common.files import write_bytes_atomic
from unfoldldm_basicsr.comparing.tables import read_csv
from unfoldldm_basicsr.options.run import plain


@dataclass(frozen=True)
class Workspace:
    """One comparison: ``experiments`` is below ``root``, ``folder`` keeps report, option files,
    logs and measurements, ``threads`` of the CPU count for all.
    """

    root: Path
    folder: Path
    threads: int
    say = staticmethod(partial(print, flush=True))  # a log file shows at once what is going on

    def write_options(self, name: str, options: Mapping[str, Any]) -> Path:
        copies = plain(options)  # else YAML names what is there twice by anchors
        text = yaml.safe_dump(copies, sort_keys=False, allow_unicode=True)
        file = self.folder / 'options' / f'{name}.yml'
        write_bytes_atomic(file, text.encode())
        return file

    def measure(self, kind: str, job: Mapping[str, Any]) -> pd.DataFrame:
        """The table of a function of :mod:`.measuring`, run in a process of its own."""
        file = self.write_options(kind, job)
        table = file.with_suffix('.csv')
        self.call(['-m', 'unfoldldm_basicsr.comparing.measuring', kind, file, table], log=kind)
        return read_csv(table)

    def call(self, arguments: Sequence[str | Path], log: str) -> None:
        """Runs Python in a process of its own, with its output in ``logs/LOG.txt``;
        ChildProcessError with its last lines.
        """
        file = self.folder / 'logs' / f'{log}.txt'
        file.parent.mkdir(parents=True, exist_ok=True)
        threads = {f'{key}_NUM_THREADS': str(self.threads) for key in ('OMP', 'MKL')}
        with open(file, 'ab') as output:
            child = subprocess.Popen(
                [sys.executable, *map(str, arguments)], env=os.environ | threads, stdout=output,
                stderr=output, close_fds=False,  # it inherits the lock of `alone`
            )  # fmt: skip
            try:
                status = child.wait()
            except BaseException:  # Ctrl-C or SIGTERM, of which a training saves itself first
                self.say(f'{log}: told to stop; the same command goes on.')
                child.terminate()
                child.wait()
                raise
        if status:
            lines = file.read_text(encoding='utf-8', errors='replace').splitlines()[-8:]
            raise ChildProcessError(
                f'{arguments[1]} ended with status {status} ({file}):\n  ' + '\n  '.join(lines)
            )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lets one comparison at a time work here; also waits for the rest of a killed one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / '.lock', 'w', encoding='utf-8') as lock:
            os.set_inheritable(lock.fileno(), True)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.say(f'{self.folder}: waiting for another comparison, or its training ...')
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
