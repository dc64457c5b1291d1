"""Layer normalisation over the channels of an image tensor.

    y = (x - mean_C(x)) / sqrt(var_C(x) + eps) * weight + bias

Restormer ("Restormer: Efficient Transformer for High-Resolution Image Restoration", CVPR 2022) also
uses a variant without bias that keeps the mean: y = x / sqrt(var_C(x) + eps) * weight.
Source of the formulas: swz30/Restormer and megvii-research/NAFNet.

Shapes: B batch, C channels, H x W positions; all tensors here are (B, C, H, W).
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfoldldm_basicsr.archs.layers.layout import has_channels_last


def widened(x: Tensor) -> Tensor:
    """x in fp32, or in fp64 if it is: 16 bit are too few for sums and exponentials."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mean_std(x: Tensor, dims: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(variance + eps) over ``dims``, :func:`widened`.

    On a CPU torch.var_mean takes ten to thirty times as long.
    """
    x = widened(x)
    mean = x.mean(dims, keepdim=True)
    return mean.squeeze(dims), ((x - mean).square().mean(dims) + eps).sqrt()


class LayerNorm2d(nn.Module):
    """Normalises every position over its channels; keeps the memory format, computes in fp32.

    ``eps`` is 1e-5 in Restormer and VLU-Net, 1e-6 in NAFNet; ``bias_free`` is Restormer's variant.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5, bias_free: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.register_parameter('bias', None if bias_free else nn.Parameter(torch.zeros(channels)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W) of the same dtype and memory format."""
        dtype, x = x.dtype, widened(x)
        weight = widened(self.weight)
        bias = None if self.bias is None else widened(self.bias)
        if has_channels_last(x) and bias is not None:
            # B C H W -> B H W C is a view here, so the fused kernel needs no copy.
            tokens = F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, self.eps)
            return tokens.permute(0, 3, 1, 2).to(dtype)
        centred = x - x.mean(1, keepdim=True)
        scale = centred.square().mean(1, keepdim=True).add(self.eps).rsqrt()
        if bias is None:
            return (x * scale * weight.view(-1, 1, 1)).to(dtype)
        return (centred * scale * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)).to(dtype)


class LayerNorm(nn.Sequential):
    """The normalisation of ``dim`` channels under its released name: parameters live in ``body``.

    ``LayerNorm_type`` is ``WithBias`` or ``BiasFree``.
    """

    def __init__(self, dim: int, LayerNorm_type: str = 'WithBias') -> None:
        body = LayerNorm2d(dim, bias_free=LayerNorm_type == 'BiasFree')
        super().__init__(OrderedDict(body=body))
