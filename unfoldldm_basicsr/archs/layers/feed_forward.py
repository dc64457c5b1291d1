"""Gated depthwise feed-forward network.

    out = W_out (GELU(a) * b),   [a, b] = DWConv3x3(W_in x)

Restormer's GDFN (CVPR 2022, section 3.2). Source of the formula: swz30/Restormer.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfoldldm_basicsr.archs.layers.convolution import fill_channels, quick_width, separable_parts
from unfoldldm_basicsr.archs.layers.strips import by_strips


class GatedFeedForward(nn.Module):
    """Per-position mixing of C = ``dim`` channels with a gate; int(dim * expansion) are hidden."""

    def __init__(self, dim: int, *, expansion: float = 2.66, bias: bool = False) -> None:
        super().__init__()
        hidden = int(dim * expansion)
        self.project_in = nn.Conv2d(dim, 2 * hidden, 1, bias=bias)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=bias)
        self.project_out = nn.Conv2d(hidden, dim, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        width = quick_width(self.project_out.in_channels, x)
        weight = fill_channels(self.project_out.weight, width, 1)

        def transform(x: Tensor) -> Tensor:
            a, b = separable_parts(x, self.project_in, self.dwconv, 2, width=width)
            gate = F.gelu(a)
            # Without gradients nobody needs the gate afterwards; a new tensor would be the peak.
            gate = gate * b if torch.is_grad_enabled() else gate.mul_(b)
            return F.conv2d(gate, weight, self.project_out.bias)

        return by_strips(transform, x, width=width)


def simple_gate(x: Tensor) -> Tensor:
    """NAFNet's gate without activation: (B, 2C, H, W) -> (B, C, H, W), one half times the other."""
    a, b = x.chunk(2, dim=1)
    return a * b
