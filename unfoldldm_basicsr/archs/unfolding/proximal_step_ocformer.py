"""OCFormer, the proximal step of UnfoldLDM (arXiv 2511.18152).

A four-level U-shaped transformer turns both gradient-step estimates and the prior into the next
estimate. Each block is

    F <- F + DRA(LN F, P)      attention between the features of both estimates
    F <- F + PDR(LN F, P)      features gated by the prior, then a gated feed-forward network
    x = conv(F) + s_k x_hat + (1 - s_k) x_tilde

The body is Restormer's, whose widths and depths the paper does not fix.

Shapes: B batch, d width of the level, C_p prior length.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from unfoldldm_basicsr.archs.layers.attention import (
    TransposedSelfAttention,
    attend_and_project,
    channel_attention_map,
    check_heads,
)
from unfoldldm_basicsr.archs.layers.blocks import Blocks
from unfoldldm_basicsr.archs.layers.convolution import separable_parts
from unfoldldm_basicsr.archs.layers.feed_forward import GatedFeedForward
from unfoldldm_basicsr.archs.layers.layout import to_quick_layout
from unfoldldm_basicsr.archs.layers.norm import LayerNorm
from unfoldldm_basicsr.archs.layers.resample import Downsample, OverlapPatchEmbed, Upsample
from unfoldldm_basicsr.archs.layers.transformer import PerLevel, UShapeOptions
from unfoldldm_basicsr.archs.unfolding.stage import PriorVectorOptions


class OCFormerOptions(UShapeOptions, PriorVectorOptions):
    """Options of the proximal step."""

    dim: PositiveInt = 32
    """Width d at full resolution, even; the levels have d, 2d, 4d, 8d channels."""
    num_blocks: PerLevel = (2, 3, 3, 4)
    """Transformer blocks of the four levels; the decoder repeats those of levels 1 to 3."""
    num_refinement_blocks: NonNegativeInt = 2
    """Blocks after the decoder, at 2d channels."""
    dra: Literal['hat_q', 'tilde_q', 'self'] = 'hat_q'
    """Attention between the estimates: which one asks, or ordinary self-attention."""
    pdr: Literal['gate', 'film', 'none'] = 'gate'
    """Prior modulation: gate (scale), film (scale and shift) or none."""
    prior_in_attn: bool = True
    """The prior also scales the attention's input."""

    @model_validator(mode='after')
    def _halves(self) -> OCFormerOptions:
        if self.dim % 2:
            raise ValueError(f'dim must be even (half from each estimate), got {self.dim}.')
        return self

    @property
    def uses_prior(self) -> bool:
        """Whether any part of OCFormer sees the prior."""
        return self.pdr != 'none' or self.prior_in_attn


class PriorGate(nn.Module):
    """z (1 + Lin(P)), with ``shift`` also + Lin(P); Lin has no bias, so P = 0 is the identity."""

    def __init__(self, dim: int, prior_dim: int, *, shift: bool = False):
        super().__init__()
        self.linear = nn.Linear(prior_dim, dim * (2 if shift else 1), bias=False)
        self.shift = shift
        nn.init.normal_(self.linear.weight, std=0.02)

    def forward(self, z: Tensor, prior: Tensor) -> Tensor:
        """z (B, dim, H, W), prior (B, C_p) -> like z."""
        gate = self.linear(prior)[..., None, None].to(z.dtype)
        if self.shift:
            scale, shift = gate.chunk(2, 1)
            return z * (1 + scale) + shift
        return z * (1 + gate)


class DRA(nn.Module):
    """Degradation-resistant attention: queries from one estimate, keys and values from the other.

    At the first level the first half of the channels stems from x_hat, the second from x_tilde.

    Args:
        dim: d.
        num_heads: heads.
        mode: 'hat_q', 'tilde_q' (which half asks), or 'self' (ordinary self-attention).
        bias: biases in the convolutions.
    """

    def __init__(self, dim: int, num_heads: int, *, mode: str = 'hat_q', bias: bool = False):
        super().__init__()
        check_heads(dim, num_heads)
        self.swap = mode == 'tilde_q'
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        half = dim // 2
        self.q = nn.Conv2d(half, dim, 1, bias=bias)
        self.q_dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=bias)
        self.kv = nn.Conv2d(half, 2 * dim, 1, bias=bias)
        self.kv_dwconv = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim, bias=bias)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=bias)

    def forward(self, z: Tensor) -> Tensor:
        """(B, d, H, W) -> (B, d, H, W)."""
        first, second = z.chunk(2, 1)
        if self.swap:
            first, second = second, first
        q = self.q_dwconv(self.q(first))
        k, v = separable_parts(second, self.kv, self.kv_dwconv, 2)
        attention = channel_attention_map(q, k, self.temperature)
        return attend_and_project(attention, v, self.project_out)


