"""Loader processes outlive signals that are meant for the trainer, and end when it ends them.

SIGTERM or SIGINT to a process group, or of a job system to every process, asks the trainer to save
and stop. It needs its loader processes until then: torch raises an error in the middle of a step
when one of them dies. Needs ``sigwaitinfo`` (Linux); elsewhere they behave as torch made them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker

from torch.utils.data import DataLoader

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SUPPORTED = hasattr(signal, 'sigwaitinfo')
_GRACE = 1.0  # seconds between SIGTERM and SIGKILL


class WorkerStart:
    """The ``worker_init_fn`` of a loader whose processes are started under :func:`signals_held`.

    Args:
        init: what else to call with the number of the process.
    """

    def __init__(self, init: Callable[[int], object] | None):
        self.init = init

    def __call__(self, worker_id: int) -> None:
        if _SUPPORTED and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # for the thread to take
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        if self.init is not None:
            self.init(worker_id)


def _end_with(trainer: int) -> None:
    """Ends this process at the first SIGTERM that its trainer sends, or that finds it orphaned."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != trainer and os.getppid() == trainer:
        pass
    os._exit(0)


@contextmanager
def signals_held(loader: DataLoader) -> Iterator[None]:
    """Processes started in the block are born with both signals blocked; here they come after it.

    So none reaches a process before :class:`WorkerStart`: one that is spawned imports for seconds.
    """
    if not _SUPPORTED or not loader.num_workers:
        yield
        return
    context = loader.multiprocessing_context or multiprocessing.get_context()
    if context.get_start_method() != 'fork':
        resource_tracker.ensure_running()  # its start unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def tame(batches: object) -> None:
    """Sees to it that the processes of an iterator of torch end when they are terminated.

    torch and ``multiprocessing`` send SIGTERM as their last resort and then wait without an end.
    The thread that takes it cannot run where a library never gives the interpreter back.
    """
    for process in getattr(batches, '_workers', ()):
        process._popen.terminate = partial(_terminate, process._popen)


def _terminate(process) -> None:
    type(process).terminate(process)
    if process.wait(_GRACE) is None:
        process.kill()
        process.wait(_GRACE)
