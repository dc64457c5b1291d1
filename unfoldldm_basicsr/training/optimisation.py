"""Parameter groups, optimiser, gradient clipping and batch slicing."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from unfoldldm_basicsr.common.suggest import did_you_mean
from unfoldldm_basicsr.options.blame import blamed

Groups = dict[str, list[tuple[str, Parameter]]]
_REFUSALS = (ValueError, TypeError, RuntimeError, AssertionError, LookupError, ArithmeticError)


def parameter_groups(net: nn.Module) -> Groups:
    """Named groups of parameters that are trained, scheduled and clipped together.

    A network may define ``parameter_groups()``; otherwise all parameters that require a gradient
    form one group, ``restoration``.

    Raises:
        ValueError: the network's own groups miss or repeat a trainable parameter.
    """
    trainable = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    if not hasattr(net, 'parameter_groups'):
        return {'restoration': trainable}
    groups = net.parameter_groups()
    seen: dict[int, str] = {}
    for group, members in groups.items():
        for name, p in members:
            if id(p) in seen:
                raise ValueError(
                    f'{type(net).__name__}.parameter_groups() lists {name} in {seen[id(p)]} and '
                    f'in {group}; each parameter belongs to one group.'
                )
            seen[id(p)] = group
    missed = [name for name, p in trainable if id(p) not in seen]
    if missed:
        raise ValueError(
            f'{type(net).__name__}.parameter_groups() misses {", ".join(missed[:5])}'
            f'{" ..." if len(missed) > 5 else ""}: add them or set requires_grad to False.'
        )
    return groups


def optimizer_names() -> list[str]:
    """Names of the optimisers of ``torch.optim`` that step without a closure."""
    return [
        name
        for name, item in vars(torch.optim).items()
        if inspect.isclass(item)
        and issubclass(item, Optimizer)
        and item is not Optimizer
        and name != 'LBFGS'
    ]


def check_optimizer(optim_opt: Mapping, *, on_cpu: bool = False) -> list[tuple[str, str]]:
    """Problems of a ``train.optim_g`` section as (key, message); empty when all is well.

    The optimiser makes a step on a few small parameters, as some refuse no sooner than that.

    Args:
        optim_opt: the section.
        on_cpu: whether the training runs on the CPU, where ``capturable`` is not possible.
    """
    name = optim_opt.get('type')
    if name not in optimizer_names():
        return [('type', f"'{name}' is not an optimiser.{did_you_mean(name, optimizer_names())}")]
    known = [
        key
        for key in inspect.signature(getattr(torch.optim, name)).parameters
        if key not in ('self', 'params')
    ]
    problems = [
        (key, f'torch.optim.{name} has no argument {key}.{did_you_mean(key, known)}')
        for key in optim_opt
        if key not in (*known, 'type')
    ]
    for key, lowest in (('lr', 0.0), ('weight_decay', 0.0)):
        value = optim_opt.get(key)
        if value is None:
            if key == 'lr':
                problems.append(('lr', 'a learning rate is needed, for example 2e-4.'))
        elif isinstance(value, bool) or not isinstance(value, int | float) or value < lowest:
            problems.append((key, f'must be a number >= 0, got {value!r}.'))
    if optim_opt.get('maximize'):
        problems.append(('maximize', 'would make the losses larger with every step; remove it.'))
    if optim_opt.get('capturable') and on_cpu:
        problems.append(
            ('capturable', 'is for GPUs, and this training runs on the CPU; remove it.')
        )
    return problems or _trial_problems(name, optim_opt)


def _trial_problems(name: str, optim_opt: Mapping) -> list[tuple[str, str]]:
    """What an optimiser refuses in a step on parameters of the shapes that networks have."""
    options = {k: v for k, v in optim_opt.items() if k not in ('type', 'capturable')}

    def step(**kept: Any) -> None:
        groups = {'trial': [(f'p{n}', Parameter(torch.ones([2] * n))) for n in (1, 2, 4)]}
        for _, p in groups['trial']:
            p.grad = torch.ones_like(p)
        getattr(torch.optim, name)(_optimizer_groups(groups), **kept).step()

    try:
        step(**options)
    except _REFUSALS as error:
        names = blamed(step, options, _REFUSALS)
        cause = ' '.join(str(error).split()).rstrip('.')
        if names:
            return [(names[0], f'torch.optim.{name} does not take these values: {cause}.')]
        return [('type', f'torch.optim.{name} cannot train a network of convolutions: {cause}.')]
    return []


def build_optimizer(groups: Groups, optim_opt: Mapping) -> Optimizer:
    """Builds the optimiser of a ``train.optim_g`` section.

    Each named group becomes up to two groups of the optimiser: parameters with weight decay, and
    parameters without (fewer than two dimensions, or marked ``_no_weight_decay``). Both carry
    their name under ``group``.

    Raises:
        ValueError: unknown optimiser or argument; the message names the key.
    """
    on_cpu = any(p.device.type == 'cpu' for members in groups.values() for _, p in members)
    problems = check_optimizer(optim_opt, on_cpu=on_cpu)
    if problems:
        raise ValueError(' '.join(f'train.optim_g.{key}: {message}' for key, message in problems))
    options = dict(optim_opt)
    optimizer_class = getattr(torch.optim, options.pop('type'))
    return optimizer_class(_optimizer_groups(groups), **options)


def _optimizer_groups(groups: Groups) -> list[dict[str, Any]]:
    param_groups: list[dict[str, Any]] = []
    for name, members in groups.items():
        decayed = [p for _, p in members if not _without_decay(p)]
        plain = [p for _, p in members if _without_decay(p)]
        if decayed:
            param_groups.append({'params': decayed, 'group': name})
        if plain:
            param_groups.append({'params': plain, 'group': name, 'weight_decay': 0.0})
    return param_groups


def _without_decay(p: Parameter) -> bool:
    return p.ndim < 2 or getattr(p, '_no_weight_decay', False)


class GradientClipper:
    """Measures, and if asked limits, the gradient norm of each group separately.

    One norm for all would let a large loss of one part scale the gradient of another to nothing.

    Args:
        groups: the named groups.
        max_norm: one limit for every group, a limit per group, or None to only measure.

    Raises:
        ValueError: a limit is not positive, or the names do not match the groups.
    """

    def __init__(self, groups: Groups, max_norm: float | Mapping[str, float] | None):
        self.groups = {name: [p for _, p in members] for name, members in groups.items()}
        if max_norm is None:
            limits = dict.fromkeys(groups, float('inf'))
        elif isinstance(max_norm, Mapping):
            limits = dict(max_norm)
            for name in limits:
                if name not in groups:
                    raise ValueError(
                        f"train.grad_clip_norm: the network has no parameter group '{name}'."
                        f'{did_you_mean(name, groups)}'
                    )
            missing = [name for name in groups if name not in limits]
            if missing:
                raise ValueError(
                    f'train.grad_clip_norm: no limit for the parameter group '
                    f"'{missing[0]}'; name every group: {', '.join(groups)}."
                )
        else:
            limits = dict.fromkeys(groups, float(max_norm))
        for name, limit in limits.items():
            if not limit > 0:
                raise ValueError(
                    f"train.grad_clip_norm: the limit of '{name}' must be positive, got {limit}."
                )
        self.limits = limits

    def __call__(self) -> dict[str, Tensor]:
        """Clips in place and returns each group's norm before clipping (scalar tensors)."""
        return {
            name: nn.utils.clip_grad_norm_(members, self.limits[name])
            for name, members in self.groups.items()
        }


