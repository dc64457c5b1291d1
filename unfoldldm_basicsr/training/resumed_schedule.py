"""Learning-rate settings of a resumed run: those of its state, or on request the new ones."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from basicsr.utils import get_root_logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from unfoldldm_basicsr.common.errors import ResumeError
from unfoldldm_basicsr.training.checkpoint_writer import plain
from unfoldldm_basicsr.training.lr_schedulers import (
    advance,
    build_scheduler,
    check_scheduler,
    resolved_options,
)
from unfoldldm_basicsr.training.run_options import differences, flatten

APPLY_KEY = 'apply_new_schedule'


def schedule_options(train_opt: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the optimiser, the schedule and its warm-up as plain values."""
    total = train_opt.get('total_iter')
    return {
        'optim_g': plain(train_opt['optim_g']),
        'scheduler': plain(resolved_options(train_opt['scheduler'], total)),
        'warmup_iter': max(train_opt.get('warmup_iter') or 0, 0),
    }


def resume_schedule(
    optimizers: list[Optimizer],
    schedulers: list[LRScheduler],
    state: Mapping[str, Any],
    train_opt: Mapping[str, Any],
) -> tuple[list[LRScheduler], dict[str, Any]]:
    """Puts optimisers and schedules into the condition of a training state.

    Their settings come from the state, as in BasicSR; where the option file says otherwise, that
    is logged, and with ``train.apply_new_schedule: true`` its settings apply from here on, as if
    the run had had the new schedule from its start.

    Args:
        optimizers: new optimisers of the option file.
        schedulers: their schedules.
        state: what was saved; ``train_options`` holds :func:`schedule_options` of that time.
        train_opt: section ``train`` of the option file.

    Returns:
        The schedules to use and the settings they were made with.

    Raises:
        ResumeError: the state is of another optimiser, or its schedule ends before the training.
    """
    current = schedule_options(train_opt)
    stored = {k: v for k, v in state.get('train_options', {}).items() if k in current}
    changed = differences(
        flatten(stored, 'train'), flatten({k: current[k] for k in stored}, 'train')
    )
    apply = bool(changed and train_opt.get(APPLY_KEY))
    _report(changed, apply)
    if apply:
        fresh = [_settings(optimizer) for optimizer in optimizers]
        _load_optimizers(optimizers, state)
        for optimizer, groups in zip(optimizers, fresh, strict=True):
            for group, settings in zip(optimizer.param_groups, groups, strict=True):
                group.update(settings)
        for scheduler in schedulers:
            _fast_forward(scheduler, state['iter'], current['warmup_iter'])
        return schedulers, current
    if stored.get('scheduler') not in (None, current['scheduler']):
        schedulers = _stored_schedules(optimizers, stored['scheduler'], train_opt['total_iter'])
    _load_optimizers(optimizers, state)
    for scheduler, values in zip(schedulers, state['schedulers'], strict=True):
        scheduler.load_state_dict(values)
    return schedulers, current | stored


def _report(changed: list[tuple[str, Any, Any]], apply: bool) -> None:
    for key, then, now in changed:
        if key == 'train.optim_g.type':
            raise ResumeError(
                f'{key} is {now} in the option file, but the resumed state was made with {then}, '
                'whose moments it cannot use. Put the old optimiser back, or start a new run from '
                'the weights (path.pretrain_network_g).'
            )
        end = (
            'the new value applies from here on.'
            if apply
            else f'and keeps it. Set train.{APPLY_KEY}: true to apply the new value.'
        )
        get_root_logger().warning(
            f'{key} is {now} in the option file, but the resumed state was made with {then}'
            f'{"; " if apply else " "}{end}'
        )


def _settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [{k: v for k, v in g.items() if k != 'params'} for g in optimizer.param_groups]


def _load_optimizers(optimizers: list[Optimizer], state: Mapping[str, Any]) -> None:
    for optimizer, values in zip(optimizers, state['optimizers'], strict=True):
        try:
            optimizer.load_state_dict(values)
        except ValueError as error:
            raise ResumeError(
                f'path.resume_state does not fit this option file: {error}. The state was made '
                'with another network_g or optim_g.'
            ) from error


def _fast_forward(scheduler: LRScheduler, iterations: int, warmup_iter: int) -> None:
    with warnings.catch_warnings():
        # The optimiser has made these steps, before it was interrupted.
        warnings.filterwarnings('ignore', message='.*lr_scheduler.step', category=UserWarning)
        for iteration in range(1, iterations + 1):
            advance(scheduler, iteration, warmup_iter)


def _stored_schedules(
    optimizers: list[Optimizer], options: Mapping[str, Any], total_iter: int
) -> list[LRScheduler]:
    problems = check_scheduler(options, total_iter, lr=None)
    if problems:
        key, message = problems[0]
        raise ResumeError(
            f'train.total_iter is {total_iter} now, but the schedule of the resumed state does not '
            f'go so far ({key}: {message.rstrip(".")}). Set train.{APPLY_KEY}: true to use the '
            'schedule of the option file.'
        )
    return [build_scheduler(optimizer, options, total_iter) for optimizer in optimizers]
