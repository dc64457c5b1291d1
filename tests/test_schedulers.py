"""Learning-rate schedules against their formulas, with and without warm-up."""

from __future__ import annotations

import math

import pytest
import torch

from unfoldldm_basicsr.training.schedules import (
    SCHEDULES,
    advance,
    build_schedule,
    check_schedule,
    warmup_factor,
)

LR, TOTAL = 2e-4, 20
OPTIONS = {
    'MultiStepLR': {'milestones': [3, 8], 'gamma': 0.5},
    'MultiStepRestartLR': {'milestones': [3, 8], 'gamma': 0.5},
    'CosineAnnealingRestartLR': {'periods': [12, 8], 'restart_weights': [1, 0.5], 'eta_min': 1e-6},
    'ConstantCosineLR': {'constant_iter': 8, 'eta_min': 1e-6},
    'TrueCosineAnnealingLR': {'T_max': TOTAL, 'eta_min': 1e-6},
    'CosineAnnealingRestartCyclicLR': {
        'periods': [12, 8],
        'restart_weights': [1, 0.5],
        'eta_mins': [1e-4, 1e-6],
    },
}


def cosine(high: float, low: float, share: float) -> float:
    return low + (high - low) * (1 + math.cos(math.pi * share)) / 2


def expected(name: str, t: int) -> float:
    """Learning rate after ``t`` steps of the schedule."""
    if name.startswith('MultiStep'):
        return LR * 0.5 ** sum(t >= milestone for milestone in (3, 8))
    if name == 'ConstantCosineLR':
        return LR if t < 8 else cosine(LR, 1e-6, (t - 8) / 12)
    if name == 'TrueCosineAnnealingLR':
        return cosine(LR, 1e-6, t / TOTAL)
    first = t <= 12  # the last point of a cycle is its minimum
    share = t / 12 if first else (t - 12) / 8
    if name == 'CosineAnnealingRestartLR':
        return 1e-6 + (1 if first else 0.5) * (cosine(LR, 1e-6, share) - 1e-6)
    if first:
        return cosine(LR, 1e-4, share)
    return cosine(1e-6 + 0.5 * (LR - 1e-6), 1e-6, share)


def schedule(name: str):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=LR)
    return optimizer, build_schedule(optimizer, {'type': name, **OPTIONS[name]}, TOTAL)


def run(optimizer, scheduler, iterations, warmup_iter: int) -> list[float]:
    rates = []
    for iteration in iterations:
        advance(scheduler, iteration, warmup_iter)
        optimizer.step()
        rates.append(optimizer.param_groups[0]['lr'])
    return rates


def test_every_scheduler_is_covered():
    assert set(OPTIONS) == set(SCHEDULES)


@pytest.mark.parametrize('name', OPTIONS)
def test_schedule_follows_its_formula(name):
    rates = run(*schedule(name), range(1, TOTAL + 1), -1)
    assert rates == pytest.approx([expected(name, t) for t in range(TOTAL)], rel=1e-9)


@pytest.mark.parametrize('name', OPTIONS)
def test_warmup_scales_the_schedule_and_leaves_it_exactly(name):
    rates = run(*schedule(name), range(1, TOTAL + 1), 5)
    wanted = [expected(name, t) * min(1, (t + 1) / 5) for t in range(TOTAL)]
    assert rates == pytest.approx(wanted, rel=1e-9)


def test_warmup_of_a_constant_schedule_is_a_line_to_the_base_rate():
    optimizer, scheduler = schedule('ConstantCosineLR')
    rates = run(optimizer, scheduler, range(1, 8), 5)
    assert rates == pytest.approx([LR * k / 5 for k in (1, 2, 3, 4, 5, 5, 5)])


@pytest.mark.parametrize('warmup_iter', [-1, 0, None])
def test_no_warmup_means_factor_one(warmup_iter):
    assert warmup_factor(1, warmup_iter) == 1.0


@pytest.mark.parametrize('name', OPTIONS)
def test_resuming_inside_the_warmup_changes_nothing(name):
    whole = run(*schedule(name), range(1, TOTAL + 1), 6)
    optimizer, scheduler = schedule(name)
    run(optimizer, scheduler, range(1, 5), 6)
    state = optimizer.state_dict(), scheduler.state_dict()
    optimizer, scheduler = schedule(name)
    optimizer.load_state_dict(state[0])
    scheduler.load_state_dict(state[1])
    assert run(optimizer, scheduler, range(5, TOTAL + 1), 6) == whole[4:]


@pytest.mark.parametrize(
    ('options', 'key', 'words'),
    [
        ({'type': 'CosineLR'}, 'type', "Did you mean 'ConstantCosineLR'"),
        ({'type': 'MultiStepLR', 'milestone': [3]}, 'milestone', "Did you mean 'milestones'"),
        ({'type': 'ConstantCosineLR', 'eta_min': 0}, 'constant_iter', 'is missing'),
        ({'type': 'ConstantCosineLR', 'constant_iter': 20}, 'constant_iter', 'total_iter'),
        (
            {'type': 'CosineAnnealingRestartLR', 'periods': [5, 5], 'restart_weights': [1, 1]},
            'periods',
            'sum to 10',
        ),
        (
            {'type': 'CosineAnnealingRestartLR', 'periods': [20], 'restart_weights': [1, 1]},
            'restart_weights',
            '2 values for 1 periods',
        ),
        (
            {'type': 'CosineAnnealingRestartLR', 'periods': 20, 'restart_weights': [1]},
            'periods',
            'must be a list',
        ),
        ({'type': 'MultiStepLR', 'milestones': ['3']}, 'milestones.0', "a number, got '3'"),
        ({'type': 'TrueCosineAnnealingLR', 'T_max': 0}, 'T_max', 'greater than 0'),
        ({'type': 'TrueCosineAnnealingLR', 'T_max': 20, 'eta_min': 1e-3}, 'eta_min', 'rise'),
    ],
)
def test_wrong_options_are_named(options, key, words):
    problems = {p.path: p.message for p in check_schedule(options, TOTAL, LR)}
    assert words in problems[key]
