"""``ss2d_scan``: the four-direction selective scan of an image as one PyTorch operator.

A ``torch.library.custom_op`` rather than an ``autograd.Function``: torch.compile keeps it whole
instead of tracing and unrolling the recurrence, and shapes are known on the meta device. The
backward pass is a second operator that recomputes the states, so nothing but the inputs is kept.
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from unfoldldm_basicsr.ops.ss2d import dispatch
from unfoldldm_basicsr.ops.ss2d._torch import compute_dtype

NUM_DIRECTIONS = 4


@torch.library.custom_op('unfoldldm::ss2d_scan', mutates_args=())
def _scan_op(x: Tensor, dt: Tensor, A: Tensor, Bm: Tensor, Cm: Tensor, D: Tensor,
             bias: Tensor) -> Tensor:  # fmt: skip
    with torch.autocast(x.device.type, enabled=False):
        return dispatch.backend_for(x).forward(x, dt, A, Bm, Cm, D, bias)


@_scan_op.register_fake
def _(x: Tensor, *others: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op('unfoldldm::ss2d_scan_backward', mutates_args=())
def _backward_op(
    gy: Tensor, x: Tensor, dt: Tensor, A: Tensor, Bm: Tensor, Cm: Tensor, D: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        return dispatch.backend_for(x).backward(gy, x, dt, A, Bm, Cm, D, bias)


@_backward_op.register_fake
def _(gy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in inputs)


_scan_op.register_autograd(
    lambda ctx, gy: _backward_op(gy, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def scan_flops(num_pixels: int, channels: int, d_state: int) -> int:
    """Floating-point operations of one forward scan over ``num_pixels`` pixels.

    The convention of the published Mamba-based tables (VMamba's counter): 9 per state and 1 per
    channel for the D term, in each of the four directions.
    """
    return NUM_DIRECTIONS * num_pixels * channels * (9 * d_state + 1)


@register_flop_formula(torch.ops.unfoldldm.ss2d_scan)
def _forward_flops(x_shape, dt_shape, a_shape, *args, out_shape=None, **kwargs) -> int:
    batch, height, width, channels = x_shape
    return scan_flops(batch * height * width, channels, a_shape[-1])


@register_flop_formula(torch.ops.unfoldldm.ss2d_scan_backward)
def _backward_flops(gy_shape, x_shape, dt_shape, a_shape, *args, out_shape=None, **kwargs) -> int:
    # One recomputation of the states, then twice the forward work as for any bilinear layer.
    return 3 * _forward_flops(x_shape, dt_shape, a_shape)


def ss2d_scan(x: Tensor, dt: Tensor, A: Tensor, Bm: Tensor, Cm: Tensor, D: Tensor,
              bias: Tensor) -> Tensor:  # fmt: skip
    """Selective scan of an image in four directions, summed at every pixel.

    Direction 0 visits the pixels row by row, 1 column by column, 2 and 3 in the reverse order of
    0 and 1. All inputs and the output are in pixel order: the projections that make dt, Bm and Cm
    act on single pixels, so they are run once on the image instead of on four reordered copies.

    Args:
        x: Sequence input (B, H, W, C); float64, float32, bfloat16 or float16.
        dt: Step sizes (B, H, W, 4, C) before bias and softplus.
        A: State matrix (4, C, N), negative.
        Bm, Cm: Input and output matrix (B, H, W, 4, N).
        D: Skip weights (4, C).
        bias: Added to dt before the softplus (4, C).

    Returns:
        (B, H, W, C) in the dtype of x. State and accumulators are float32 (float64 for float64
        x), and so are A, D and bias; under float16 autocast x, dt, Bm and Cm are cast to float32
        too, since float16 input makes the training of such models unstable.

    Raises:
        ValueError: A shape does not fit x; the message says which.

    Source: Mamba (arXiv 2312.00752) for the recurrence, VMamba (arXiv 2401.10166) for the four
    directions.
    """
    # kernels would read beyond the ends of tensors of other shapes
    grid, channels, d_state = x.shape[:3], x.shape[3], A.shape[-1]
    states, parameters = (*grid, 4, d_state), (4, channels)
    for name, tensor, shape in (
        ('x', x, (*grid, channels)), ('dt', dt, (*grid, 4, channels)),
        ('A', A, (4, channels, d_state)), ('Bm', Bm, states), ('Cm', Cm, states),
        ('D', D, parameters), ('bias', bias, parameters),
    ):  # fmt: skip
        if tensor.shape != shape:
            raise ValueError(f'ss2d_scan: {name} must be {shape}, got {tuple(tensor.shape)}.')
    kind = x.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if autocast and torch.get_autocast_dtype(kind) == torch.float16 and x.dtype != torch.float64:
        x = x.float()
    state = compute_dtype(x)
    dt, Bm, Cm = (t.to(x.dtype) for t in (dt, Bm, Cm))
    A, D, bias = (t.to(state) for t in (A, D, bias))
    return _scan_op(x, dt, A, Bm, Cm, D, bias)
