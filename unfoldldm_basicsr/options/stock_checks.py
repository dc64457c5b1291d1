"""Checks of a training with BasicSR's own models, which keep some of BasicSR's traps."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import nn

from unfoldldm_basicsr.common.suggest import did_you_mean
from unfoldldm_basicsr.options.components import check_arguments
from unfoldldm_basicsr.options.problems import Problems
from unfoldldm_basicsr.options.values import show

_INSTEAD = 'or use model_type: RestorationModel.'


def check_stock_training(
    problems: Problems, train: Mapping, network: nn.Module | None, processes: int = 1
) -> None:
    """Checks the ``train`` section under a model of BasicSR.

    Args:
        problems: gets what is found.
        train: the section.
        network: ``network_g`` on the meta device; None if it cannot be built.
        processes: number of processes of the run.
    """
    if not any(str(name).endswith('_opt') and train[name] for name in train):
        problems.add('train.pixel_opt', 'is missing: no loss is named, nothing would be learned.')
    _check_optimizers(problems, train)
    _check_schedule(problems, train)
    _check_warmup(problems, train)
    if network is not None:
        _check_buffers(problems, train, network, processes)
    if processes > 1 and not torch.cuda.is_available():
        problems.add(
            'model_type',
            "BasicSR's own models cannot train in several processes without GPUs: start one, "
            f'{_INSTEAD}',
        )


def _check_warmup(problems: Problems, train: Mapping) -> None:
    """The warm-up overwrites the rate that the multi-step schedules multiply."""
    warmup, schedule = train.get('warmup_iter'), train.get('scheduler')
    chained = isinstance(schedule, Mapping) and str(schedule.get('type')).startswith('MultiStep')
    if chained and isinstance(warmup, int) and warmup > 0:
        problems.add(
            'train.warmup_iter',
            f"with {schedule['type']}, BasicSR's own models would never leave "
            f'{(warmup - 1) / warmup:.3g} of the learning rate: remove it, {_INSTEAD}',
        )


def _check_buffers(problems: Problems, train: Mapping, network: nn.Module, processes: int) -> None:
    averaged = bool(train.get('ema_decay'))
    if averaged and any(hasattr(m, 'running_mean') for m in network.modules()):
        problems.add(
            'train.ema_decay',
            f"{type(network).__name__} has running statistics, which BasicSR's own models leave "
            f'at zero in the average: remove it, {_INSTEAD}',
        )
    if not averaged and processes > 1 and any(True for _ in network.buffers()):
        problems.add(
            'train.ema_decay',
            f"is not set: {type(network).__name__} has buffers, and BasicSR's own models would "
            f'lose step with each other in the validation of several processes: set it, {_INSTEAD}',
        )


def _check_optimizers(problems: Problems, train: Mapping) -> None:
    """BasicSR's models know one optimiser; the models of this package check their own."""
    for name, section in train.items():
        path = f'train.{name}'
        if not str(name).startswith('optim_') or problems.covers(path):
            continue
        if not isinstance(section, Mapping) or section.get('type') != 'Adam':
            kind = section.get('type') if isinstance(section, Mapping) else section
            problems.add(
                f'{path}.type',
                f"BasicSR's own models know 'Adam' only, got {show(kind)}. "
                'model_type: RestorationModel takes every optimiser of torch.',
            )
            continue
        check_arguments(problems, path, section, torch.optim.Adam, given=('params',))
        rate = section.get('lr', 1e-3)
        if isinstance(rate, (int, float)) and not rate >= 0:
            problems.add(f'{path}.lr', f'must not be negative, got {show(rate)}.')


def _check_schedule(problems: Problems, train: Mapping) -> None:
    from basicsr.models import lr_scheduler

    schedule, path = train.get('scheduler'), 'train.scheduler'
    if not isinstance(schedule, Mapping) or problems.covers(path):
        return
    classes = {
        'MultiStepLR': lr_scheduler.MultiStepRestartLR,
        'MultiStepRestartLR': lr_scheduler.MultiStepRestartLR,
        'CosineAnnealingRestartLR': lr_scheduler.CosineAnnealingRestartLR,
    }
    kind = schedule.get('type')
    if not isinstance(kind, str) or kind not in classes:
        problems.add(f'{path}.type', f'no schedule {show(kind)}.{did_you_mean(kind, classes)}')
        return
    given = ('optimizer', 'last_epoch')
    if not check_arguments(problems, path, schedule, classes[kind], given=given):
        return
    parameters = inspect.signature(classes[kind]).parameters
    steps = {n: schedule.get(n, p.default) for n, p in parameters.items() if n not in given}
    pairs = (
        ('restarts', 'restart_weights') if 'restarts' in steps else ('periods', 'restart_weights')
    )
    for name in ('milestones', *pairs):
        values = steps.get(name, ())
        numbers = isinstance(values, (list, tuple)) and all(
            isinstance(v, (int, float)) and not isinstance(v, bool) for v in values
        )
        if not numbers:
            problems.add(f'{path}.{name}', f'must be a list of numbers, got {show(values)}.')
            return
    if len(steps[pairs[0]]) != len(steps[pairs[1]]):
        problems.add(
            f'{path}.restart_weights',
            f'{len(steps[pairs[1]])} values for {len(steps[pairs[0]])} {pairs[0]}.',
        )
    total = train.get('total_iter')
    if 'periods' in steps and isinstance(total, int) and sum(steps['periods']) < total:
        problems.add(
            f'{path}.periods',
            f'sum to {sum(steps["periods"])}, less than total_iter ({total}): '
            'the training would crash when they are over. Lengthen the last one.',
        )
