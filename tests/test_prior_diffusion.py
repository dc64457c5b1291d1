"""The latent diffusion: schedule, chain, starts."""

from __future__ import annotations

import math

import pytest
import torch

from unfoldldm_basicsr.archs.unfolding.prior_diffusion import (
    DiffusionOptions,
    PriorDiffusion,
    diffusion_schedule,
)
from unfoldldm_basicsr.common.declaration import read


def test_three_step_schedule_has_the_published_values():
    beta, abar, c1, c2 = diffusion_schedule(3)
    for ours, values in (
        (beta, [0.1, 0.4298, 0.99]),
        (abar, [0.9, 0.5132, 0.00513]),
        (c1, [1.0, 0.8376, 0.7128]),
        (c2, [0.0, 0.1551, 0.0489]),
    ):
        torch.testing.assert_close(
            ours, torch.tensor(values, dtype=torch.float64), rtol=0, atol=5e-5
        )


@pytest.mark.parametrize('steps', [1, 2, 3, 4, 5, 8])
def test_schedule_ends_in_noise_and_its_last_step_returns_the_prediction(steps):
    beta, abar, c1, c2 = diffusion_schedule(steps)
    assert beta[-1] == pytest.approx(0.99)
    assert abar[-1] < 0.02
    assert c1[0] == pytest.approx(1, abs=1e-12)
    assert c2[0] == 0
    # The posterior mean of a noise-free pair (P_t = sqrt(abar_t) P) is sqrt(abar_{t-1}) P.
    for t in range(1, steps):
        clean = c1[t] + c2[t] * abar[t].sqrt()
        assert clean.item() == pytest.approx(abar[t - 1].sqrt().item())


def test_eps_and_x0_agree_for_a_perfect_denoiser():
    target, noise = torch.randn(2, 4, 16, dtype=torch.float64).unbind(0)
    ends = []
    for param in ('x0', 'eps'):
        net = PriorDiffusion(DiffusionOptions(prior_dim=16, diffusion_param=param))

        class Perfect(torch.nn.Module):
            def forward(self, p, t, condition, net=net):
                a = net.abar[t - 1]
                return target if net.param == 'x0' else (p - a**0.5 * target) / (1 - a) ** 0.5

        net.denoise = Perfect()
        net.eval()
        net.start_noise = noise[:1]
        ends.append(net(torch.zeros(4, 16, dtype=torch.float64), 0))
        torch.testing.assert_close(ends[-1], target, rtol=0, atol=1e-9)


def test_training_starts_from_the_noised_target_or_from_noise():
    target = torch.full((512, 8), 3.0)
    seen = {}
    for start in ('qsample', 'noise'):
        net = PriorDiffusion(DiffusionOptions(prior_dim=8, train_start=start)).train()
        p = net._start(torch.zeros(512, 8), 0, target)
        seen[start] = (p.mean().item(), p.std().item())
    a = net.abar[-1]
    assert seen['qsample'][0] == pytest.approx(3 * math.sqrt(a), abs=0.05)
    assert seen['qsample'][1] == pytest.approx(math.sqrt(1 - a), abs=0.05)
    assert seen['noise'][0] == pytest.approx(0, abs=0.05)


def test_inference_noise_is_fixed_zero_or_random():
    condition = torch.randn(3, 8)
    ends = {}
    for noise in ('fixed', 'zero', 'random'):
        torch.manual_seed(1)
        net = PriorDiffusion(DiffusionOptions(prior_dim=8, infer_noise=noise), num_stages=2).eval()
        first, second = net(condition, 1), net(condition, 1)
        ends[noise] = first
        assert torch.equal(first, second) == (noise != 'random')
    assert not torch.equal(ends['fixed'], ends['zero'])
    net = PriorDiffusion(DiffusionOptions(prior_dim=8), num_stages=2).eval()
    assert not torch.equal(net(condition, 0), net(condition, 1))  # each stage has its own start


def test_gradient_reaches_all_parameters_through_the_whole_chain():
    net = PriorDiffusion(DiffusionOptions(prior_dim=8))
    net(torch.randn(4, 8), 0, torch.randn(4, 8)).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in net.parameters())
    assert (net.denoise.time.weight.grad.abs().amax(1) > 0).all()  # every time step


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'diffusion_param': 'v'}, 'diffusion_param'),
        ({'infer_noise': 'fixd'}, "Did you mean 'fixed'"),
        ({'num_timesteps': 0}, 'num_timesteps'),
        ({'beta_start': 0.5, 'beta_end': 0.1}, 'beta_start'),
    ],
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        read(DiffusionOptions, kwargs)
