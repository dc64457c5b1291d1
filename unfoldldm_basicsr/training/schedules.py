"""Learning rates: schedules by iteration, the linear warm-up of any of them, and resuming.

Every schedule counts iterations from the start of the run, so ``milestones``, ``periods`` and
``T_max`` mean what the option file says, with or without warm-up: the warm-up is a factor
``min(1, iteration / warmup_iter)`` on the schedule's own value. The learning rate therefore grows
linearly, meets the schedule without a jump, and a milestone inside the warm-up is kept.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from basicsr.models import lr_scheduler as basicsr_schedulers
from basicsr.utils import get_root_logger
from pydantic import Field
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from unfoldldm_basicsr.common.declaration import OptionError, Options, Problem, Tuple, read
from unfoldldm_basicsr.common.errors import ResumeError
from unfoldldm_basicsr.common.suggest import did_you_mean
from unfoldldm_basicsr.training.resume import differences, flatten, plain

Positive = Annotated[int | float, Field(gt=0)]
NotNegative = Annotated[int | float, Field(ge=0)]


# ---- schedules ----------------------------------------------------------------------------------


class DeclaredLR(LRScheduler):
    """A schedule in closed form, with its options as attributes; ``Options`` declares them."""

    Options: type[Options]

    def __init__(self, optimizer: Optimizer, **options: Any):
        vars(self).update(options)
        super().__init__(optimizer)

    def lr_at(self, base_lr: float, iteration: int) -> float:
        """Learning rate of a group with base ``base_lr`` at ``iteration`` (0-based)."""
        raise NotImplementedError

    def get_lr(self) -> list[float]:
        return [self.lr_at(base_lr, self.last_epoch) for base_lr in self.base_lrs]


def _cosine(high: float, low: float, share: float) -> float:
    """Half a cosine from ``high`` (share 0) to ``low`` (share 1)."""
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0)))


class TrueCosineOptions(Options):
    """``TrueCosineAnnealingLR``."""

    T_max: Positive
    """Iterations until ``eta_min`` is reached."""
    eta_min: NotNegative = 0.0
    """Final learning rate."""


class TrueCosineAnnealingLR(DeclaredLR):
    """One half cosine from the base learning rate to ``eta_min``, which it then keeps."""

    Options = TrueCosineOptions

    def lr_at(self, base_lr: float, iteration: int) -> float:
        return _cosine(base_lr, self.eta_min, iteration / self.T_max)


class ConstantCosineOptions(Options):
    """``ConstantCosineLR``."""

    constant_iter: NotNegative
    """Iterations at the base learning rate."""
    total_iter: Positive
    """Iteration at which ``eta_min`` is reached; ``train.total_iter`` by default."""
    eta_min: NotNegative = 0.0
    """Final learning rate."""


class ConstantCosineLR(DeclaredLR):
    """The base learning rate for ``constant_iter`` iterations, then a half cosine to ``eta_min``.

    This is the "92k constant, 208k cosine" scheme of Restormer, Reti-Diff and UnfoldIR.
    """

    Options = ConstantCosineOptions

    def lr_at(self, base_lr: float, iteration: int) -> float:
        share = (iteration - self.constant_iter) / (self.total_iter - self.constant_iter)
        return _cosine(base_lr, self.eta_min, share)


class CyclicOptions(Options):
    """``CosineAnnealingRestartCyclicLR``."""

    periods: Tuple[Positive]
    """Iterations of each cycle; their sum must reach the end of the training."""
    restart_weights: Tuple[NotNegative]
    """Weight of each cycle."""
    eta_mins: Tuple[NotNegative]
    """Minimum of each cycle."""


class CosineAnnealingRestartCyclicLR(DeclaredLR):
    """Half cosines one after another, each with its own weight and its own minimum.

    As in Restormer: in cycle i the learning rate falls from
    ``eta_mins[i] + restart_weights[i] * (base - eta_mins[i])`` to ``eta_mins[i]``; the last
    iteration of a cycle, where it equals ``eta_mins[i]``, still belongs to that cycle.
    """

    Options = CyclicOptions

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


class MultiStepOptions(Options):
    """``MultiStepLR`` of BasicSR, also called ``MultiStepRestartLR``."""

    milestones: Tuple[NotNegative]
    """Iterations at which the learning rate is multiplied by ``gamma``."""
    gamma: NotNegative = 0.1
    """The factor."""
    restarts: Tuple[NotNegative] = (0,)
    """Iterations at which it starts again."""
    restart_weights: Tuple[NotNegative] = (1,)
    """Weight of each restart."""


class RestartOptions(Options):
    """``CosineAnnealingRestartLR`` of BasicSR: half cosines with one common minimum."""

    periods: Tuple[Positive]
    """Iterations of each cycle; their sum must reach the end of the training."""
    restart_weights: Tuple[NotNegative] = (1,)
    """Weight of each cycle."""
    eta_min: NotNegative = 0
    """Minimum of every cycle."""


SCHEDULES: dict[str, tuple[type[Options], type[LRScheduler]]] = {
    'MultiStepLR': (MultiStepOptions, basicsr_schedulers.MultiStepRestartLR),
    'MultiStepRestartLR': (MultiStepOptions, basicsr_schedulers.MultiStepRestartLR),
    'CosineAnnealingRestartLR': (RestartOptions, basicsr_schedulers.CosineAnnealingRestartLR),
    **{
        cls.__name__: (cls.Options, cls)
        for cls in (ConstantCosineLR, TrueCosineAnnealingLR, CosineAnnealingRestartCyclicLR)
    },
}


def resolved(section: Mapping[str, Any], total_iter: int) -> dict[str, Any]:
    """A ``train.scheduler`` section with what it takes over from ``train.total_iter``."""
    if section.get('type') == 'ConstantCosineLR':
        return {'total_iter': total_iter, **section}
    return dict(section)


def build_schedule(
    optimizer: Optimizer, section: Mapping[str, Any], total_iter: int
) -> LRScheduler:
    """Builds the schedule of a ``train.scheduler`` section that :func:`check_schedule` accepts."""
    options = resolved(section, total_iter)
    declared, cls = SCHEDULES[options.pop('type')]
    typed = read(declared, options)
    return cls(optimizer, **{k: list(v) if isinstance(v, tuple) else v for k, v in typed})


def check_schedule(
    section: Mapping[str, Any], total_iter: int, lr: float | None = None
) -> Iterator[Problem]:
    """What is wrong with a ``train.scheduler`` section.

    Args:
        section: with ``type``.
        total_iter: length of the training, whose end the schedule must reach.
        lr: base learning rate; no minimum may lie above it.
    """
    options = resolved(section, total_iter)
    kind = options.pop('type', None)
    if kind not in SCHEDULES:
        yield Problem('type', f"'{kind}' is not a scheduler.{did_you_mean(kind, SCHEDULES)}")
        return
    try:
        typed = dict(read(SCHEDULES[kind][0], options, kind))
    except OptionError as error:
        yield from error.problems
        return
    periods = typed.get('periods')
    if periods is not None and sum(periods) < total_iter:
        yield Problem(
            'periods',
            f'sum to {sum(periods)}, which is less than total_iter ({total_iter}): the schedule '
            'would end before the training does.',
        )
    first = 'restarts' if periods is None else 'periods'
    for second in ('restart_weights', 'eta_mins'):
        if second in typed and len(typed[first]) != len(typed[second]):
            yield Problem(
                second, f'has {len(typed[second])} values for {len(typed[first])} {first}.'
            )
    if kind == 'ConstantCosineLR' and not typed['constant_iter'] < typed['total_iter']:
        yield Problem(
            'constant_iter',
            f'{typed["constant_iter"]} must lie between 0 and total_iter ({typed["total_iter"]}).',
        )
    key = 'eta_mins' if 'eta_mins' in typed else 'eta_min'
    lowest = max(typed.get('eta_mins', ()), default=typed.get('eta_min', 0))
    if lr is not None and lowest > lr:
        yield Problem(key, f'{lowest} is above optim_g.lr ({lr}): the learning rate would rise.')


# ---- steps --------------------------------------------------------------------------------------


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


class LearningRate:
    """Schedule and warm-up of a run's optimiser, with the settings that are in force.

    These are the option file's, or those of the state that the run goes on from.

    Args:
        optimizer: new optimiser of the option file.
        train: section ``train`` of the option file.
    """

    def __init__(self, optimizer: Optimizer, train: Mapping[str, Any]):
        self.optimizer, self.train = optimizer, train
        self.total_iter = int(train['total_iter'])
        self.schedule = build_schedule(optimizer, train['scheduler'], self.total_iter)
        self.settings = {
            'optim_g': plain(train['optim_g']),
            'scheduler': plain(resolved(train['scheduler'], self.total_iter)),
            'warmup_iter': max(train.get('warmup_iter') or 0, 0),
        }

    def advance(self, current_iter: int) -> None:
        """Sets the learning rates of an iteration; to be called once for each, in order."""
        advance(self.schedule, current_iter, self.settings['warmup_iter'])

    def resume(self, state: Mapping[str, Any]) -> None:
        """Puts optimiser and schedule into the condition of a training state.

        Their settings come from the state, as in BasicSR; where the option file says otherwise,
        that is logged, and with ``train.apply_new_schedule: true`` its settings apply from here on,
        as if the run had had the new schedule from its start.

        Args:
            state: what was saved; ``train_options`` holds the settings of that time.

        Raises:
            ResumeError: the state is of another optimiser, or its schedule ends before the
                training.
        """
        current = self.settings
        stored = {k: v for k, v in state.get('train_options', {}).items() if k in current}
        here = {k: current[k] for k in stored}
        changed = differences(flatten(stored, 'train'), flatten(here, 'train'))
        apply = bool(changed and self.train.get('apply_new_schedule'))
        _report(changed, apply)
        groups = self.optimizer.param_groups
        fresh = [{k: v for k, v in group.items() if k != 'params'} for group in groups]
        if not apply and stored.get('scheduler') not in (None, current['scheduler']):
            self.schedule = self._stored_schedule(stored['scheduler'])
        try:
            self.optimizer.load_state_dict(state['optimizers'][0])
        except ValueError as error:
            raise ResumeError(
                f'path.resume_state does not fit this option file: {error}. The state was made '
                'with another network_g or optim_g.'
            ) from error
        if not apply:
            self.schedule.load_state_dict(state['schedulers'][0])
            self.settings = current | stored
            return
        for group, settings in zip(self.optimizer.param_groups, fresh, strict=True):
            group.update(settings)
        with warnings.catch_warnings():
            # The optimiser has made these steps, before it was interrupted.
            warnings.filterwarnings('ignore', message='.*lr_scheduler.step', category=UserWarning)
            for iteration in range(1, state['iter'] + 1):
                self.advance(iteration)

    def _stored_schedule(self, section: Mapping[str, Any]) -> LRScheduler:
        for key, message, *_ in check_schedule(section, self.total_iter):
            raise ResumeError(
                f'train.total_iter is {self.total_iter} now, but the schedule of the resumed state '
                f'does not go so far ({key}: {message.rstrip(".")}). Set train.apply_new_schedule: '
                'true to use the schedule of the option file.'
            )
        return build_schedule(self.optimizer, section, self.total_iter)


def _report(changed: list[tuple[str, Any, Any]], apply: bool) -> None:
    for key, then, now in changed:
        if key == 'train.optim_g.type':
            raise ResumeError(
                f'{key} is {now} in the option file, but the resumed state was made with {then}, '
                'whose moments it cannot use. Put the old optimiser back, or start a new run from '
                'the weights (path.pretrain_network_g).'
            )
        end = (
            '; the new value applies from here on.'
            if apply
            else ' and keeps it. Set train.apply_new_schedule: true to apply the new value.'
        )
        get_root_logger().warning(
            f'{key} is {now} in the option file, but the resumed state was made with {then}{end}'
        )
