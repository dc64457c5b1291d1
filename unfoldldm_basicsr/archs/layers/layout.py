"""Memory layout of image tensors: which one a tensor has and which one is quick."""

import torch
from einops import rearrange
from torch import Tensor


def has_channels_last(x: Tensor) -> bool:
    """Whether the C values of one position of (B, C, H, W) lie next to each other in memory."""
    return x.stride(1) == 1


def to_quick_layout(x: Tensor) -> Tensor:
    """The layout in which our layers run best: channels last on CPU, as given elsewhere.

    On CPU the depthwise convolutions and the layer norm of transformer blocks are several times
    quicker with channels last; on GPUs the caller decides.
    """
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == 'cpu' else x


def matmul_channels(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix (B, O, C) times the channels of every position of x (B, C, H, W), whose layout it
    keeps: (B, O, H, W).
    """
    height = x.shape[2]
    if has_channels_last(x):  # of which the positions in a row are a view
        out = torch.bmm(rearrange(x, 'b c h w -> b (h w) c'), matrix.mT)
        return rearrange(out, 'b (h w) o -> b o h w', h=height)
    out = torch.bmm(matrix, rearrange(x, 'b c h w -> b c (h w)'))
    return rearrange(out, 'b o (h w) -> b o h w', h=height)
