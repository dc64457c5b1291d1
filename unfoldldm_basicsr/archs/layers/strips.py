"""Convolutions on large images strip by strip: what lies between them stays in the cache."""

from collections.abc import Callable

import torch
from torch import Tensor

# Elements of the widest tensor of a strip: 6 MB in fp32. Measured: scripts/benchmark/networks.py.
_STRIP_ELEMENTS = 1_500_000
_FEWEST_ROWS = 8  # of which two are computed twice


def by_strips(function: Callable[[Tensor], Tensor], x: Tensor, *, width: int) -> Tensor:
    """``function(x)``; on the CPU and without gradients in strips of rows, equal up to rounding.

    ``function`` is (B, C, h, W) -> (B, C', h, W) for any h; a row of its result depends on the same
    row of its input and on those next to it (one 3x3 convolution with padding 1). ``width`` are the
    channels of the widest tensor inside it.
    """
    batch, _, height, columns = x.shape
    rows = max(_FEWEST_ROWS, _STRIP_ELEMENTS // max(1, batch * width * columns))
    whole = x.device.type != 'cpu' or torch.is_grad_enabled() or torch.compiler.is_compiling()
    if whole or height < rows + _FEWEST_ROWS:
        return function(x)
    out = None
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        first = max(start - 1, 0)
        strip = function(x[:, :, first : stop + 1])[:, :, start - first :][:, :, : stop - start]
        if out is None:
            layout = torch.channels_last if strip.stride(1) == 1 else torch.contiguous_format
            shape = (batch, strip.shape[1], height, columns)
            out = torch.empty(shape, dtype=strip.dtype, memory_format=layout)
        out[:, :, start:stop] = strip
    return out
