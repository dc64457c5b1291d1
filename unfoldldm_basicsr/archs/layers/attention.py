"""Transposed (channel x channel) attention, linear in the number of positions.

    A = softmax(temperature * normalise(q) normalise(k)^T)   per head, (C/heads, C/heads)
    out = A v

Restormer's MDTA (CVPR 2022, section 3.1), also both operators of VLU-Net's gradient step.
Source of the formulas: swz30/Restormer.

Shapes: B batch, C channels, H x W positions.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from unfoldldm_basicsr.archs.layers.convolution import separable_parts
from unfoldldm_basicsr.archs.layers.layout import has_channels_last, matmul_channels
from unfoldldm_basicsr.ops.image_statistics import image_statistic

_EPS = 1e-12  # floor of the norms, as in torch.nn.functional.normalize


def _norm(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 1): root of the sum of squares over positions, at least 1e-12."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if has_channels_last(x):  # vector_norm is slow along a strided dimension on CPU
        squares = x.to(wide).square().sum((2, 3))
        return squares.clamp_min(_EPS**2).sqrt().unsqueeze(-1)
    norm = torch.linalg.vector_norm(x.flatten(2), dim=-1, keepdim=True, dtype=wide)
    return norm.clamp_min(_EPS)


def channel_attention_map(q: Tensor, k: Tensor, temperature: Tensor) -> Tensor:
    """Attention between the channels of q and k (B, C, H, W); temperature is (heads, 1, 1).

    Gives (B, heads, C/heads, C/heads) in fp32 (fp64 for fp64 input), rows sum to 1. The norms
    divide the small product instead of the two large operands; in half precision the operands are
    normalised first, because the unnormalised sum over positions could overflow.
    """
    heads = temperature.shape[0]
    q_norm, k_norm = _norm(q), _norm(k)
    low_precision = q.dtype in (torch.float16, torch.bfloat16)  # also in autocast: of convolutions
    if low_precision:
        q = (q / q_norm.unsqueeze(-1)).to(q.dtype)
        k = (k / k_norm.unsqueeze(-1)).to(k.dtype)
    # views in both memory formats
    q = rearrange(q, 'b (heads c) h w -> b heads c (h w)', heads=heads)
    k = rearrange(k, 'b (heads c) h w -> b heads (h w) c', heads=heads)
    scores = (q @ k).to(q_norm.dtype)
    if not low_precision:
        split = 'b (heads c) 1 -> b heads c 1'
        q_norm, k_norm = (rearrange(norm, split, heads=heads) for norm in (q_norm, k_norm))
        scores = scores / (q_norm * k_norm.mT)
    return image_statistic((scores * temperature).softmax(-1))


def attend_and_project(attention: Tensor, v: Tensor, projection: nn.Conv2d) -> Tensor:
    """``projection(A v)`` with one product over the positions, (W_out A) v, where these are many.

    On small patches W_out A would cost more than it spares, and W_out (A v) is computed.

    A (B, heads, C/heads, C/heads), v (B, C, H, W), W_out a 1x1 convolution C -> O; gives
    (B, O, H, W) in the memory format of v.
    """
    (heads, height), weight, bias = (attention.shape[1], v.shape[2]), projection.weight, None
    if projection.bias is not None:
        bias = projection.bias.to(v.dtype)
    if 4 * height * v.shape[3] <= len(weight):
        values = rearrange(v, 'b (heads c) h w -> b heads (h w) c', heads=heads)
        attended = rearrange(values @ attention.to(v.dtype).mT, 'b heads n c -> b n (heads c)')
        out = F.linear(attended, weight.flatten(1).to(v.dtype), bias)
        out = rearrange(out, 'b (h w) o -> b o h w', h=height)
        return out if has_channels_last(v) else out.contiguous()
    weight = rearrange(weight, 'o (heads c) 1 1 -> heads o c', heads=heads)
    matrix = rearrange(weight @ attention.to(weight.dtype), 'b heads o c -> b o (heads c)')
    out = matmul_channels(matrix.to(v.dtype), v)
    return out if bias is None else out + bias.to(out.dtype).view(-1, 1, 1)


class TransposedSelfAttention(nn.Module):
    """q, k, v from a 1x1 and a depthwise 3x3 convolution, channel attention, 1x1 projection.

    Raises ValueError: ``num_heads`` does not divide ``dim``, the number of channels C.
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
        q, k, v = separable_parts(x, self.qkv, self.qkv_dwconv, 3)
        attention = channel_attention_map(q, k, self.temperature)
        return attend_and_project(attention, v, self.project_out)


def check_heads(dim: int, num_heads: int) -> None:
    """Raises ValueError unless ``num_heads`` divides ``dim``."""
    if num_heads < 1 or dim % num_heads:
        raise ValueError(
            f'{num_heads} attention heads do not divide {dim} channels; '
            f'choose heads (or dim) so that dim % heads is 0 at every level.'
        )
