"""mamba-ssm backend: the CUDA kernel of Mamba-1 behind the same interface.

Uses the compiled extension ``selective_scan_cuda`` alone: importing the ``mamba_ssm`` package takes
many seconds and a long list of dependencies that the scan does not need. The kernel reads
sequences (batch, D, L) with contiguous time, equal dtypes and float32 A, D, bias; its channel d
uses the B and C of group d // (D / G). The four directions are therefore laid out as D = 4 C
channels in G = 4 groups, direction k being channels k C .. (k + 1) C - 1.

The kernel accumulates its gradients with atomics: they differ in the last bits from run to run.
Imported by ``dispatch`` on first use only. Source of the interface: state-spaces/mamba,
``mamba_ssm/ops/selective_scan_interface.py``.
"""

from __future__ import annotations

import selective_scan_cuda  # after torch, whose libraries it links to
import torch
from torch import Tensor


def _sequences(t: Tensor) -> Tensor:
    """(B, H, W, 4, Z) -> (B, 4, Z, L), direction k in the order in which it visits the pixels."""
    batch, height, width, _, size = t.shape
    out = torch.empty(batch, 4, size, height * width, dtype=t.dtype, device=t.device)
    for k in range(4):
        image = t[..., k, :].permute(0, 3, 1, 2)
        order = image.transpose(2, 3) if k % 2 else image
        out[:, k] = (order.flip(2, 3) if k >= 2 else order).flatten(2)
    return out


def _images(t: Tensor, height: int, width: int) -> Tensor:
    """Inverse of ``_sequences``: (B, 4, Z, L) -> (B, H, W, 4, Z)."""
    batch, _, size, _ = t.shape
    out = torch.empty(batch, height, width, 4, size, dtype=t.dtype, device=t.device)
    for k in range(4):
        order = t[:, k].flip(2) if k >= 2 else t[:, k]
        shape = (width, height) if k % 2 else (height, width)
        image = order.unflatten(2, shape)
        out[..., k, :] = (image.transpose(2, 3) if k % 2 else image).permute(0, 2, 3, 1)
    return out


def _arguments(x: Tensor, dt: Tensor, A: Tensor, Bm: Tensor, Cm: Tensor, D: Tensor,
               bias: Tensor) -> tuple:  # fmt: skip
    """The extension's arguments up to delta_bias; there is no gate z."""
    four = x.unsqueeze(3).expand(-1, -1, -1, 4, -1)
    u, delta = (_sequences(t).flatten(1, 2) for t in (four, dt))
    return (
        u, delta, A.flatten(0, 1), _sequences(Bm), _sequences(Cm), D.flatten(), None,
        bias.flatten(),
    )  # fmt: skip


def _merge(t: Tensor, x: Tensor) -> Tensor:
    """Sum over the directions of (batch, 4 C, L), in float32: (B, H, W, C)."""
    images = _images(t.unflatten(1, (4, -1)), x.shape[1], x.shape[2])
    return images.sum(3, dtype=torch.float32).to(x.dtype)


def forward(x: Tensor, dt: Tensor, A: Tensor, Bm: Tensor, Cm: Tensor, D: Tensor,
            bias: Tensor) -> Tensor:  # fmt: skip
    """See :func:`unfoldldm_basicsr.ops.ss2d.ss2d_scan`; A, D, bias in float32."""
    y, *_ = selective_scan_cuda.fwd(*_arguments(x, dt, A, Bm, Cm, D, bias), True)
    return _merge(y, x)


def backward(gy: Tensor, x: Tensor, dt: Tensor, A: Tensor, Bm: Tensor, Cm: Tensor, D: Tensor,
             bias: Tensor) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of :func:`forward` for x, dt, A, Bm, Cm, D, bias; the scan is repeated first."""
    arguments = _arguments(x, dt, A, Bm, Cm, D, bias)
    _, states, *_ = selective_scan_cuda.fwd(*arguments, True)
    dout = _sequences(gy.unsqueeze(3).expand(-1, -1, -1, 4, -1)).flatten(1, 2)
    gu, gdelta, ga, gb, gc, gd, gbias, *_ = selective_scan_cuda.bwd(
        *arguments, dout, states, None, None, True, False
    )
    height, width = x.shape[1:3]
    gdt = _images(gdelta.unflatten(1, (4, -1)), height, width)
    gb, gc = (_images(g, height, width).to(x.dtype) for g in (gb, gc))
    return (
        _merge(gu, x), gdt, ga.view_as(A), gb, gc, gd.view_as(D), gbias.view_as(bias),
    )  # fmt: skip
