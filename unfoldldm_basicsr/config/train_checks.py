"""Checks of the ``train`` section."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch

from unfoldldm_basicsr.config.components import check_arguments, check_loss
from unfoldldm_basicsr.config.problems import Problems
from unfoldldm_basicsr.config.schema import model_keys
from unfoldldm_basicsr.config.suggest import did_you_mean
from unfoldldm_basicsr.config.values import show


def check_train(problems: Problems, options: Mapping, model: type | None) -> None:
    """Checks training settings: keys, losses, optimiser, and schedule against ``total_iter``.

    Args:
        problems: gets what is found.
        options: the completed option dict.
        model: class of ``model_type``; None if there is no such model.
    """
    train = options.get('train')
    if train is None:
        problems.add('train', 'is missing: total_iter, optim_g, scheduler and the losses.')
        return
    keys, words = model_keys(model, 'train')
    required = ('total_iter', 'optim_g', 'scheduler')
    if not problems.check_keys('train', train, keys, words, required):
        return
    for name, section in train.items():
        is_loss = str(name).endswith('_opt') and isinstance(section, Mapping)
        if is_loss and not problems.covers(f'train.{name}'):
            check_loss(problems, f'train.{name}', section)
    if model is None:
        return
    if model.__module__.startswith('basicsr.'):
        if not any(str(name).endswith('_opt') and train[name] for name in train):
            problems.add(
                'train.pixel_opt', 'is missing: no loss is named, nothing would be learned.'
            )
        _check_stock_optimizers(problems, train)
        _check_stock_schedule(problems, train)


def _check_stock_optimizers(problems: Problems, train: Mapping) -> None:
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


def _check_stock_schedule(problems: Problems, train: Mapping) -> None:
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
