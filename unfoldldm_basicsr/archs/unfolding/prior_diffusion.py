"""The latent diffusion of DR-LDM over one prior vector, T steps (T = 3), x0 parameterisation.

    P_T = sqrt(abar_T) P + sqrt(1 - abar_T) eps
    P_0 = f_theta(P_t, t, P_c),     P_{t-1} = c1_t P_0 + c2_t P_t,     t = T..1
    c1_t = beta_t sqrt(abar_{t-1}) / (1 - abar_t)
    c2_t = (1 - abar_{t-1}) sqrt(alpha_t) / (1 - abar_t)

The posterior mean is used without noise, and the last step returns f_theta's own prediction, as in
DiffIR: with T = 3 this is a short conditional regression, not a sampler of diverse priors.
"""

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from unfoldldm_basicsr.archs.unfolding.stage import PriorVectorOptions

BETAS = (0.1, 0.99)  # first and last of the noise schedule, as in DiffIR


class DiffusionOptions(PriorVectorOptions):
    """Options of the diffusion."""

    num_timesteps: PositiveInt = 3
    """Steps T of the chain."""
    denoiser_dim: PositiveInt = 128
    """Hidden width of f_theta."""
    denoiser_layers: NonNegativeInt = 2
    """Residual layers of f_theta."""


def diffusion_schedule(num_timesteps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """beta (linear in its square root), abar, c1 and c2, each (T,), index 0 is t = 1.

    One step alone takes the last beta: with the first one it would be trained on a nearly clean
    vector and started from pure noise.
    """
    options = {'dtype': torch.float64, 'device': 'cpu'}  # values, also under a meta device
    if num_timesteps == 1:
        beta = torch.tensor(BETAS[1:], **options)
    else:
        ends = (value**0.5 for value in BETAS)
        beta = torch.linspace(*ends, num_timesteps, **options).square()
    abar = torch.cumprod(1 - beta, 0)
    before = torch.cat([abar.new_ones(1), abar[:-1]])
    c1 = beta * before.sqrt() / (1 - abar)
    c2 = (1 - before) * (1 - beta).sqrt() / (1 - abar)
    return beta, abar, c1, c2


class Denoiser(nn.Module):
    """f_theta(P_t, t, P_c): a small residual MLP with a learned embedding of t."""

    def __init__(self, options: DiffusionOptions):
        super().__init__()
        prior_dim, dim = options.prior_dim, options.denoiser_dim
        self.time = nn.Embedding(options.num_timesteps, 32)
        self.proj_in = nn.Linear(2 * prior_dim + 32, dim)
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(options.denoiser_layers))
        self.proj_out = nn.Linear(dim, prior_dim)

    def forward(self, p: Tensor, t: int, condition: Tensor) -> Tensor:
        """p, condition (B, C_p), t in 1..T -> (B, C_p)."""
        time = self.time.weight[t - 1].expand(p.shape[0], -1)
        z = self.proj_in(torch.cat([p, condition, time], 1).to(time.dtype))
        for layer in self.layers:
            z = z + F.leaky_relu(layer(z), 0.1)
        return self.proj_out(z)


class PriorDiffusion(nn.Module):
    """Generates P from a condition; trained by running the whole chain.

    Each of the K stages has its own start noise, stored with the weights, so that the same input
    gives the same prior in any batch.
    """

    def __init__(self, options: DiffusionOptions, *, num_stages: int = 1):
        super().__init__()
        _, abar, c1, c2 = diffusion_schedule(options.num_timesteps)
        self.abar, self.c1, self.c2 = abar.tolist(), c1.tolist(), c2.tolist()
        self.denoise = Denoiser(options)
        generator = torch.Generator('cpu').manual_seed(0)
        noise = torch.randn(num_stages, options.prior_dim, generator=generator, device='cpu')
        self.register_buffer('start_noise', noise.to(torch.get_default_device()))

    def forward(self, condition: Tensor, k: int, target: Tensor | None = None) -> Tensor:
        """condition (B, C_p) of stage ``k`` (from 0) -> generated prior (B, C_p).

        In training the chain starts from the noised ``target`` (B, C_p), or without one from noise.
        """
        if self.training:
            p, a = torch.randn_like(condition), self.abar[-1]
            if target is not None:
                p = a**0.5 * target + (1 - a) ** 0.5 * p
        else:
            p = self.start_noise[k].to(condition).expand_as(condition)
        for t in range(len(self.abar), 0, -1):
            p0 = self.denoise(p, t, condition)
            p = self.c1[t - 1] * p0 + self.c2[t - 1] * p
        return p
