"""A 1x1 convolution followed by a depthwise one, evaluated per group of output channels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def separable_parts(
    x: Tensor, pointwise: nn.Conv2d, depthwise: nn.Conv2d, parts: int
) -> list[Tensor]:
    """``depthwise(pointwise(x)).chunk(parts, dim=1)``, each part a tensor of its own.

    The channels of a depthwise convolution do not mix, so the parts (query, key, value; gate and
    gated) are independent. Computing them one by one from slices of the weights spares strided
    access in the forward pass and the concatenation of their gradients in the backward pass.

    Args:
        x: (B, C, H, W).
        pointwise: 1x1 convolution C -> P.
        depthwise: depthwise convolution P -> P, P divisible by ``parts``.
        parts: number of groups.

    Returns:
        ``parts`` tensors (B, P / parts, H, W).
    """

    def split(tensor: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None,) * parts if tensor is None else tensor.chunk(parts)

    return [
        F.conv2d(F.conv2d(x, w1, b1), w2, b2, padding=depthwise.padding, groups=len(w2))
        for w1, b1, w2, b2 in zip(
            split(pointwise.weight),
            split(pointwise.bias),
            split(depthwise.weight),
            split(depthwise.bias),
            strict=True,
        )
    ]