class OCFormerBlock(nn.Module):
    """DRA, then PDR, both pre-normalised and residual."""

    def __init__(self, dim: int, num_heads: int, options: OCFormerOptions):
        super().__init__()
        o, prior_dim = options, options.prior_dim
        self.norm1 = LayerNorm(dim, o.LayerNorm_type)
        self.norm2 = LayerNorm(dim, o.LayerNorm_type)
        self.attn_gate = PriorGate(dim, prior_dim) if o.prior_in_attn else None
        if o.dra == 'self':
            self.dra = TransposedSelfAttention(dim, num_heads, bias=o.bias)
        else:
            self.dra = DRA(dim, num_heads, mode=o.dra, bias=o.bias)
        self.gate = None if o.pdr == 'none' else PriorGate(dim, prior_dim, shift=o.pdr == 'film')
        self.ffn = GatedFeedForward(dim, expansion=o.ffn_expansion_factor, bias=o.bias)

    def forward(self, z: Tensor, prior: Tensor | None) -> Tensor:
        """z (B, d, H, W), prior (B, C_p) -> like z."""
        a = self.norm1(z)
        z = z + self.dra(a if self.attn_gate is None else self.attn_gate(a, prior))
        b = self.norm2(z)
        return z + self.ffn(b if self.gate is None else self.gate(b, prior))


class OCFormer(nn.Module):
    """The proximal step shared by ``num_stages`` stages.

    Args:
        options: see :class:`OCFormerOptions`.
        num_stages: stages that share the weights; each has its own mix s_k of the two estimates.

    Raises:
        ValueError: heads that do not divide the channels.
    """

    def __init__(self, options: OCFormerOptions, *, num_stages: int = 1):
        super().__init__()
        channels, bias = options.inp_channels, options.bias

        def level(width: int, heads: int, count: int) -> Blocks:
            parts = (OCFormerBlock(width, heads, options) for _ in range(count))
            return Blocks(*parts, use_checkpoint=options.use_checkpoint)

        d, (n1, n2, n3, n4), (h1, h2, h3, h4) = options.dim, options.num_blocks, options.heads
        self.embed_hat = OverlapPatchEmbed(channels, d // 2, bias)
        self.embed_tilde = OverlapPatchEmbed(channels, d // 2, bias)
        self.encoder1, self.down1 = level(d, h1, n1), Downsample(d)
        self.encoder2, self.down2 = level(2 * d, h2, n2), Downsample(2 * d)
        self.encoder3, self.down3 = level(4 * d, h3, n3), Downsample(4 * d)
        self.latent = level(8 * d, h4, n4)
        self.up3, self.reduce3 = Upsample(8 * d), nn.Conv2d(8 * d, 4 * d, 1, bias=bias)
        self.decoder3 = level(4 * d, h3, n3)
        self.up2, self.reduce2 = Upsample(4 * d), nn.Conv2d(4 * d, 2 * d, 1, bias=bias)
        self.decoder2 = level(2 * d, h2, n2)
        self.up1, self.decoder1 = Upsample(2 * d), level(2 * d, h1, n1)
        self.refinement = level(2 * d, h1, options.num_refinement_blocks)
        self.output = nn.Conv2d(2 * d, channels, 3, padding=1, bias=bias)
        nn.init.normal_(self.output.weight, std=1e-3)
        if bias:
            nn.init.zeros_(self.output.bias)
        self.base_mix = nn.Parameter(torch.zeros(num_stages))  # s = sigmoid starts at 0.5

    def forward(self, x_hat: Tensor, x_tilde: Tensor, prior: Tensor | None, k: int = 0) -> Tensor:
        """x_hat, x_tilde (B, c, h, w), h and w multiples of 8; prior (B, C_p) -> (B, c, h, w)."""
        mix = torch.sigmoid(self.base_mix[k])
        return self.detail(x_hat, x_tilde, prior) + mix * x_hat + (1 - mix) * x_tilde

    def detail(self, x_hat: Tensor, x_tilde: Tensor, prior: Tensor | None) -> Tensor:
        """What is added to the mix of the two estimates; arguments and shape as in forward."""
        z1 = torch.cat([self.embed_hat(x_hat), self.embed_tilde(x_tilde)], 1)
        z1 = self.encoder1(to_quick_layout(z1), prior)
        z2 = self.encoder2(self.down1(z1), prior)
        z3 = self.encoder3(self.down2(z2), prior)
        z4 = self.latent(self.down3(z3), prior)
        z = self.decoder3(self.reduce3(torch.cat([self.up3(z4), z3], 1)), prior)
        z = self.decoder2(self.reduce2(torch.cat([self.up2(z), z2], 1)), prior)
        z = self.decoder1(torch.cat([self.up1(z), z1], 1), prior)
        return self.output(self.refinement(z, prior))
