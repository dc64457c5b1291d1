"""The factors W, M with the gradient step on them, and the diffusion of the prior."""

import math

import pytest
import torch

from unfoldldm_basicsr.archs.unfolding.degradation import (
    Factor,
    affinity_core,
    cut,
    decomposed_step,
    factor,
    join,
)
from unfoldldm_basicsr.archs.unfolding.gradient_step_mgda import FactorHead, MGDAOptions
from unfoldldm_basicsr.archs.unfolding.prior_diffusion import (
    DiffusionOptions,
    PriorDiffusion,
    diffusion_schedule,
)


def random_factor(n: int, scale: float = 1.0, channels: int = 2) -> Factor:
    q, k = (scale * torch.randn(2, 1, channels, n, 4, dtype=torch.float64)).unbind(0)
    gain, mix = torch.randn(2, 1, channels, n, dtype=torch.float64).unbind(0)
    return factor(gain, mix, affinity_core(q, k, torch.full((channels,), 0.1).double()))


def degraded(x: torch.Tensor, W: Factor, M: Factor) -> torch.Tensor:
    """(M^T kron W) vec(x) of one image per channel, vec stacks the columns."""
    matrices = zip(M.matrix[0].contiguous(), W.matrix[0], strict=True)  # M.matrix is M^T
    columns = [torch.kron(m, w) @ c.T.flatten() for (m, w), c in zip(matrices, x[0], strict=True)]
    return torch.stack(columns).unflatten(1, x.shape[:1:-1]).mT[None]


def test_decomposed_step_follows_the_gradient_of_the_data_term():
    W, M, one = random_factor(13), random_factor(6), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    x, y = torch.randn(2, 1, 2, 13, 6, dtype=torch.float64).requires_grad_().unbind(0)
    (gradient,) = torch.autograd.grad(0.5 * (degraded(x, W, M) - y).square().sum(), x)
    bound = (W.norm_bound * M.norm_bound).square()[..., None, None]
    step = (x - decomposed_step(x, y, W, M, one)) * bound
    torch.testing.assert_close(step, gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize(('n', 'scale'), [(7, 3.0), (64, 0.1), (150, 30.0)])
def test_norm_bound_holds_for_every_size(n, scale):
    W = random_factor(n, scale)
    assert (torch.linalg.matrix_norm(W.matrix, 2) <= W.norm_bound * (1 + 1e-9)).all()


def test_affinity_norm_is_one_where_a_row_softmax_is_not():
    q = torch.zeros(1, 1, 256, 1, dtype=torch.float64)
    k = torch.zeros_like(q)
    q[:], k[0, 0, 0] = 1.0, 12.0  # every row attends to one column
    core = affinity_core(q, k, torch.zeros(1, dtype=torch.float64))[0, 0]
    softmax = (q @ k.mT).softmax(-1)[0, 0]
    assert torch.linalg.matrix_norm(core, 2) <= 1 + 1e-9
    assert torch.linalg.matrix_norm(softmax, 2) > 10


@pytest.mark.parametrize('step', [0.2, 1.8])
def test_decomposed_step_never_raises_the_data_term(step):
    for _ in range(30):
        W, M = random_factor(9), random_factor(14)
        x, y = torch.randn(2, 1, 2, 9, 14, dtype=torch.float64).unbind(0)
        after = decomposed_step(x, y, W, M, torch.tensor(step, dtype=torch.float64))
        before_loss, after_loss = ((degraded(z, W, M) - y).square().sum((2, 3)) for z in (x, after))
        assert (after_loss <= before_loss * (1 + 1e-12)).all()


@pytest.mark.parametrize('gain', [0.1, 1.9, 0.01])
def test_one_step_inverts_a_change_of_exposure_and_amplifies_noise_at_most_tenfold(gain):
    ones = torch.ones(1, 3, 8, dtype=torch.float64)
    core = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    W, M = factor(gain * ones, 0 * ones, core), factor(ones, 0 * ones, core)
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    step = torch.tensor(1.0, dtype=torch.float64)
    if gain >= 0.1:
        restored = decomposed_step(gain * x, gain * x, W, M, step)
        torch.testing.assert_close(restored, x, rtol=0, atol=1e-12)
    assert decomposed_step(0 * x, torch.ones_like(x), W, M, step).abs().max() <= 10 + 1e-9


def test_head_fixes_the_scale():
    head = FactorHead(MGDAOptions(mgda_dim=8, wm_rank=4), unit_gain=True)
    torch.nn.init.normal_(head.gain_mix.weight[:3])  # the gains alone, so the factor is diagonal
    gain = head(torch.randn(2, 16, 20), 40).matrix.diagonal(dim1=2, dim2=3)
    assert gain.std() > 0.05
    torch.testing.assert_close(gain.log().mean(-1), torch.zeros(2, 3), rtol=0, atol=1e-5)


def test_three_step_schedule_has_the_published_values():
    beta, abar, c1, c2 = diffusion_schedule(3)
    for ours, values in (
        (beta, [0.1, 0.4298, 0.99]),
        (abar, [0.9, 0.5132, 0.00513]),
        (c1, [1.0, 0.8376, 0.7128]),
        (c2, [0.0, 0.1551, 0.0489]),
    ):
        values = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(ours, values, rtol=0, atol=5e-5)


@pytest.mark.parametrize('steps', [1, 2, 3, 4, 5, 8])
def test_schedule_ends_in_noise_and_its_last_step_returns_the_prediction(steps):
    beta, abar, c1, c2 = diffusion_schedule(steps)
    assert beta[-1] == pytest.approx(0.99)
    assert abar[-1] < 0.02
    assert c1[0] == pytest.approx(1, abs=1e-12)
    assert c2[0] == 0
    # The posterior mean of a noise-free pair (P_t = sqrt(abar_t) P) is sqrt(abar_{t-1}) P.
    for t in range(1, steps):
        assert c1[t] + c2[t] * abar[t].sqrt().item() == pytest.approx(abar[t - 1].sqrt().item())


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


def test_windows_fade_into_each_other():
    for size, count in (((16, 24), 3 * 5), ((17, 5), 4 * 1), ((3, 9), 1 * 2)):
        image = torch.rand(2, 3, *size)
        windows = cut(image, 8)
        assert windows.shape == (2 * count, 3, 8, 8)
        torch.testing.assert_close(join(windows, image.shape[2:]), image)
    ramp = join(torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 1, 8, 8), (8, 16))[0, 0]
    assert (ramp.diff(dim=1) >= 0).all()
    assert ramp.diff(dim=1).max() < 0.5  # no seam, where windows side by side differ by 1
    torch.testing.assert_close(ramp[0], ramp[5])
