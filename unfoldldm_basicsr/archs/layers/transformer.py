"""Restormer's transformer block: x + Attention(Norm(x)), then x + FeedForward(Norm(x))."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, Strict
from torch import Tensor, nn

from unfoldldm_basicsr.archs.layers.attention import TransposedSelfAttention
from unfoldldm_basicsr.archs.layers.blocks import Blocks, NetworkOptions
from unfoldldm_basicsr.archs.layers.feed_forward import GatedFeedForward
from unfoldldm_basicsr.archs.layers.norm import LayerNorm
from unfoldldm_basicsr.common.declaration import Options

PerLevel = Annotated[tuple[NonNegativeInt, ...], Strict(False), Field(min_length=4, max_length=4)]


class BlockOptions(Options):
    """Options of Restormer's transformer blocks, shared by the networks made of them."""

    ffn_expansion_factor: PositiveFloat = 2.66
    """Hidden width of the feed-forward parts over their channels."""
    bias: bool = False
    """Biases in the convolutions of blocks, fusions and output."""
    LayerNorm_type: Literal['WithBias', 'BiasFree'] = 'WithBias'
    """Layer normalisation with or without a learned offset (and, BiasFree, without centring)."""


class UShapeOptions(BlockOptions, NetworkOptions):
    """Options of a four-level U-shaped network of such blocks."""

    dim: PositiveInt = 48
    """Channels of the first level; the levels have dim, 2 dim, 4 dim, 8 dim."""
    num_blocks: PerLevel = (4, 6, 6, 8)
    """Transformer blocks of the four levels; the decoder repeats those of levels 1 to 3."""
    num_refinement_blocks: NonNegativeInt = 4
    """Blocks after the decoder, at full resolution."""
    heads: PerLevel = (1, 2, 4, 8)
    """Attention heads of the four levels."""


class TransformerBlock(nn.Module):
    """Channel attention and gated feed-forward, both pre-normalised and residual.

    Args:
        dim: C.
        num_heads: attention heads; divides ``dim``.
        options: see :class:`BlockOptions`.
    """

    def __init__(self, dim: int, num_heads: int, options: BlockOptions) -> None:
        super().__init__()
        expansion, bias = options.ffn_expansion_factor, options.bias
        self.norm1 = LayerNorm(dim, options.LayerNorm_type)
        self.attn = TransposedSelfAttention(dim, num_heads, bias=bias)
        self.norm2 = LayerNorm(dim, options.LayerNorm_type)
        self.ffn = GatedFeedForward(dim, expansion=expansion, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


def transformer_blocks(dim: int, num_heads: int, count: int, options: UShapeOptions) -> Blocks:
    """``count`` blocks in a row, recomputed for their gradients if the options say so."""
    parts = (TransformerBlock(dim, num_heads, options) for _ in range(count))
    return Blocks(*parts, use_checkpoint=options.use_checkpoint)
