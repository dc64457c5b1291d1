"""Learning rates: schedules by iteration, the linear warm-up of any of them, and resuming.

Every schedule is a formula of the iteration, counted from the start of the run, so ``milestones``,
``periods`` and ``T_max`` mean what the option file says, with or without warm-up: the warm-up is a
factor ``min(1, iteration / warmup_iter)`` on the schedule's own value. The learning rate therefore
grows linearly, meets the schedule without a jump, and a milestone inside the warm-up is kept.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from basicsr.utils import get_root_logger
from pydantic import Field
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from unfoldldm_basicsr.common.declaration import OptionError, Options, Problem, Tuple, read
from unfoldldm_basicsr.common.errors import ResumeError
from unfoldldm_basicsr.common.suggest import did_you_mean
from unfoldldm_basicsr.options.run import flatten, plain
from unfoldldm_basicsr.training.resume import differences

Positive = Annotated[int | float, Field(gt=0)]
NotNegative = Annotated[int | float, Field(ge=0)]


# ---- schedules ----------------------------------------------------------------------------------


class Schedule(Options):
    """The keys of a ``train.scheduler`` section beside ``type``, and its formula.

    ``rate(base, t)``: learning rate of a group with base rate ``base`` after ``t`` iterations.
    """


def _cosine(height: float, low: float, share: float) -> float:
    """Half a cosine from ``low + height`` (share 0) to ``low`` (share 1)."""
    return low + 0.5 * height * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0)))


def _cycle(periods: Sequence[float], t: float) -> tuple[int, float]:
    """Number of the cycle at ``t``, and the share of it that is over, at most 1.

    The last iteration of a cycle belongs to it, not to the next one.
    """
    for index, period in enumerate(periods):
        if t <= period:
            return index, t / period
        t -= period
    return len(periods) - 1, 1.0


class TrueCosineAnnealingLR(Schedule):
    """One half cosine from the base learning rate to ``eta_min``, which it then keeps."""

    T_max: Positive
    """Iterations until ``eta_min`` is reached."""
    eta_min: NotNegative = 0.0
    """Final learning rate."""

    def rate(self, base: float, t: int) -> float:
        return _cosine(base - self.eta_min, self.eta_min, t / self.T_max)


class ConstantCosineLR(Schedule):
    """The base learning rate for ``constant_iter`` iterations, then a half cosine to ``eta_min``.

    This is the "92k constant, 208k cosine" scheme of Restormer, Reti-Diff and UnfoldIR.
    """

    constant_iter: NotNegative
    """Iterations at the base learning rate."""
    total_iter: Positive = Field(json_schema_extra={'default': 'train.total_iter'})
    """Iteration at which ``eta_min`` is reached."""
    eta_min: NotNegative = 0.0
    """Final learning rate."""

    def rate(self, base: float, t: int) -> float:
        share = (t - self.constant_iter) / (self.total_iter - self.constant_iter)
        return _cosine(base - self.eta_min, self.eta_min, share)


class CosineAnnealingRestartCyclicLR(Schedule):
    """Half cosines one after another, each with its own weight and its own minimum.

    As in Restormer: in cycle i the learning rate falls from
    ``eta_mins[i] + restart_weights[i] * (base - eta_mins[i])`` to ``eta_mins[i]``.
    """

    periods: Tuple[Positive]
    """Iterations of each cycle; their sum must reach the end of the training."""
    restart_weights: Tuple[NotNegative]
    """Weight of each cycle."""
    eta_mins: Tuple[NotNegative]
    """Minimum of each cycle."""

    def rate(self, base: float, t: int) -> float:
        index, share = _cycle(self.periods, t)
        low = self.eta_mins[index]
        high = low + self.restart_weights[index] * (base - low)
        return _cosine(high - low, low, share)


class CosineAnnealingRestartLR(Schedule):
    """Half cosines one after another with one common minimum, as in BasicSR."""

    periods: Tuple[Positive]
    """Iterations of each cycle; their sum must reach the end of the training."""
    restart_weights: Tuple[NotNegative] = (1,)
    """Weight of each cycle."""
    eta_min: NotNegative = 0
    """Minimum of every cycle."""

    def rate(self, base: float, t: int) -> float:
        index, share = _cycle(self.periods, t)
        height = self.restart_weights[index] * (base - self.eta_min)
        return _cosine(height, self.eta_min, share)


class MultiStepLR(Schedule):
    """Steps at milestones, and restarts, as in BasicSR; also called ``MultiStepRestartLR``."""

    milestones: Tuple[NotNegative]
    """Iterations at which the learning rate is multiplied by ``gamma``."""
    gamma: NotNegative = 0.1
    """The factor."""
    restarts: Tuple[NotNegative] = (0,)
    """Iterations at which it starts again."""
    restart_weights: Tuple[NotNegative] = (1,)
    """Weight of each restart."""

    def rate(self, base: float, t: int) -> float:
        restarts = zip(self.restarts, self.restart_weights, strict=True)
        start, weight = max((r for r in restarts if r[0] <= t), default=(-1, 1))
        rate = base * weight
        for milestone, times in sorted(Counter(self.milestones).items()):
            if start < milestone <= t:
                rate *= self.gamma**times
        return rate


SCHEDULES: dict[str, type[Schedule]] = {
    'MultiStepRestartLR': MultiStepLR,
    **{cls.__name__: cls for cls in Schedule.__subclasses__()},
}


def _resolved(section: Mapping[str, Any], total_iter: int) -> dict[str, Any]:
    """A section with what it takes over from ``train.total_iter``."""
    if section.get('type') == 'ConstantCosineLR':
        return {'total_iter': total_iter, **section}
    return dict(section)


def read_schedule(section: Mapping[str, Any], total_iter: int) -> Schedule:
    """The schedule of a section of a known type; OptionError where its keys do not fit."""
    options = _resolved(section, total_iter)
    kind = options.pop('type')
    return read(SCHEDULES[kind], options, kind)


def check_schedule(section: Mapping[str, Any], total_iter: int) -> Iterator[Problem]:
    """What is wrong with a ``train.scheduler`` section, which must reach the training's end."""
    kind = section.get('type')
    if str(kind) not in SCHEDULES:
        yield Problem('type', f"'{kind}' is not a scheduler.{did_you_mean(kind, SCHEDULES)}")
        return
    try:
        typed = dict(read_schedule(section, total_iter))
    except OptionError as error:
        yield from error.problems
        return
    key = next((key for key in ('T_max', 'total_iter', 'periods') if key in typed), '')
    end = sum(typed[key]) if key == 'periods' else typed.get(key, total_iter)
    if end != total_iter:  # after the last of its cosines another would begin
        severity = 'fault' if key == 'periods' and end < total_iter else 'warning'
        message = f'the schedule ends at {end}, the training at {total_iter} (total_iter).'
        yield Problem(key, message, severity)
    late = [m for m in typed.get('milestones', ()) if m > total_iter]
    if late:
        message = f'{late} are never reached: the training ends at {total_iter} (total_iter).'
        yield Problem('milestones', message, 'warning')
    first = 'periods' if 'periods' in typed else 'restarts'
    for second in ('restart_weights', 'eta_mins'):
        if second in typed and len(typed[first]) != len(typed[second]):
            message = f'has {len(typed[second])} values for {len(typed[first])} {first}.'
            yield Problem(second, message)
    if kind == 'ConstantCosineLR' and not typed['constant_iter'] < typed['total_iter']:
        message = f'must lie between 0 and total_iter ({typed["total_iter"]}).'
        yield Problem('constant_iter', f'{typed["constant_iter"]} {message}')


