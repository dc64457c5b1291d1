"""Triton backend: the scan on a CUDA device without a compiled extension.

Four kernels (``_triton_kernels``), sequential inside a chunk of about sqrt(L) steps and parallel
over chunks, channel blocks, directions and images:

    chunk   end state of every chunk from a zero start (and, for the backward pass, the gradient
            at its start when nothing enters at its end)
    carry   start value of every chunk, sequential over the chunks
    output  y from the true start states
    adjoint all gradients; keeps one state per SUB steps in memory and SUB states in registers

Results that several programs contribute to (directions, channel blocks, chunks) go to separate
slots that PyTorch adds up, so that the gradients are the same in every run.

Imported by ``dispatch`` on first use only. Shapes as in ``op.ss2d_scan``; L = H W.
"""

from __future__ import annotations

import contextlib
import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from unfoldldm_basicsr.ops.ss2d import _triton_kernels as kernels

_LOG2E = 1.0 / math.log(2.0)
SUB = 4  # steps between stored states in the backward pass; 8 spill registers at N = 16


class Tiling(NamedTuple):
    """How a problem is cut: tile and warps of a program, chunks of a direction."""

    block_n: int
    block_c: int
    warps: int
    chunk_size: int
    num_chunks: int


def tiling(length: int, channels: int, d_state: int, *, adjoint: bool = False) -> Tiling:
    """At most 512 states per program where d_state allows, chunks of about sqrt(L) steps.

    The adjoint kernel holds SUB more states in registers and gets smaller tiles or more warps;
    the choice is the largest that compiles without spills for compute capability 8.0 and 9.0.
    """
    block_n = triton.next_power_of_2(d_state)
    most = (64 if block_n > 1 else 32) if adjoint else 128
    block_c = max(32, min(most, 512 // block_n, triton.next_power_of_2(channels)))
    states = block_n * block_c
    chunk_size = min(256, max(2 * SUB, triton.next_power_of_2(math.isqrt(length))))
    return Tiling(
        block_n,
        block_c,
        warps=1 if states <= 512 else max(1, states // (256 if adjoint else 1024)),
        chunk_size=chunk_size,
        num_chunks=triton.cdiv(length, chunk_size),
    )


class _Problem:
    """The inputs as the kernels want them."""

    def __init__(self, x: Tensor, dt: Tensor, A: Tensor, Bm: Tensor, Cm: Tensor, bias: Tensor, *,
                 adjoint: bool = False) -> None:  # fmt: skip
        batch, height, width, channels = x.shape
        self.cut = tiling(height * width, channels, A.shape[2], adjoint=adjoint)
        self.blocks = triton.cdiv(channels, self.cut.block_c)
        self.grid = (self.blocks, self.cut.num_chunks, 4 * batch)
        self.num_pixels = batch * height * width
        dt, b, c = (self._flat(t) for t in (dt, Bm, Cm))
        self.a2 = self.to_tiles(A * _LOG2E)
        self.inputs = (x.contiguous(), dt, self.a2, b, c, bias.contiguous())
        self.sizes = (height, width, channels, A.shape[2], self.cut.chunk_size, self.cut.num_chunks)
        self.strides = tuple(s for t in (dt, b, c) for s in t.stride()[:2])
        self.options = {
            'BLOCK_N': self.cut.block_n, 'BLOCK_C': self.cut.block_c,
            'num_warps': self.cut.warps, 'enable_fp_fusion': True,
        }  # fmt: skip

    @staticmethod
    def _flat(t: Tensor) -> Tensor:
        """(B, H, W, 4, Z) -> (B H W, 4, Z) with unit stride in Z, copying only if necessary."""
        if t.stride(-1) != 1:
            t = t.contiguous()
        return t.flatten(0, 2)

    def to_tiles(self, t: Tensor) -> Tensor:
        """(4, C, N) -> zero-padded (4, blocks, BLOCK_N, BLOCK_C)."""
        out = t.new_zeros(4, self.blocks * self.cut.block_c, self.cut.block_n)
        out[:, : t.shape[1], : t.shape[2]] = t
        return out.unflatten(1, (self.blocks, -1)).transpose(2, 3).contiguous()

    def from_tiles(self, t: Tensor, like: Tensor) -> Tensor:
        """Inverse of ``to_tiles``."""
        t = t.transpose(2, 3).flatten(1, 2)
        return t[:, : like.shape[1], : like.shape[2]].contiguous()

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.a2.device)

    def tiles(self, *lead: int) -> Tensor:
        """One tile per program, or ``lead`` of them."""
        return self.empty(*self.grid[::-1], *lead, self.cut.block_n, self.cut.block_c)

    def start_values(self, gy: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Start state of every chunk; with ``gy`` also the gradient of every end state."""
        end, total = self.tiles(), self.empty(*self.grid[::-1], self.cut.block_c)
        grad = None if gy is None else torch.empty_like(end)
        kernels.chunk_kernel[self.grid](
            *self.inputs, gy, end, total, grad, *self.sizes, *self.strides,
            ADJOINT=gy is not None, **self.options,
        )  # fmt: skip
        for values, reverse in ((end, False), (grad, True)):
            if values is not None:
                kernels.carry_kernel[self.blocks, self.grid[2]](
                    values, total, self.a2, self.cut.num_chunks,
                    REVERSE=reverse, **{**self.options, 'num_warps': 4},
                )  # fmt: skip
        return end, grad


def _on_device_of(x: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def forward(x: Tensor, dt: Tensor, A: Tensor, Bm: Tensor, Cm: Tensor, D: Tensor,
            bias: Tensor) -> Tensor:  # fmt: skip
    """See :func:`unfoldldm_basicsr.ops.ss2d.ss2d_scan`; A, D, bias in float32."""
    problem = _Problem(x, dt, A, Bm, Cm, bias)
    y = problem.empty(4, *x.shape)
    with _on_device_of(x):
        start, _ = problem.start_values()
        kernels.output_kernel[problem.grid](
            *problem.inputs, start, y, *problem.sizes, problem.num_pixels, *problem.strides,
            **problem.options,
        )  # fmt: skip
    return torch.addcmul(y.sum(0), x.float(), D.sum(0)).to(x.dtype)


def backward(gy: Tensor, x: Tensor, dt: Tensor, A: Tensor, Bm: Tensor, Cm: Tensor, D: Tensor,
             bias: Tensor) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of :func:`forward` for x, dt, A, Bm, Cm, D, bias; everything is recomputed."""
    problem = _Problem(x, dt, A, Bm, Cm, bias, adjoint=True)
    gy = gy.contiguous()
    keep, ga = problem.tiles(problem.cut.chunk_size // SUB), problem.tiles()
    gx, gdt = problem.empty(4, *x.shape), torch.empty(dt.shape, dtype=dt.dtype, device=dt.device)
    gb, gc = (problem.empty(problem.blocks, *t.shape) for t in (Bm, Cm))
    with _on_device_of(x):
        start, flow = problem.start_values(gy)
        kernels.adjoint_kernel[problem.grid](
            *problem.inputs, gy, start, flow, keep, gx, gdt, ga, gb, gc,
            *problem.sizes, problem.num_pixels, *problem.strides, SUB=SUB, **problem.options,
        )  # fmt: skip
    gx = torch.addcmul(gx.sum(0), gy.float(), D.sum(0)).to(x.dtype)
    # (4 B, chunks, ...): the image number runs slower than the direction.
    ga = problem.from_tiles(ga.sum(1).unflatten(0, (-1, 4)).sum(0), A)
    gd = (gy.float() * x.float()).sum((0, 1, 2)).expand(D.shape).contiguous()
    gbias = gdt.sum((0, 1, 2), dtype=torch.float32)
    return gx, gdt, ga, gb.sum(0).to(Bm.dtype), gc.sum(0).to(Cm.dtype), gd, gbias
