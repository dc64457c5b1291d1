"""Learning-rate schedules by iteration in closed form, and the linear warm-up of any of them.

Every schedule counts iterations from the start of the run, so ``milestones``, ``periods`` and
``T_max`` mean what the option file says, with or without warm-up: the warm-up is a factor
``min(1, iteration / warmup_iter)`` on the schedule's own value. The learning rate therefore grows
linearly, meets the schedule without a jump, and a milestone inside the warm-up is kept.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping

from basicsr.models import lr_scheduler as basicsr_schedulers
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from unfoldldm_basicsr.common.suggest import did_you_mean


class _ClosedFormLR(LRScheduler):
    """A schedule whose value depends only on the base learning rate and the iteration."""

    def lr_at(self, base_lr: float, iteration: int) -> float:
        """Learning rate of a group with base ``base_lr`` at ``iteration`` (0-based)."""
        raise NotImplementedError

    def get_lr(self) -> list[float]:
        return [self.lr_at(base_lr, self.last_epoch) for base_lr in self.base_lrs]


def _cosine(high: float, low: float, share: float) -> float:
    """Half a cosine from ``high`` (share 0) to ``low`` (share 1)."""
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0)))


class TrueCosineAnnealingLR(_ClosedFormLR):
    """One half cosine from the base learning rate to ``eta_min``, which it then keeps.

    Args:
        optimizer: the optimiser whose groups are scheduled.
        T_max: iterations until ``eta_min`` is reached.
        eta_min: final learning rate.
        last_epoch: iteration to start from; -1 starts a new schedule.
    """

    def __init__(
        self, optimizer: Optimizer, *, T_max: int, eta_min: float = 0.0, last_epoch: int = -1
    ):
        if T_max <= 0:
            raise ValueError(f'TrueCosineAnnealingLR: T_max must be positive, got {T_max}.')
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def lr_at(self, base_lr: float, iteration: int) -> float:
        return _cosine(base_lr, self.eta_min, iteration / self.T_max)


class ConstantCosineLR(_ClosedFormLR):
    """The base learning rate for ``constant_iter`` iterations, then a half cosine to ``eta_min``.

    This is the "92k constant, 208k cosine" scheme of Restormer, Reti-Diff and UnfoldIR.

    Args:
        optimizer: the optimiser whose groups are scheduled.
        constant_iter: iterations at the base learning rate.
        total_iter: iteration at which ``eta_min`` is reached; ``train.total_iter`` by default.
        eta_min: final learning rate.
        last_epoch: iteration to start from; -1 starts a new schedule.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        constant_iter: int,
        total_iter: int,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ):
        if not 0 <= constant_iter < total_iter:
            raise ValueError(
                f'ConstantCosineLR: constant_iter ({constant_iter}) must lie between 0 and '
                f'total_iter ({total_iter}), so that iterations are left for the cosine.'
            )
        self.constant_iter = constant_iter
        self.total_iter = total_iter
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def lr_at(self, base_lr: float, iteration: int) -> float:
        share = (iteration - self.constant_iter) / (self.total_iter - self.constant_iter)
        return _cosine(base_lr, self.eta_min, share)