# ---- the learning rate of a run -----------------------------------------------------------------


class LearningRate(LRScheduler):
    """Schedule and warm-up of a run's optimiser; :meth:`step` goes on to the next iteration.

    Attributes:
        settings: what is in force: the option file's ``optim_g``, ``scheduler`` and
            ``warmup_iter``, or those of the state that the run goes on from.
    """

    def __init__(self, optimizer: Optimizer, train: Mapping[str, Any]):
        self.train, self.total_iter = train, int(train['total_iter'])
        self.settings = {
            'optim_g': plain(train['optim_g']),
            'scheduler': plain(_resolved(train['scheduler'], self.total_iter)),
            'warmup_iter': max(train.get('warmup_iter') or 0, 0),
        }
        self.schedule = read_schedule(train['scheduler'], self.total_iter)
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        warmup = self.settings['warmup_iter']
        factor = min(1.0, (self.last_epoch + 1) / warmup) if warmup else 1.0
        groups = self.optimizer.param_groups
        return [self.schedule.rate(g['initial_lr'], self.last_epoch) * factor for g in groups]

    def state_dict(self) -> dict[str, Any]:
        """What BasicSR's schedules need to go on; this one goes by the iteration alone."""
        return {'last_epoch': self.last_epoch, '_step_count': self._step_count}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Puts optimiser and schedule into the condition of a training state.

        Their settings come from the state, as in BasicSR; where the option file says otherwise,
        that is logged, and with ``train.apply_new_schedule: true`` its settings apply from here on,
        as if the run had had the new schedule from its start.

        Raises:
            ResumeError: the state is of another optimiser, or its schedule ends before the
                training.
        """
        current = self.settings
        stored = {k: v for k, v in state.get('train_options', {}).items() if k in current}
        here = {k: current[k] for k in stored}
        changed = differences(flatten(stored, 'train'), flatten(here, 'train'))
        apply = self.train.get('apply_new_schedule')
        end = '; the new value applies from here on.'
        if not apply:
            end = ' and keeps it. Set train.apply_new_schedule: true to apply the new value.'
        for key, then, now in changed:
            what = f'{key} is {now} in the option file, but the resumed state was made with {then}'
            if key == 'train.optim_g.type':
                raise ResumeError(
                    f'{what}, whose moments it cannot use. Put the old optimiser back, or start a '
                    'new run from the weights (path.pretrain_network_g).'
                )
            get_root_logger().warning(what + end)
        groups = self.optimizer.param_groups
        fresh = [{k: v for k, v in group.items() if k != 'params'} for group in groups]
        if not apply:
            self.settings = current | stored
            self._take_stored(self.settings['scheduler'])
        try:
            self.optimizer.load_state_dict(state['optimizers'][0])
        except ValueError as error:
            raise ResumeError(
                f'path.resume_state does not fit this option file: {error}. The state was made '
                "with another network_g, optim_g or train.decay_all (BasicSR's own models: true)."
            ) from error
        for group, settings in zip(self.optimizer.param_groups, fresh, strict=True):
            group.update(settings if apply else settings | group)
        self.load_state_dict({'last_epoch': state['iter'] - 1, '_step_count': state['iter'] + 1})

    def _take_stored(self, section: Mapping[str, Any]) -> None:
        for key, message, kind in check_schedule(section, self.total_iter):
            if kind != 'warning':
                raise ResumeError(
                    f'train.total_iter is {self.total_iter} now, but the schedule of the resumed '
                    f'state does not go so far ({key}: {message.rstrip(".")}). Set '
                    'train.apply_new_schedule: true to use the schedule of the option file.'
                )
        self.schedule = read_schedule(section, self.total_iter)
