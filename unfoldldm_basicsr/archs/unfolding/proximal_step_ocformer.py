"""OCFormer, the proximal step of UnfoldLDM (arXiv 2511.18152).

A three-level U-shaped network turns both gradient-step estimates and the prior into what is added
to x_hat (or x) for the next estimate. It works on pixel-unshuffled images, at half the resolution:

    F <- F + beta . DRA(LN F)      one estimate's features gate, or attend to, the other's
    F <- F + gamma . PDR(LN F, P)  features modulated by the prior, then a simple gate
    output = U^-1 conv(F)

No block averages over the image: what is global comes in with the prior, and with the attention
between channels at the lowest resolution. The simple gate (one half times the other) is NAFNet's;
the paper fixes neither widths nor depths.

Shapes: B batch, d width of the level, C_p prior length.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, Strict, model_validator
from torch import Tensor, nn

from unfoldldm_basicsr.archs.layers.attention import (
    attend_and_project,
    channel_attention_map,
    check_heads,
)
from unfoldldm_basicsr.archs.layers.blocks import Blocks, NetworkOptions
from unfoldldm_basicsr.archs.layers.feed_forward import simple_gate
from unfoldldm_basicsr.archs.layers.layout import to_quick_layout
from unfoldldm_basicsr.archs.layers.norm import LayerNorm2d
from unfoldldm_basicsr.archs.layers.resample import Unshuffle, crop_to, pad_to_multiple
from unfoldldm_basicsr.archs.unfolding.stage import PriorVectorOptions

Levels = Annotated[tuple[NonNegativeInt, ...], Strict(False), Field(min_length=3, max_length=3)]
SQUEEZE = 2  # of the images; levels 1 to 3 work at 1/2, 1/4, 1/8 of the resolution


class OCFormerOptions(NetworkOptions, PriorVectorOptions):
    """Options of the proximal step."""

    dim: int = Field(32, gt=0)
    """Width d at half the resolution, even; the levels have d, 2d, 4d channels."""
    num_blocks: Levels = (1, 1, 1)
    """Blocks of the three levels; the decoder repeats those of levels 1 and 2."""
    heads: Levels = (0, 0, 4)
    """Attention heads of the three levels; 0: gated depthwise convolutions instead of attention."""
    dra: Literal['hat_q', 'tilde_q', 'self'] = 'hat_q'
    """Which estimate's half of the channels asks (or gates) the other's; self: both from all
    channels."""
    pdr: Literal['gate', 'film', 'none'] = 'film'
    """Prior modulation: gate (scale), film (scale and shift) or none, for ``use_ldm: false``."""

    @model_validator(mode='after')
    def _widths(self) -> 'OCFormerOptions':
        if self.dim % 2:
            raise ValueError(f'dim must be even (half from each estimate), got {self.dim}.')
        for level, heads in enumerate(self.heads):
            if heads:
                check_heads(self.dim << level, heads)
        return self

    @property
    def uses_prior(self) -> bool:
        """Whether any part of OCFormer sees the prior."""
        return self.pdr != 'none'


class PriorGate(nn.Module):
    """z (1 + Lin(P)), with ``shift`` also + Lin(P); Lin has no bias, so P = 0 is the identity."""

    def __init__(self, dim: int, prior_dim: int, *, shift: bool = False):
        super().__init__()
        self.linear = nn.Linear(prior_dim, dim * (2 if shift else 1), bias=False)
        self.shift = shift
        nn.init.normal_(self.linear.weight, std=0.02)

    def forward(self, z: Tensor, prior: Tensor) -> Tensor:
        """z (B, dim, H, W), prior (B, C_p) -> like z."""
        gate = self.linear(prior.to(self.linear.weight.dtype))[..., None, None].to(z.dtype)
        if self.shift:
            scale, shift = gate.chunk(2, 1)
            return torch.addcmul(shift, z, 1 + scale)
        return z * (1 + gate)


class DRA(nn.Module):
    """Degradation-resistant attention between the halves of the channels.

    At the first level the first half of the channels stems from x_hat, the second from x_tilde.
    With heads: queries from one half, keys and values from the other, attention between channels.
    Without: a gate from one half times values from the other, at every position. ``mode`` is the
    option ``dra``.
    """

    def __init__(self, dim: int, num_heads: int, *, mode: str = 'hat_q'):
        super().__init__()
        self.mode = mode
        source = dim if mode == 'self' else dim // 2
        values = 2 * dim if num_heads else dim
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1)) if num_heads else None
        self.q = nn.Conv2d(source, dim, 1)
        self.q_dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.kv = nn.Conv2d(source, values, 1)
        self.kv_dwconv = nn.Conv2d(values, values, 3, padding=1, groups=values)
        self.project_out = nn.Conv2d(dim, dim, 1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, d, H, W) -> (B, d, H, W)."""
        first, second = (z, z) if self.mode == 'self' else z.chunk(2, 1)
        if self.mode == 'tilde_q':
            first, second = second, first
        q, v = self.q_dwconv(self.q(first)), self.kv_dwconv(self.kv(second))
        if self.temperature is None:
            return self.project_out(q * v)
        k, v = v.chunk(2, 1)
        attention = channel_attention_map(q, k, self.temperature)
        return attend_and_project(attention, v, self.project_out)


