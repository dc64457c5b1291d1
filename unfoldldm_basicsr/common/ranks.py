"""What one process of a run meets, all are told, so that none waits for it without an end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from unfoldldm_basicsr.common.errors import RunFailure, first_line

T = TypeVar('T')


def together(opt: Mapping[str, Any], action: Callable[[], T]) -> list[T]:
    """Runs ``action`` on every rank; all must call it.

    Returns:
        The results, which are pickled, in the order of the ranks.

    Raises:
        RunFailure: on all ranks when it failed on one, with the message of the first of them.
            An error that is no :class:`RunFailure` is raised as it is where it happened. A process
            alone raises what ``action`` raises.
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

    def act() -> None:
        if opt['rank'] == 0:
            action()

    together(opt, act)
