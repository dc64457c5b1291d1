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


def test_a_perfect_denoiser_is_followed_from_any_start():
    target = torch.randn(4, 16, dtype=torch.float64)
    net = PriorDiffusion(DiffusionOptions(prior_dim=16)).double().eval()
    net.denoise.forward = lambda p, t, condition: target
    torch.testing.assert_close(net(torch.zeros_like(target), 0), target, rtol=0, atol=1e-9)


def test_training_starts_from_the_noised_target_and_inference_from_stored_noise():
    starts, condition = [], torch.zeros(512, 8)
    net = PriorDiffusion(DiffusionOptions(prior_dim=8), num_stages=2).train()
    net.denoise.register_forward_pre_hook(lambda _, args: starts.append((args[1], args[0])))
    net(condition, 0, torch.full((512, 8), 3.0))
    net(condition, 0)
    target, noise = (p for t, p in starts if t == 3)
    a = net.abar[-1]
    assert target.mean().item() == pytest.approx(3 * math.sqrt(a), abs=0.05)
    assert target.std().item() == pytest.approx(math.sqrt(1 - a), abs=0.05)
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    first, again, second = (net.eval()(condition, k) for k in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)  # each stage has its own start
