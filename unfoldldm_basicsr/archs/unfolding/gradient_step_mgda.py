"""MGDA, the multi-granularity gradient step of UnfoldLDM (arXiv 2511.18152).

From the last estimate x and the observation y one stage takes two gradient steps on the data term:

    holistic:    x_hat   = x - lambda_k D^T(D(x) - y),          D(x) = x + U^-1 B (g . A U x)
    decomposed:  x_tilde = x - mu_k W^T (W x M - y) M^T,        D = M^T kron W

Vision-state-space blocks see y once, at low resolution, and everything that describes its
degradation comes from their features: the gains g of every position, the factors W and M from rows
attending to rows and columns to columns, and a vector e that sets the step sizes of every image.
A and B are convolutions on pixel-unshuffled images (U), so D is linear in x and D^T its true
adjoint. A fresh module is the identity: D = I, W = M = I. What the paper leaves open here is
listed in docs/method.md.

Shapes: B batch, c colour channels, h w image, s stride, d_m width, d_e embedding length.
"""

import math
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from unfoldldm_basicsr.archs.layers.blocks import Blocks, NetworkOptions
from unfoldldm_basicsr.archs.layers.norm import mean_std, widened
from unfoldldm_basicsr.archs.layers.resample import Unshuffle
from unfoldldm_basicsr.archs.layers.vss import VSSBlock
from unfoldldm_basicsr.archs.unfolding.degradation import (
    Factor,
    affinity_core,
    cut,
    decomposed_step,
    factor,
    join,
)
from unfoldldm_basicsr.archs.unfolding.stage import Estimates
from unfoldldm_basicsr.ops.image_statistics import image_statistic


class MGDAOptions(NetworkOptions):
    """Options of the gradient step."""

    mgda_dim: PositiveInt = 16
    """Width d_m of MGDA."""
    mgda_stride: Literal[1, 2, 4] = 4
    """The operators A and B work at 1/stride of the resolution, the blocks at half of that."""
    mgda_blocks: PositiveInt = 1
    """VSS blocks that look at the observation."""
    mgda_d_state: PositiveInt = 1
    """State size N of the selective scan."""
    mgda_expand: PositiveInt = 2
    """Inner width of the VSS blocks, in d_m."""
    mgda_op: Literal['vss', 'conv'] = 'vss'
    """Token mixer of the blocks: vss, or conv (no scan, equal cost)."""
    mgda_mode: Literal['both', 'holistic', 'decomposed', 'none'] = 'both'
    """Gradient steps: both, one alone (the missing estimate equals the present one), or none
    (x_hat = x, x_tilde = y). Their step sizes lambda and mu are predicted from the
    degradation embedding and have no key."""
    embed_dim: PositiveInt = 32
    """Length d_e of the degradation embedding."""
    wm_rank: PositiveInt = 8
    """Rank r of the scores q_i . k_j of the factors W, M."""
    wm_window: int | None = Field(None, gt=0, multiple_of=16)
    """Side of windows with factors W, M of their own, in pixels, a multiple of 16, where images are
    larger: that of the training patches, since rows of a photo are not like those of a patch. none
    given: one W and M. For the decomposed step alone."""


class Degradation(NamedTuple):
    """What MGDA has seen of the degradation, for images of one size."""

    embedding: Tensor  # (B, d_e)
    gains: Tensor | None = None  # (B, d_m, h / s, w / s), of the holistic operator
    W: Factor | None = None  # of every image, or of every window (:func:`.degradation.cut`)
    M: Factor | None = None