class CosineAnnealingRestartCyclicLR(_ClosedFormLR):
    """Half cosines one after another, each with its own weight and its own minimum.

    As in Restormer: in cycle i the learning rate falls from
    ``eta_mins[i] + restart_weights[i] * (base - eta_mins[i])`` to ``eta_mins[i]``; the last
    iteration of a cycle, where it equals ``eta_mins[i]``, still belongs to that cycle.

    Args:
        optimizer: the optimiser whose groups are scheduled.
        periods: iterations of each cycle; their sum must reach the end of the training.
        restart_weights: weight of each cycle.
        eta_mins: minimum of each cycle.
        last_epoch: iteration to start from; -1 starts a new schedule.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        periods: list[int],
        restart_weights: list[float],
        eta_mins: list[float],
        last_epoch: int = -1,
    ):
        if not len(periods) == len(restart_weights) == len(eta_mins):
            raise ValueError(
                'CosineAnnealingRestartCyclicLR: periods, restart_weights and eta_mins must have '
                f'the same length, got {len(periods)}, {len(restart_weights)} and {len(eta_mins)}.'
            )
        self.periods = list(periods)
        self.restart_weights = list(restart_weights)
        self.eta_mins = list(eta_mins)
        super().__init__(optimizer, last_epoch)

    def lr_at(self, base_lr: float, iteration: int) -> float:
        start = 0
        for period, weight, eta_min in zip(
            self.periods, self.restart_weights, self.eta_mins, strict=True
        ):
            if iteration <= start + period:
                high = eta_min + weight * (base_lr - eta_min)
                return _cosine(high, eta_min, (iteration - start) / period)
            start += period
        return self.eta_mins[-1]


SCHEDULERS: dict[str, type] = {
    'MultiStepLR': basicsr_schedulers.MultiStepRestartLR,
    'MultiStepRestartLR': basicsr_schedulers.MultiStepRestartLR,
    'CosineAnnealingRestartLR': basicsr_schedulers.CosineAnnealingRestartLR,
    'ConstantCosineLR': ConstantCosineLR,
    'TrueCosineAnnealingLR': TrueCosineAnnealingLR,
    'CosineAnnealingRestartCyclicLR': CosineAnnealingRestartCyclicLR,
}


def _arguments(scheduler_opt: Mapping, total_iter: int | None) -> tuple[str, dict]:
    arguments = dict(scheduler_opt)
    name = arguments.pop('type', None)
    if name == 'ConstantCosineLR' and total_iter is not None:
        arguments.setdefault('total_iter', total_iter)
    return name, arguments


def resolved_options(scheduler_opt: Mapping, total_iter: int | None) -> dict:
    """A ``train.scheduler`` section with what it takes over from ``train.total_iter``."""
    name, arguments = _arguments(scheduler_opt, total_iter)
    return {'type': name, **arguments}


def check_scheduler(
    scheduler_opt: Mapping, total_iter: int | None, lr: float | None
) -> list[tuple[str, str]]:
    """Problems of a ``train.scheduler`` section.

    Args:
        scheduler_opt: the section, with ``type``.
        total_iter: length of the training, for schedules that must reach its end.
        lr: base learning rate; no minimum may lie above it.

    Returns:
        Pairs of key (relative to the section) and message; empty when all is well.
    """
    name, arguments = _arguments(scheduler_opt, total_iter)
    if name not in SCHEDULERS:
        return [('type', f"'{name}' is not a scheduler.{did_you_mean(name, SCHEDULERS)}")]
    parameters = inspect.signature(SCHEDULERS[name]).parameters
    known = [key for key in parameters if key not in ('optimizer', 'last_epoch')]
    problems = [
        (key, f'{name} has no argument {key}.{did_you_mean(key, known)}')
        for key in arguments
        if key not in known
    ]
    problems += [
        (key, f'{name} needs {key}.')
        for key in known
        if parameters[key].default is inspect.Parameter.empty and key not in arguments
    ]
    problems += _check_numbers({k: v for k, v in arguments.items() if k in known})
    if problems:
        return problems
    problems += _check_lengths(name, arguments, total_iter)
    key = 'eta_mins' if 'eta_mins' in arguments else 'eta_min'
    minimum = max(arguments.get('eta_mins', [arguments.get('eta_min', 0)]), default=0)
    if lr is not None and minimum > lr:
        problems.append(
            (key, f'{minimum} is above optim_g.lr ({lr}): the learning rate would rise.')
        )
    return problems


LISTS = ('milestones', 'restarts', 'periods', 'restart_weights', 'eta_mins')
POSITIVE = ('periods', 'T_max')
NOT_NEGATIVE = ('eta_min', 'eta_mins', 'gamma', 'restart_weights', 'milestones', 'restarts')


def _check_numbers(arguments: Mapping) -> list[tuple[str, str]]:
    problems = []
    for key, value in arguments.items():
        values = value if key in LISTS else [value]
        numbers = isinstance(values, list | tuple) and all(
            isinstance(v, int | float) and not isinstance(v, bool) for v in values
        )
        if not numbers:
            kind = 'a list of numbers' if key in LISTS else 'a number'
            problems.append((key, f'must be {kind}, got {value!r}.'))
        elif key in POSITIVE and not all(v > 0 for v in values):
            problems.append((key, f'must be positive, got {value!r}.'))
        elif key in NOT_NEGATIVE and not all(v >= 0 for v in values):
            problems.append((key, f'must not be negative, got {value!r}.'))
    return problems


def _check_lengths(name: str, arguments: Mapping, total_iter: int | None) -> list[tuple[str, str]]:
    problems = []
    periods = arguments.get('periods')
    if periods is not None and total_iter is not None and sum(periods) < total_iter:
        problems.append(
            (
                'periods',
                f'the periods sum to {sum(periods)}, which is less than total_iter '
                f'({total_iter}): the schedule would end before the training does.',
            )
        )
    pairs = [('restarts', 'restart_weights'), ('periods', 'restart_weights')]
    for first, second in [*pairs, ('periods', 'eta_mins')]:
        counts = [len(arguments[key]) for key in (first, second) if key in arguments]
        if len(counts) == 2 and counts[0] != counts[1]:
            problems.append((second, f'{counts[1]} values for {counts[0]} {first}.'))
    if name == 'ConstantCosineLR' and 'total_iter' in arguments:
        constant, total = arguments['constant_iter'], arguments['total_iter']
        if not 0 <= constant < total:
            problems.append(
                ('constant_iter', f'{constant} must lie between 0 and total_iter ({total}).')
            )
    return problems


def build_scheduler(optimizer: Optimizer, scheduler_opt: Mapping, total_iter: int) -> LRScheduler:
    """Builds the schedule of a ``train.scheduler`` section.

    Raises:
        ValueError: unknown type or argument, missing argument, a schedule that ends before the
            training; the message names the key below ``train.scheduler``.
    """
    problems = check_scheduler(scheduler_opt, total_iter, lr=None)
    if problems:
        raise ValueError(' '.join(f'train.scheduler.{key}: {message}' for key, message in problems))
    name, arguments = _arguments(scheduler_opt, total_iter)
    return SCHEDULERS[name](optimizer, **arguments)


def warmup_factor(current_iter: int, warmup_iter: int | None) -> float:
    """Factor of the linear warm-up at ``current_iter`` (1-based); 1 when there is no warm-up."""
    if not warmup_iter or warmup_iter < 0:
        return 1.0
    return min(1.0, current_iter / warmup_iter)


def advance(scheduler: LRScheduler, current_iter: int, warmup_iter: int | None) -> None:
    """Sets the learning rates of iteration ``current_iter`` (1-based) on the optimiser.

    BasicSR's schedules multiply the value they find in the optimiser, so the schedule's own value
    is put back before it steps; the warm-up never feeds into it.
    """
    groups = scheduler.optimizer.param_groups
    for group, lr in zip(groups, scheduler.get_last_lr(), strict=True):
        group['lr'] = lr
    if current_iter > 1:
        scheduler.step()
    factor = warmup_factor(current_iter, warmup_iter)
    for group, lr in zip(groups, scheduler.get_last_lr(), strict=True):
        group['lr'] = lr * factor
