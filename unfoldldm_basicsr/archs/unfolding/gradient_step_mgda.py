"""MGDA, the multi-granularity gradient step of UnfoldLDM (arXiv 2511.18152).

From the last estimate x and the observation y one stage takes two gradient steps on the data term:

    holistic:    x_hat   = x - lambda_k D_k^T(D_k(x) - y)
    decomposed:  x_tilde = x - mu_k W_k^T (W_k x M_k - y) M_k^T,      D = M^T kron W

D and D^T are learned operators built from vision-state-space blocks; W and M come from rows
attending to rows and columns to columns, so that their weights know no image size. A fresh module
is the identity: D = I, W = M = I. What the paper leaves open here is listed in docs/method.md.

Shapes: B batch, c colour channels, h w image, s stride, d_m width, d_e embedding length.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from einops import rearrange
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from unfoldldm_basicsr.archs.layers.blocks import Blocks, NetworkOptions
from unfoldldm_basicsr.archs.layers.vss import VSSBlock
from unfoldldm_basicsr.archs.unfolding.degradation import (
    Factor,
    affinity_core,
    banded_core,
    decomposed_step,
    lowrank_core,
)
from unfoldldm_basicsr.archs.unfolding.stage import Estimates
from unfoldldm_basicsr.ops.image_statistics import image_statistic


class MGDAOptions(NetworkOptions):
    """Options of the gradient step."""

    mgda_dim: PositiveInt = 32
    """Width d_m of MGDA."""
    mgda_stride: Literal[1, 2, 4, 8] = 2
    """MGDA works at 1/stride of the resolution."""
    mgda_blocks: NonNegativeInt = 2
    """VSS blocks in D and in D^T each."""
    mgda_trunk_blocks: NonNegativeInt = 1
    """VSS blocks in the trunk that describes the degradation."""
    mgda_d_state: PositiveInt = 16
    """State size N of the selective scan."""
    mgda_expand: PositiveInt = 2
    """Inner width of the VSS blocks, in d_m."""
    mgda_op: Literal['vss', 'conv'] = 'vss'
    """Token mixer of the blocks: vss, or conv (no scan, equal cost)."""
    mgda_mode: Literal['both', 'holistic', 'decomposed', 'none'] = 'both'
    """Gradient steps: both, one alone (the missing estimate equals the present one), or none
    (x_hat = x, x_tilde = y)."""
    embed_dim: PositiveInt = 32
    """Length d_e of the degradation embedding."""
    wm_mode: Literal['affinity', 'lowrank', 'banded'] = 'affinity'
    """Factors W, M: affinity (dense), lowrank or banded."""
    wm_rank: PositiveInt = 8
    """Rank r of the scores q_i . k_j, and of lowrank."""
    wm_radius: PositiveInt = 32
    """Half-width of banded, in pixels."""


class HolisticOperator(nn.Module):
    """x + H(x; e): a residual VSS network at 1/s resolution, modulated by the embedding e.

    The modulation (FiLM) and the last convolution start at zero: the operator starts as identity.
    """

    def __init__(self, channels: int, dim: int, stride: int, embed_dim: int, blocks: nn.Module):
        super().__init__()
        self.squeeze = nn.PixelUnshuffle(stride)
        self.proj_in = nn.Conv2d(channels * stride**2, dim, 3, padding=1)
        self.film = nn.Linear(embed_dim, 2 * dim)
        self.blocks = blocks
        self.proj_out = nn.Conv2d(dim, channels * stride**2, 3, padding=1)
        self.expand = nn.PixelShuffle(stride)
        for layer in (self.film, self.proj_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """x (B, c, h, w), e (B, d_e) -> (B, c, h, w)."""
        scale, shift = self.film(e)[..., None, None].chunk(2, 1)
        z = self.proj_in(self.squeeze(x))
        return x + self.expand(self.proj_out(self.blocks(z * (1 + scale) + shift)))


class FactorHead(nn.Module):
    """Estimates one factor from per-row (or per-column) descriptors of the trunk features.

    Args:
        options: see :class:`MGDAOptions`.
        unit_gain: the mean log gain is zero. Needed on one of the two factors, because (aW, M/a)
            is the same degradation.
    """

    def __init__(self, options: MGDAOptions, *, unit_gain: bool):
        super().__init__()
        self.mode, self.rank, self.radius = options.wm_mode, options.wm_rank, options.wm_radius
        self.channels, dim = options.inp_channels, options.mgda_dim
        self.unit_gain = unit_gain
        self.conv = nn.Conv1d(2 * dim, dim, 7, padding=3, padding_mode='replicate')
        self.query_key = nn.Conv1d(dim, 2 * self.channels * self.rank, 1)
        self.gain_mix = nn.Conv1d(dim, 2 * self.channels, 1)
        nn.init.zeros_(self.gain_mix.weight)
        nn.init.zeros_(self.gain_mix.bias)
        if self.mode != 'lowrank':  # softplus^-1 of 0.1 per pixel
            self.decay = nn.Parameter(torch.full((self.channels,), math.log(math.expm1(0.1))))

    def forward(self, descriptor: Tensor, size: int) -> Factor:
        """descriptor (B, 2 d_m, n / s), size n -> factor of size n x n per channel."""
        z = F.interpolate(descriptor, size=size, mode='linear')
        z = F.gelu(self.conv(z))
        parts = {'two': 2, 'c': self.channels}
        qk = rearrange(self.query_key(z).float(), 'b (two c r) n -> b two c n r', **parts)
        gains = rearrange(self.gain_mix(z).float(), 'b (two c) n -> b two c n', **parts)
        (q, k), (gain, mix) = qk.unbind(1), gains.unbind(1)
        if self.unit_gain:
            log_gain = 0.5 * torch.tanh(gain)
            gain = (log_gain - log_gain.mean(-1, keepdim=True)).exp()
            mix = 0.5 * torch.tanh(mix)
        else:
            gain, mix = 1 + 0.95 * torch.tanh(gain), 0.95 * torch.tanh(mix)
        if self.mode == 'lowrank':
            return Factor(gain, mix, lowrank_core(q, k))
        decay = F.softplus(self.decay.float())
        if self.mode == 'banded':
            return Factor(gain, mix, banded_core(q, k, decay, self.radius))
        return Factor(gain, mix, affinity_core(q, k, decay))


class MGDA(nn.Module):
    """Both gradient steps of all stages that share this module.

    Args:
        options: see :class:`MGDAOptions`.
        num_stages: how many stages share the weights; each has its own two step sizes.
    """

    def __init__(self, options: MGDAOptions, *, num_stages: int = 1):
        super().__init__()
        channels, dim, stride = options.inp_channels, options.mgda_dim, options.mgda_stride
        self.holistic = options.mgda_mode in ('both', 'holistic')
        self.decomposed = options.mgda_mode in ('both', 'decomposed')

        def blocks(count: int) -> list[VSSBlock]:
            sizes = {'d_state': options.mgda_d_state, 'expand': options.mgda_expand}
            return [VSSBlock(dim, mixer=options.mgda_op, **sizes) for _ in range(count)]

        def operator() -> HolisticOperator:
            parts = Blocks(*blocks(options.mgda_blocks), use_checkpoint=options.use_checkpoint)
            return HolisticOperator(channels, dim, stride, options.embed_dim, parts)

        if self.holistic or self.decomposed:
            self.trunk = Blocks(
                nn.PixelUnshuffle(stride),
                nn.Conv2d(2 * channels * stride**2, dim, 3, padding=1),
                *blocks(options.mgda_trunk_blocks),
                use_checkpoint=options.use_checkpoint,
            )
        if self.holistic:
            self.embed = nn.Sequential(
                nn.Linear(2 * dim, options.embed_dim),
                nn.GELU(),
                nn.Linear(options.embed_dim, options.embed_dim),
            )
            self.forward_op, self.adjoint_op = operator(), operator()
            # lambda = 0.1 + 0.9 sigmoid(a) starts at 0.5
            self.step_holistic = nn.Parameter(torch.full((num_stages,), math.log(4 / 5)))
        if self.decomposed:
            self.rows = FactorHead(options, unit_gain=False)
            self.columns = FactorHead(options, unit_gain=True)
            # factor 0.2 + 1.6 sigmoid(b) starts at 1
            self.step_decomposed = nn.Parameter(torch.zeros(num_stages))

    def degrade(self, x: Tensor, e: Tensor) -> Tensor:
        """The holistic degradation D(x; e)."""
        return self.forward_op(x, e)

    def degrade_adjoint(self, r: Tensor, e: Tensor) -> Tensor:
        """The learned stand-in for D^T; positively homogeneous in r, zero for r = 0."""
        scale = (r.square().mean((1, 2, 3), keepdim=True) + 1e-6).sqrt()
        return scale * self.adjoint_op(r / scale, e)

    def forward(self, x: Tensor, y: Tensor, k: int = 0) -> Estimates:
        """One gradient step of stage ``k`` (from 0); x, y (B, c, h, w), h and w multiples of s."""
        if not (self.holistic or self.decomposed):
            return Estimates(x, y)
        features = self.trunk(torch.cat([x, y], 1))
        W = M = e = x_hat = x_tilde = None
        if self.holistic:
            e = image_statistic(self.embed(torch.cat(_mean_std(features, (2, 3)), 1)))
            step = 0.1 + 0.9 * torch.sigmoid(self.step_holistic[k])
            x_hat = x - step * self.degrade_adjoint(self.degrade(x, e) - y, e)
        if self.decomposed:
            W = self.rows(torch.cat(_mean_std(features, (3,)), 1), x.shape[2])
            M = self.columns(torch.cat(_mean_std(features, (2,)), 1), x.shape[3])
            step = 0.2 + 1.6 * torch.sigmoid(self.step_decomposed[k])
            with _full_precision(x.device.type):
                x_tilde = decomposed_step(x.float(), y.float(), W, M, step)
        return Estimates(
            x_tilde if x_hat is None else x_hat, x_hat if x_tilde is None else x_tilde, W, M, e
        )


def _full_precision(device_type: str) -> AbstractContextManager:
    """Switches autocast off where the device has it (the meta device does not)."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _mean_std(features: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over ``dims``, in fp32 (16-bit sums over rows lose digits)."""
    var, mean = torch.var_mean(features.float(), dims, correction=0)
    return mean, (var + 1e-6).sqrt()