class HolisticOperator(nn.Module):
    """D(x) = x + U^-1 B (g . A U x), and its adjoint; identity at the start, where B is zero."""

    def __init__(self, options: MGDAOptions):
        super().__init__()
        self.stride, dim = options.mgda_stride, options.mgda_dim
        self.unshuffle = Unshuffle(self.stride)
        pixels = options.inp_channels * self.stride**2
        self.gains = nn.Conv2d(dim, dim, 1)
        self.analysis = nn.Parameter(torch.empty(dim, pixels, 3, 3))
        self.synthesis = nn.Parameter(torch.zeros(pixels, dim, 3, 3))
        nn.init.kaiming_uniform_(self.analysis, a=math.sqrt(5))

    def forward(self, x: Tensor, gains: Tensor) -> Tensor:
        """D(x) for x (B, c, h, w) and the gains (B, d_m, h / s, w / s)."""
        z = F.conv2d(self.unshuffle(x), self.analysis, padding=1) * gains
        return x + self.unshuffle.undo(F.conv2d(z, self.synthesis, padding=1))

    def adjoint(self, r: Tensor, gains: Tensor) -> Tensor:
        """D^T(r)."""
        z = F.conv_transpose2d(self.unshuffle(r), self.synthesis, padding=1) * gains
        return r + self.unshuffle.undo(F.conv_transpose2d(z, self.analysis, padding=1))


class FactorHead(nn.Module):
    """Estimates one factor from per-row (or per-column) descriptors of the trunk features.

    ``unit_gain``: the mean log gain is zero. Needed on one of the two factors, because (aW, M/a) is
    the same degradation.
    """

    def __init__(self, options: MGDAOptions, *, unit_gain: bool):
        super().__init__()
        self.channels, dim = options.inp_channels, options.mgda_dim
        self.unit_gain = unit_gain
        self.conv = nn.Conv1d(2 * dim, dim, 7, padding=3, padding_mode='replicate')
        self.query_key = nn.Conv1d(dim, 2 * self.channels * options.wm_rank, 1)
        self.gain_mix = nn.Conv1d(dim, 2 * self.channels, 1)
        nn.init.zeros_(self.gain_mix.weight)
        nn.init.zeros_(self.gain_mix.bias)
        # softplus^-1 of 0.1 per pixel
        self.decay = nn.Parameter(torch.full((self.channels,), math.log(math.expm1(0.1))))

    def forward(self, descriptor: Tensor, size: int) -> Factor:
        """descriptor (B, 2 d_m, n / 2s), size n -> factor of size n x n per channel."""
        z = F.interpolate(descriptor, size=size, mode='linear')
        z = F.gelu(self.conv(z.to(self.conv.weight.dtype)))
        parts = {'two': 2, 'c': self.channels}
        qk = rearrange(widened(self.query_key(z)), 'b (two c r) n -> b two c n r', **parts)
        gains = rearrange(widened(self.gain_mix(z)), 'b (two c) n -> b two c n', **parts)
        (q, k), (gain, mix) = qk.unbind(1), gains.unbind(1)
        if self.unit_gain:
            log_gain = 0.5 * torch.tanh(gain)
            gain = (log_gain - log_gain.mean(-1, keepdim=True)).exp()
            mix = 0.5 * torch.tanh(mix)
        else:
            gain, mix = 1 + 0.95 * torch.tanh(gain), 0.95 * torch.tanh(mix)
        return factor(gain, mix, affinity_core(q, k, F.softplus(widened(self.decay))))


