"""Learning-rate schedules against their formulas, with and without warm-up."""

import math

import pytest
import torch
from basicsr.models import lr_scheduler

from unfoldldm_basicsr.training.schedules import SCHEDULES, LearningRate, check_schedule

LR, TOTAL = 2e-4, 20
CYCLES = {'periods': [12, 8], 'restart_weights': [1, 0.5]}
OPTIONS = {
    'MultiStepLR': {'milestones': [3, 8], 'gamma': 0.5},
    'MultiStepRestartLR': {'milestones': [3, 8], 'gamma': 0.5},
    'CosineAnnealingRestartLR': {**CYCLES, 'eta_min': 1e-6},
    'ConstantCosineLR': {'constant_iter': 8, 'eta_min': 1e-6},
    'TrueCosineAnnealingLR': {'T_max': TOTAL, 'eta_min': 1e-6},
    'CosineAnnealingRestartCyclicLR': {**CYCLES, 'eta_mins': [1e-4, 1e-6]},
}


def cosine(high: float, low: float, share: float) -> float:
    return low + (high - low) * (1 + math.cos(math.pi * share)) / 2


def expected(name: str, t: int) -> float:
    """Learning rate after ``t`` steps of a schedule that BasicSR has not."""
    if name == 'ConstantCosineLR':
        return LR if t < 8 else cosine(LR, 1e-6, (t - 8) / 12)
    if name == 'TrueCosineAnnealingLR':
        return cosine(LR, 1e-6, t / TOTAL)
    first = t <= 12  # the last point of a cycle is its minimum
    share = t / 12 if first else (t - 12) / 8
    if first:
        return cosine(LR, 1e-4, share)
    return cosine(1e-6 + 0.5 * (LR - 1e-6), 1e-6, share)


def optimizer_of(lr: float) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def schedule_of(train: dict) -> LearningRate:
    return LearningRate(optimizer_of(train['optim_g']['lr']), train)


def learning_rate(name: str, warmup_iter: int | None = None, **changes) -> LearningRate:
    section = {'type': name, **OPTIONS[name], **changes}
    train = {'total_iter': TOTAL, 'scheduler': section, 'warmup_iter': warmup_iter}
    return schedule_of({**train, 'optim_g': {'type': 'SGD', 'lr': LR}})


def run(schedule) -> list[float]:
    rates = []
    for _ in range(TOTAL):
        rates.append(schedule.optimizer.param_groups[0]['lr'])
        schedule.optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize('name', SCHEDULES)
def test_schedule_follows_its_formula_times_the_warmup(name):
    rates = run(learning_rate(name))
    if name not in THEIRS:
        assert rates == pytest.approx([expected(name, t) for t in range(TOTAL)], rel=1e-9)
    assert rates == run(learning_rate(name, -1)) == run(learning_rate(name, 0))
    factors = [min(1, (t + 1) / 5) for t in range(TOTAL)]
    warmed = [rate * factor for rate, factor in zip(rates, factors, strict=True)]
    assert run(learning_rate(name, 5)) == pytest.approx(warmed, rel=1e-9)


THEIRS = {
    'MultiStepLR': (lr_scheduler.MultiStepRestartLR, {'milestones': [3, 8, 8], 'gamma': 0.1}),
    'MultiStepRestartLR': (lr_scheduler.MultiStepRestartLR, {'milestones': [3, 8, 10, 13],
     'restarts': [0, 10], 'restart_weights': [1, 0.7]}),
    'CosineAnnealingRestartLR': (lr_scheduler.CosineAnnealingRestartLR, {'periods': [11, 10]}),
}  # fmt: skip


@pytest.mark.parametrize('name', THEIRS)
def test_schedules_of_basicsr_give_its_rates_to_the_last_bit(name):
    cls, changes = THEIRS[name]
    options = {**OPTIONS[name], **changes}
    assert run(learning_rate(name, **changes)) == run(cls(optimizer_of(LR), **options))


@pytest.mark.parametrize(('name', 'changes'), [
    ('TrueCosineAnnealingLR', {'T_max': 12}), ('ConstantCosineLR', {'total_iter': 12}),
    ('CosineAnnealingRestartLR', {'periods': [4, 8]}),
    ('CosineAnnealingRestartCyclicLR', {'periods': [4, 8]}),
])  # fmt: skip
def test_a_cosine_that_ends_before_the_training_keeps_its_minimum(name, changes):
    assert run(learning_rate(name, **changes))[12:] == pytest.approx([1e-6] * 8, rel=1e-9)


RESTARTS = {'type': 'CosineAnnealingRestartLR', 'periods': [20], 'restart_weights': [1]}
CONSTANT = {'type': 'ConstantCosineLR', 'constant_iter': 8}
TRUE = {'type': 'TrueCosineAnnealingLR', 'T_max': 20}


@pytest.mark.parametrize(('options', 'key', 'words'), [
    ({'type': 'CosineLR'}, 'type', "Did you mean 'ConstantCosineLR'"),
    ({'type': 'MultiStepLR', 'milestone': [3]}, 'milestone', "Did you mean 'milestones'"),
    ({**CONSTANT, 'constant_iter': 20}, 'constant_iter', 'total_iter (20)'),
    ({**TRUE, 'eta_min': -1e-6}, 'eta_min', 'at least 0'),
    ({**CONSTANT, 'total_iter': 7}, 'constant_iter', 'total_iter (7)'),
    ({**RESTARTS, 'periods': [10]}, 'periods', 'ends at 10, the training at 20'),
    ({**RESTARTS, 'restart_weights': [1, 1]}, 'restart_weights', '2 values for 1 periods'),
])  # fmt: skip
def test_wrong_options_are_named(options, key, words):
    assert words in {p.path: p.message for p in check_schedule(options, TOTAL)}[key]


@pytest.mark.parametrize(('options', 'key', 'words'), [
    ({**TRUE, 'T_max': 15}, 'T_max', 'ends at 15, the training at 20'),
    ({**RESTARTS, 'periods': [21]}, 'periods', 'ends at 21'),
    ({'type': 'MultiStepLR', 'milestones': [9, 20, 25]}, 'milestones', '[25] are never'),
    (CONSTANT, None, None),
])  # fmt: skip
def test_an_end_beside_that_of_the_training_is_worth_a_warning(options, key, words):
    (problem,) = [*check_schedule(options, TOTAL)] or [None]
    assert (problem and (problem.path, problem.kind)) == (key and (key, 'warning'))
    assert problem is None or words in problem.message
