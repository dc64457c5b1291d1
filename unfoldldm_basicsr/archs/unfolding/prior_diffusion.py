"""The latent diffusion of DR-LDM over one prior vector, T steps (T = 3), x0 parameterisation.

    P_T = sqrt(abar_T) P + sqrt(1 - abar_T) eps
    P_0 = f_theta(P_t, t, P_c),     P_{t-1} = c1_t P_0 + c2_t P_t,     t = T..1
    c1_t = beta_t sqrt(abar_{t-1}) / (1 - abar_t)
    c2_t = (1 - abar_{t-1}) sqrt(alpha_t) / (1 - abar_t)

The posterior mean is used without noise, and the last step returns f_theta's own prediction, as in
DiffIR: with T = 3 this is a short conditional regression, not a sampler of diverse priors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfoldldm_basicsr.common.suggest import check_choice

PARAMETERISATIONS = ('x0', 'eps')
TRAIN_STARTS = ('qsample', 'noise')
INFER_NOISES = ('fixed', 'random', 'zero')


def diffusion_schedule(
    num_timesteps: int, beta_start: float = 0.1, beta_end: float = 0.99
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """beta (linear in its square root), abar, c1 and c2, each (T,), index 0 is t = 1.

    One step alone takes ``beta_end``: with ``beta_start`` it would be trained on a nearly clean
    vector and started from pure noise.
    """
    options = {'dtype': torch.float64, 'device': 'cpu'}  # values, also under a meta device
    if num_timesteps == 1:
        beta = torch.tensor([beta_end], **options)
    else:
        ends = beta_start**0.5, beta_end**0.5
        beta = torch.linspace(*ends, num_timesteps, **options).square()
    abar = torch.cumprod(1 - beta, 0)
    before = torch.cat([abar.new_ones(1), abar[:-1]])
    c1 = beta * before.sqrt() / (1 - abar)
    c2 = (1 - before) * (1 - beta).sqrt() / (1 - abar)
    return beta, abar, c1, c2


class Denoiser(nn.Module):
    """f_theta(P_t, t, P_c): a small residual MLP with a learned embedding of t.

    Args:
        prior_dim: C_p.
        num_timesteps: T.
        dim: hidden width.
        num_layers: residual layers.
    """

    def __init__(self, prior_dim: int, num_timesteps: int, *, dim: int = 128, num_layers: int = 2):
        super().__init__()
        self.time = nn.Embedding(num_timesteps, 32)
        self.proj_in = nn.Linear(2 * prior_dim + 32, dim)
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(num_layers))
        self.proj_out = nn.Linear(dim, prior_dim)

    def forward(self, p: Tensor, t: int, condition: Tensor) -> Tensor:
        """p, condition (B, C_p), t in 1..T -> (B, C_p)."""
        time = self.time.weight[t - 1].expand(p.shape[0], -1)
        z = self.proj_in(torch.cat([p, condition, time], 1))
        for layer in self.layers:
            z = z + F.leaky_relu(layer(z), 0.1)
        return self.proj_out(z)


class PriorDiffusion(nn.Module):
    """Generates P from a condition; trained by running the whole chain.

    Args:
        prior_dim: C_p.
        num_stages: K; every stage has its own start noise.
        num_timesteps: T.
        beta_start, beta_end: ends of the schedule.
        param: what f_theta predicts, 'x0' or 'eps'.
        train_start: 'qsample' (noised target) or 'noise' (as at inference).
        infer_noise: 'fixed' (stored with the weights, the same for every item of every batch),
            'random' (drawn from torch's generator) or 'zero'.
        dim, num_layers: of f_theta.

    Raises:
        ValueError: an unknown choice, or ``num_timesteps`` below 1.
    """

    def __init__(
        self,
        prior_dim: int = 64,
        *,
        num_stages: int = 3,
        num_timesteps: int = 3,
        beta_start: float = 0.1,
        beta_end: float = 0.99,
        param: str = 'x0',
        train_start: str = 'qsample',
        infer_noise: str = 'fixed',
        dim: int = 128,
        num_layers: int = 2,
    ):
        super().__init__()
        check_choice('diffusion_param', param, PARAMETERISATIONS)
        check_choice('train_start', train_start, TRAIN_STARTS)
        check_choice('infer_noise', infer_noise, INFER_NOISES)
        if num_timesteps < 1:
            raise ValueError(f'num_timesteps must be at least 1, got {num_timesteps}.')
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(
                f'0 < beta_start <= beta_end < 1 is required, got {beta_start} and {beta_end}.'
            )
        self.param, self.train_start, self.infer_noise = param, train_start, infer_noise
        _, abar, c1, c2 = diffusion_schedule(num_timesteps, beta_start, beta_end)
        self.abar, self.c1, self.c2 = abar.tolist(), c1.tolist(), c2.tolist()
        self.denoise = Denoiser(prior_dim, num_timesteps, dim=dim, num_layers=num_layers)
        noise = torch.randn(
            num_stages, prior_dim, generator=torch.Generator('cpu').manual_seed(0), device='cpu'
        )
        self.register_buffer('start_noise', noise.to(torch.get_default_device()))

    def forward(self, condition: Tensor, k: int, target: Tensor | None = None) -> Tensor:
        """condition (B, C_p) of stage ``k`` (from 0) -> generated prior (B, C_p).

        ``target`` (B, C_p) is used in training with ``train_start='qsample'`` only.
        """
        p = self._start(condition, k, target if self.training else None)
        for t in range(len(self.abar), 0, -1):
            p0 = self.denoise(p, t, condition)
            if self.param == 'eps':
                a = self.abar[t - 1]
                p0 = (p - (1 - a) ** 0.5 * p0) / a**0.5
            p = self.c1[t - 1] * p0 + self.c2[t - 1] * p
        return p

    def q_sample(self, target: Tensor, noise: Tensor) -> Tensor:
        """P_T from the clean prior; both (B, C_p)."""
        a = self.abar[-1]
        return a**0.5 * target + (1 - a) ** 0.5 * noise

    def _start(self, condition: Tensor, k: int, target: Tensor | None) -> Tensor:
        if self.training:
            noise = torch.randn_like(condition)
            use_target = self.train_start == 'qsample' and target is not None
            return self.q_sample(target, noise) if use_target else noise
        if self.infer_noise == 'random':
            return torch.randn_like(condition)
        if self.infer_noise == 'zero':
            return torch.zeros_like(condition)
        return self.start_noise[k].to(condition).expand_as(condition)
