"""Restormer's transformer block: x + Attention(Norm(x)), then x + FeedForward(Norm(x))."""

from __future__ import annotations

from torch import Tensor, nn

from unfoldldm_basicsr.archs.layers.attention import TransposedSelfAttention
from unfoldldm_basicsr.archs.layers.feed_forward import GatedFeedForward
from unfoldldm_basicsr.archs.layers.norm import LayerNorm


class TransformerBlock(nn.Module):
    """Channel attention and gated feed-forward, both pre-normalised and residual.

    Args:
        dim: C.
        num_heads: attention heads; divides ``dim``.
        expansion: hidden width of the feed-forward part over ``dim``.
        bias: biases in the convolutions.
        LayerNorm_type: ``WithBias`` or ``BiasFree``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        expansion: float = 2.66,
        bias: bool = False,
        LayerNorm_type: str = 'WithBias',
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, LayerNorm_type)
        self.attn = TransposedSelfAttention(dim, num_heads, bias=bias)
        self.norm2 = LayerNorm(dim, LayerNorm_type)
        self.ffn = GatedFeedForward(dim, expansion=expansion, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))
