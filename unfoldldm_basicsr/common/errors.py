"""Errors that end a run with one message on all ranks, and what is behind others."""

import errno
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.error import URLError

import torch

T = TypeVar('T')

_PEER = re.compile(
    r'gloo|nccl|connection (closed|reset|refused)|broken pipe|timed out waiting', re.IGNORECASE
)

_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)

DEAD_WORKER = 'DataLoader worker'  # so torch's messages begin
LOADER_ADVICE = (
    'A loader process that ended: it may have said why above; where it was killed, often memory '
    'ran out: lower datasets.train.num_worker_per_gpu. Then start the same command with '
    '--auto_resume.'
)


class RunFailure(Exception):  # noqa: N818  (its subclasses say what kind of error they are)
    """An error whose message holds all that a user needs; it ends a run without a traceback."""

    on_all_ranks = True  # every process of a distributed run raises it: one speaks for all


class OutputWriteError(RunFailure, OSError):
    """A checkpoint or a result (table, picture, ...) could not be written."""


class ResumeError(RunFailure, ValueError):
    """A training state cannot be continued."""


class DataFault(RunFailure, ValueError):  # noqa: N818
    """Images that cannot be read; the message names the files."""

    on_all_ranks = False

    def __init__(self, message: str):
        # A loader process hands its error over as the text of a traceback.
        super().__init__(message.rpartition(f'{type(self).__qualname__}: ')[2].strip())


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Makes what goes wrong with the disk inside an OutputWriteError that names the file."""
    try:
        yield
    except OSError as error:
        raise OutputWriteError(
            f'cannot write {path}: {error.strerror or first_line(error)}. Free space on that disk '
            'or make the folder writable, and start the same command again (a training with '
            '--auto_resume, which goes on from its last checkpoint).'
        ) from error


def run_to_end(pipeline: Callable[[str], object], root: str) -> None:
    """Runs a pipeline of BasicSR; a failure with a message for the user is logged, for status 1."""
    try:
        pipeline(root)
    except (RunFailure, RuntimeError, OSError) as error:
        failure = error if isinstance(error, RunFailure) else explain(error)
        if failure is None:
            raise
        if not getattr(failure, 'on_all_ranks', False) or not _rank():
            logging.getLogger('basicsr').error('The run has ended: %s', failure)
        raise SystemExit(1) from error


def explain(error: Exception) -> str | None:
    """A message for the loss of another process, a full disk or no network, None for others."""
    if isinstance(error, URLError):
        return (
            f'weights cannot be fetched from here ({first_line(error)}). For PerceptualLoss, copy '
            'vgg19-dcbb9e9d.pth (of download.pytorch.org/models) to experiments/pretrained_models '
            'below the current folder.'
        )
    if isinstance(error, OSError):
        if error.errno not in _DISK_IS_FULL:
            return None
        where = f' ({error.filename})' if error.filename else ''
        return (
            f'cannot write{where}: {error.strerror}. Free space and start the same command with '
            '--auto_resume.'
        )
    if str(error).startswith(DEAD_WORKER):  # torch says so at once, even in the middle of a step
        return f'{first_line(error)}. {LOADER_ADVICE}'
    rank = _rank()
    if rank is None:
        return None
    if not isinstance(error, torch.distributed.DistError) and not _PEER.search(str(error)):
        return None
    return (
        f'rank {rank}: another process of this run is gone '
        f'({first_line(error)}). Its own message is above, or in the output of its machine. '
        'The last checkpoint is untouched: start the same command with --auto_resume '
        '(torchrun --max-restarts=N does that by itself).'
    )


def _rank() -> int | None:
    """Rank of this process in a distributed run, None where it is alone."""
    distributed = torch.distributed
    alone = not distributed.is_available() or not distributed.is_initialized()
    return None if alone else distributed.get_rank()


def first_line(error: Exception | str) -> str:
    """The message of an error in one line."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip('.') if lines else type(error).__name__


# ---- several ranks: none waits without an end for one that met an error ------------------------


def together(opt: Mapping[str, Any], action: Callable[[], T]) -> list[T]:
    """Runs ``action`` on every rank, which all must call; their results, pickled, in that order.

    Raises RunFailure on all ranks when it failed on one, with the message of the first of them. An
    error that is no :class:`RunFailure` is raised as it is where it happened. A process alone
    raises what ``action`` raises.
    """
    if not opt['dist']:
        return [action()]
    result, fault, message = None, None, ''
    try:
        result = action()
    except Exception as error:  # noqa: BLE001  (raised below, after the others know)
        fault, message = error, str(error)
        if not isinstance(error, RunFailure):
            message = f'rank {opt["rank"]}: {type(error).__name__}: {first_line(error)}.'
    answers: list[Any] = [None] * opt['world_size']
    torch.distributed.all_gather_object(answers, (result, message))
    if fault is not None and not isinstance(fault, RunFailure):
        raise fault
    messages = [text for _, text in answers if text]
    if messages:
        raise RunFailure(messages[0]) from fault
    return [value for value, _ in answers]


def on_rank_0(opt: Mapping[str, Any], action: Callable[[], object]) -> None:
    """Runs ``action`` on rank 0 only; its failure is raised on all ranks, see :func:`together`."""
    together(opt, action if opt['rank'] == 0 else lambda: None)