class MGDA(nn.Module):
    """Both gradient steps of the ``num_stages`` stages that share this module; each of them has its
    own step sizes.
    """

    def __init__(self, options: MGDAOptions, *, num_stages: int = 1):
        super().__init__()
        self.channels, dim = options.inp_channels, options.mgda_dim
        self.holistic = options.mgda_mode in ('both', 'holistic')
        self.decomposed = options.mgda_mode in ('both', 'decomposed')
        self.window = options.wm_window and options.wm_window // (2 * options.mgda_stride)
        if not (self.holistic or self.decomposed):
            return
        stride, mixer = 2 * options.mgda_stride, options.mgda_op
        block = {'d_state': options.mgda_d_state, 'expand': options.mgda_expand, 'mixer': mixer}
        self.trunk = Blocks(
            Unshuffle(stride),
            nn.Conv2d(self.channels * stride**2, dim, 3, padding=1),
            *(VSSBlock(dim, **block) for _ in range(options.mgda_blocks)),
            use_checkpoint=options.use_checkpoint,
        )
        self.embed = nn.Sequential(
            nn.Linear(2 * dim, options.embed_dim),
            nn.GELU(),
            nn.Linear(options.embed_dim, options.embed_dim),
        )
        if self.holistic:
            self.operator = HolisticOperator(options)
            self.step_holistic = nn.Linear(options.embed_dim, self.channels * num_stages)
        if self.decomposed:
            self.rows = FactorHead(options, unit_gain=False)
            self.columns = FactorHead(options, unit_gain=True)
            self.step_decomposed = nn.Linear(options.embed_dim, num_stages)
        for name in ('step_holistic', 'step_decomposed'):
            if hasattr(self, name):
                nn.init.zeros_(getattr(self, name).weight)
                nn.init.zeros_(getattr(self, name).bias)

    def look(self, y: Tensor) -> tuple[Tensor, Tensor] | None:
        """Features (B, d_m, h / 2s, w / 2s) and embedding (B, d_e) of the observation."""
        if not (self.holistic or self.decomposed):
            return None
        features = self.trunk(y)
        described = torch.cat(mean_std(features, (2, 3), 1e-6), 1)
        embedding = self.embed(described.to(self.embed[0].weight.dtype))
        return features, image_statistic(embedding)

    def estimate(self, seen: tuple[Tensor, Tensor] | None, size: torch.Size) -> Degradation | None:
        """The degradation of images of ``size`` (h, w), from what :meth:`look` has seen.

        That may be half or a quarter of the size of y: coarse stages share the features.
        """
        if seen is None:
            return None
        features, embedding = seen
        gains = W = M = None
        if self.holistic:
            at = [side // self.operator.stride for side in size]
            gains = F.interpolate(self.operator.gains(features), at, mode='nearest')
        if self.decomposed:
            height, width = size
            if self.window and max(features.shape[2:]) > self.window:
                height = width = height * self.window // features.shape[2]
                features = cut(features, self.window)
            W = self.rows(torch.cat(mean_std(features, (3,), 1e-6), 1), height)
            M = self.columns(torch.cat(mean_std(features, (2,), 1e-6), 1), width)
        return Degradation(embedding, gains, W, M)

    def forward(self, x: Tensor, y: Tensor, k: int, degradation: Degradation | None) -> Estimates:
        """One gradient step of stage ``k`` (from 0); x, y (B, c, h, w), h and w multiples of the
        stride, ``degradation`` that of y, None without a gradient step (``mgda_mode`` none).
        """
        if degradation is None:
            return Estimates(x, y)
        e, gains, W, M = degradation
        steps = []
        if self.holistic:  # lambda = sigmoid(.) per image and channel starts at 0.5
            step = rearrange(self.step_holistic(e), 'b (k c) -> k b c 1 1', c=self.channels)[k]
            residual = self.operator(x, gains) - y
            steps.append(x - torch.sigmoid(step) * self.operator.adjoint(residual, gains))
        if self.decomposed:  # the factor 0.2 + 1.6 sigmoid(.) per image starts at 1
            step = 0.2 + 1.6 * torch.sigmoid(self.step_decomposed(e)[:, k, None, None, None])
            with torch.autocast('cuda' if x.is_cuda else 'cpu', enabled=False):
                steps.append(_in_windows(widened(x), widened(y), W, M, widened(step)).to(x))
        return Estimates(steps[0], steps[-1], W, M)  # of one alone twice the same


def _in_windows(x: Tensor, y: Tensor, W: Factor, M: Factor, step: Tensor) -> Tensor:
    """:func:`decomposed_step` with the factors of each image, or of each of its windows."""
    side = W.matrix.shape[-1]
    if len(W.matrix) == len(x):
        return decomposed_step(x, y, W, M, step)
    step = step.repeat_interleave(len(W.matrix) // len(x), 0)
    return join(decomposed_step(cut(x, side), cut(y, side), W, M, step), x.shape[2:])
