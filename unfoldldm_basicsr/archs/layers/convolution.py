"""A 1x1 convolution followed by a depthwise one, evaluated per group of output channels.

Numbers of channels that are no multiple of eight (a feed-forward network of 64 x 2.66 = 170) halve
the speed of 1x1 convolutions on one CPU thread; zeros that fill them up change no result.
"""

from torch import Tensor, nn
from torch.nn import functional as F

_QUICK_MULTIPLE = 8


def quick_width(channels: int, x: Tensor) -> int:
    """The number of channels to compute on the device of ``x`` where ``channels`` are wanted."""
    filled = -(-channels // _QUICK_MULTIPLE) * _QUICK_MULTIPLE
    return filled if x.device.type == 'cpu' else channels


def fill_channels(tensor: Tensor, channels: int, dim: int) -> Tensor:
    """Appends zeros along ``dim`` until it has ``channels`` entries."""
    missing = channels - tensor.shape[dim]
    return F.pad(tensor, (0, 0) * (tensor.ndim - 1 - dim) + (0, missing)) if missing else tensor


def separable_parts(
    x: Tensor, pointwise: nn.Conv2d, depthwise: nn.Conv2d, parts: int, *, width: int | None = None
) -> list[Tensor]:
    """``depthwise(pointwise(x)).chunk(parts, dim=1)``, each part a tensor of its own.

    The channels of a depthwise convolution do not mix, so the parts (query, key, value; gate and
    gated) are independent. Computing them one by one from slices of the weights spares strided
    access in the forward pass and the concatenation of their gradients in the backward pass.
    x (B, C, H, W) -> ``parts`` tensors (B, P / parts, H, W); with ``width`` they have as many
    channels, the further ones zero.
    """
    width = width or pointwise.out_channels // parts

    def split(tensor: Tensor | None) -> list[Tensor | None]:
        chunks = [None] * parts if tensor is None else tensor.chunk(parts)
        return [None if chunk is None else fill_channels(chunk, width, 0) for chunk in chunks]

    tensors = pointwise.weight, pointwise.bias, depthwise.weight, depthwise.bias
    return [
        F.conv2d(F.conv2d(x, w1, b1), w2, b2, padding=depthwise.padding, groups=len(w2))
        for w1, b1, w2, b2 in zip(*map(split, tensors), strict=True)
    ]