class OCFormerBlock(nn.Module):
    """DRA, then PDR, both pre-normalised and residual; a fresh block is the identity."""

    def __init__(self, dim: int, num_heads: int, options: OCFormerOptions):
        super().__init__()
        pdr = options.pdr
        self.norm1, self.norm2 = LayerNorm2d(dim), LayerNorm2d(dim)
        self.dra = DRA(dim, num_heads, mode=options.dra)
        gate = None if pdr == 'none' else PriorGate(dim, options.prior_dim, shift=pdr == 'film')
        self.gate = gate
        self.project_in, self.project_out = nn.Conv2d(dim, 2 * dim, 1), nn.Conv2d(dim, dim, 1)
        self.beta = nn.Parameter(torch.zeros(dim, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(dim, 1, 1))

    def forward(self, z: Tensor, prior: Tensor | None) -> Tensor:
        """z (B, d, H, W), prior (B, C_p) -> like z."""
        z = torch.addcmul(z, self.dra(self.norm1(z)), self.beta)
        b = self.norm2(z)
        b = b if self.gate is None else self.gate(b, prior)
        return torch.addcmul(z, self.project_out(simple_gate(self.project_in(b))), self.gamma)


class OCFormer(nn.Module):
    """The proximal step of all stages that share this module."""

    def __init__(self, options: OCFormerOptions):
        super().__init__()
        pixels, d = options.inp_channels * SQUEEZE**2, options.dim

        def blocks(level: int) -> Blocks:
            count, heads = options.num_blocks[level], options.heads[level]
            parts = (OCFormerBlock(d << level, heads, options) for _ in range(count))
            return Blocks(*parts, use_checkpoint=options.use_checkpoint)

        def down(width: int) -> nn.Module:
            return nn.Conv2d(width, 2 * width, 2, stride=2)

        def up(width: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(width, 2 * width, 1, bias=False), nn.PixelShuffle(2))

        self.unshuffle = Unshuffle(SQUEEZE)
        self.embed_hat = nn.Conv2d(pixels, d // 2, 3, padding=1)
        self.embed_tilde = nn.Conv2d(pixels, d // 2, 3, padding=1)
        self.encoder1, self.down1 = blocks(0), down(d)
        self.encoder2, self.down2 = blocks(1), down(2 * d)
        self.latent = blocks(2)
        self.up2, self.decoder2 = up(4 * d), blocks(1)
        self.up1, self.decoder1 = up(2 * d), blocks(0)
        self.output = nn.Conv2d(d, pixels, 3, padding=1)

    def forward(self, x_hat: Tensor, x_tilde: Tensor, prior: Tensor | None) -> Tensor:
        """x_hat, x_tilde (B, c, h, w), h, w multiples of 4; prior (B, C_p) -> like x_hat."""
        (x_hat, size), (x_tilde, _) = (pad_to_multiple(x, 8) for x in (x_hat, x_tilde))
        hat, tilde = self.unshuffle(x_hat), self.unshuffle(x_tilde)
        z1 = torch.cat([self.embed_hat(hat), self.embed_tilde(tilde)], 1)
        z1 = self.encoder1(to_quick_layout(z1), prior)
        z2 = self.encoder2(self.down1(z1), prior)
        z3 = self.latent(self.down2(z2), prior)
        z = self.decoder2(self.up2(z3) + z2, prior)
        z = self.decoder1(self.up1(z) + z1, prior)
        return crop_to(self.unshuffle.undo(self.output(z)), size)
