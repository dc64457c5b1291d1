"""Checks of the ``train`` section."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from unfoldldm_basicsr.common.suggest import written_as
from unfoldldm_basicsr.options.components import check_loss
from unfoldldm_basicsr.options.problems import Problems
from unfoldldm_basicsr.options.schema import model_keys
from unfoldldm_basicsr.options.stock_checks import check_stock_training
from unfoldldm_basicsr.options.values import show


def check_train(
    problems: Problems,
    options: Mapping,
    model: type | None,
    networks: Mapping[str, nn.Module | None],
    processes: int = 1,
) -> None:
    """Checks training settings: keys, losses, optimiser, and schedule against ``total_iter``.

    Args:
        problems: gets what is found.
        options: the completed option dict.
        model: class of ``model_type``; None if there is no such model.
        networks: the ``network_*`` on the meta device; None for what cannot be built.
        processes: number of processes of the run.
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
        if is_loss or problems.covers(f'train.{name}') or not isinstance(section, Mapping):
            continue
        if (str(name).startswith('optim_') or name == 'scheduler') and 'type' not in section:
            problems.add(f'train.{name}.type', f'is missing.{written_as("type", section)}')
    if model is None:
        return
    built = None not in networks.values() and 'network_g' in networks
    if built and hasattr(model, 'trained_groups'):
        _check_clipping(problems, train, model, networks)
    if model.__module__.startswith('basicsr.'):
        check_stock_training(problems, train, networks.get('network_g'), processes)


def _check_clipping(
    problems: Problems, train: Mapping, model: type, networks: Mapping[str, nn.Module]
) -> None:
    """Limits of the gradient norm by name need the names of the model's parameter groups."""
    from unfoldldm_basicsr.training.optimisation import GradientClipper

    limits = train.get('grad_clip_norm')
    if not isinstance(limits, Mapping) or problems.within('train.grad_clip_norm'):
        return
    try:
        GradientClipper(model.trained_groups(networks), limits)
    except ValueError as error:
        message = str(error).removeprefix('train.grad_clip_norm: ')
        problems.add('train.grad_clip_norm', message)
    except TypeError:
        problems.add('train.grad_clip_norm', f'must be numbers, got {show(limits)}.')
