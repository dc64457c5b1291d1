"""Transposed (channel x channel) attention, linear in the number of positions.

    A = softmax(temperature * normalise(q) normalise(k)^T)   per head, (C/heads, C/heads)
    out = A v

Restormer's MDTA (CVPR 2022, section 3.1), also both operators of VLU-Net's gradient step.
Source of the formulas: swz30/Restormer.

Shapes: B batch, C channels, H x W positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_EPS = 1e-12  # floor of the norms, as in torch.nn.functional.normalize


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, C, H, W) -> (B, heads, C/heads, HW), a view in both memory formats."""
    return x.unflatten(1, (heads, -1)).flatten(3)


def channel_attention_map(q: Tensor, k: Tensor, temperature: Tensor) -> Tensor:
    """The attention weights between channels.

    The norms divide the small product instead of the two large operands; in half precision the
    operands are normalised first, because the unnormalised sum over positions could overflow.

    Args:
        q: (B, C, H, W).
        k: (B, C, H, W); a batch of 1 serves every item of q.
        temperature: (heads, 1, 1), heads divides C.

    Returns:
        (B, heads, C/heads, C/heads) in fp32 (fp64 for fp64 input), rows sum to 1.
    """
    heads = temperature.shape[0]
    q, k = _split_heads(q, heads), _split_heads(k, heads)
    wide = torch.promote_types(q.dtype, torch.float32)
    q_norm = torch.linalg.vector_norm(q, dim=-1, keepdim=True, dtype=wide).clamp_min(_EPS)
    k_norm = torch.linalg.vector_norm(k, dim=-1, keepdim=True, dtype=wide).clamp_min(_EPS)
    if q.dtype in (torch.float16, torch.bfloat16):
        q, k = (q / q_norm).to(q.dtype), (k / k_norm).to(k.dtype)
        scores = (q @ k.transpose(-2, -1)).to(wide)
    else:
        scores = (q @ k.transpose(-2, -1)).to(wide) / (q_norm * k_norm.transpose(-2, -1))
    return (scores * temperature.to(wide)).softmax(-1)


def transposed_attention(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    """Channel attention of q over k applied to v.

    Args:
        q: (B, C, H, W).
        k: (B, C, H, W); a batch of 1 serves every item of q.
        v: (B, C, H, W), its positions may differ from those of q and k.
        temperature: (heads, 1, 1), heads divides C.

    Returns:
        (B, C, H, W) of v's positions and dtype.
    """
    attention = channel_attention_map(q, k, temperature).to(v.dtype)
    out = attention @ _split_heads(v, temperature.shape[0])
    return out.view(q.shape[0], *v.shape[1:])


class TransposedSelfAttention(nn.Module):
    """q, k, v from a 1x1 and a depthwise 3x3 convolution, channel attention, 1x1 projection.

    Args:
        dim: C.
        num_heads: heads; divides ``dim``.
        bias: biases in the convolutions.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, num_heads: int, *, bias: bool = False) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim, bias=bias)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        q, k, v = self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1)
        return self.project_out(transposed_attention(q, k, v, self.temperature))


def check_heads(dim: int, num_heads: int) -> None:
    """Raises ValueError unless ``num_heads`` divides ``dim``."""
    if num_heads < 1 or dim % num_heads:
        raise ValueError(
            f'{num_heads} attention heads do not divide {dim} channels; '
            f'choose heads (or dim) so that dim % heads is 0 at every level.'
        )
