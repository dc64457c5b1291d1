"""Memory layout of image tensors: which one a tensor has and which one is quick."""

from __future__ import annotations

import torch
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


def flatten_positions(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, HW, C); a view for channels last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def matmul_channels(matrix: Tensor, x: Tensor) -> Tensor:
    """Multiplies the channels of every position by a matrix; keeps the layout of ``x``.

    Args:
        matrix: (B, O, C).
        x: (B, C, H, W).

    Returns:
        (B, O, H, W).
    """
    b, _, h, w = x.shape
    if has_channels_last(x):
        out = torch.bmm(flatten_positions(x), matrix.mT)  # B HW O
        return out.view(b, h, w, -1).permute(0, 3, 1, 2)
    return torch.bmm(matrix, x.flatten(2)).view(b, -1, h, w)