def slices_of(batch: Mapping[str, Any], parts: int) -> Iterator[tuple[dict[str, Any], float]]:
    """Cuts a batch along its first dimension into ``parts`` slices of nearly equal size.

    Yields:
        A slice and its share of the batch; losses that are means over the batch, weighted by the
        shares, sum to the loss of the whole batch.

    Raises:
        ValueError: fewer items than parts.
    """
    size = batch['lq'].shape[0]
    if parts > size:
        raise ValueError(
            f'train.accum_iter is {parts} but the batch holds {size}: lower accum_iter or raise '
            'batch_size_per_gpu (or the smallest of progressive.mini_batch_sizes).'
        )
    bounds = [size * i // parts for i in range(parts + 1)]
    for start, stop in pairwise(bounds):
        yield take(batch, start, stop), (stop - start) / size


def take(batch: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
    """Items ``start`` to ``stop`` of every tensor and list in the batch."""
    if start == 0 and stop == batch['lq'].shape[0]:
        return dict(batch)
    return {
        key: value[start:stop] if isinstance(value, Tensor | list | tuple) else value
        for key, value in batch.items()
    }


class ProgressiveBatches:
    """Patch and batch sizes that change during training (Restormer's progressive learning).

    The loader delivers the largest patch and the largest batch of the run; here the first items
    of the batch are kept and one window, the same for the whole batch, is cut out of the patches.
    The loader's patches lie at random places already. The window depends on the seed, the
    iteration and the rank only.

    Args:
        iters: length of each phase in iterations; the last one goes on for ever.
        gt_sizes: patch size of each phase.
        mini_batch_sizes: batch size per GPU of each phase.
        seed: seed of the windows.
        rank: rank of this process.
    """

    def __init__(
        self,
        *,
        iters: list[int],
        gt_sizes: list[int],
        mini_batch_sizes: list[int],
        seed: int = 0,
        rank: int = 0,
    ):
        if not len(iters) == len(gt_sizes) == len(mini_batch_sizes) or not iters:
            raise ValueError(
                'train.progressive: iters, gt_sizes and mini_batch_sizes must be lists of the '
                f'same length, got {len(iters)}, {len(gt_sizes)} and {len(mini_batch_sizes)}.'
            )
        self.phases = list(zip(iters, gt_sizes, mini_batch_sizes, strict=True))
        self.seed = seed
        self.rank = rank

    def sizes_at(self, current_iter: int) -> tuple[int, int]:
        """Patch size and batch size of iteration ``current_iter`` (1-based)."""
        end = 0
        for length, gt_size, mini_batch_size in self.phases:
            end += length
            if current_iter <= end:
                return gt_size, mini_batch_size
        return self.phases[-1][1:]

    def __call__(self, batch: Mapping[str, Any], current_iter: int) -> dict[str, Any]:
        """Crops ``lq`` and ``gt`` (B,C,H,W) and keeps the first items.

        Raises:
            ValueError: the loader's batch or patch is smaller than the phase asks for.
        """
        gt_size, mini_batch_size = self.sizes_at(current_iter)
        size, _, h, w = batch['lq'].shape
        if size < mini_batch_size or min(h, w) < gt_size:
            raise ValueError(
                f'train.progressive asks for {mini_batch_size} patches of {gt_size} at iteration '
                f'{current_iter} but the loader gives {size} of {h}x{w}: datasets.train.gt_size '
                'and batch_size_per_gpu must be the largest of the schedule.'
            )
        batch = take(batch, 0, mini_batch_size)
        draw = random.Random(f'{self.seed}/{current_iter}/{self.rank}')
        top, left = draw.randint(0, h - gt_size), draw.randint(0, w - gt_size)
        for key in ('lq', 'gt'):
            batch[key] = batch[key][..., top : top + gt_size, left : left + gt_size]
        return batch
