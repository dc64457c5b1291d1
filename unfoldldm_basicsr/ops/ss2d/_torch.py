"""Row scan: the selective scan of an image in plain PyTorch, on any device and in float64.

Recurrence along one direction, state ``h`` of shape N per channel:

    delta_t = softplus(dt_t + bias)
    h_t     = exp(delta_t A) h_{t-1} + delta_t x_t B_t,      y_t = C_t . h_t + D x_t

The image gives the chunks for free: all R rows are scanned at the same time and the T columns one
after the other, so L = R T pixels take T steps. Pass 1 runs every row from a zero state and keeps
its end state, a short carry over the R rows turns these into the true start states, pass 2 runs
again from those and emits y. Column-major directions see the transposed view, reversed ones walk
the same arrays backwards; nothing is flipped or stacked.

What makes it fast in eager mode: ``exp2`` with log2(e) folded into A (half the price of ``exp``),
the layout (..., N, C) with channels contiguous, buffers that are allocated once, and blocks of
columns that fit the cache, so that everything but the recurrence itself is one call per block.
Every exponent is <= 0: no size of delta can overflow.

Shapes: P = B * R rows; column arrays are (T, P, ...), states (P, N, C).
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

_LOG2E = 1.0 / math.log(2.0)
_BLOCK_NUMEL = 1 << 17  # numbers per block buffer: 512 KiB in float32, three are in use
_BY_AXIS = (0, 2, 1, 3)  # the directions, each before its reverse


def compute_dtype(x: Tensor) -> torch.dtype:
    """dtype of state and accumulators: float64 for float64 input, otherwise float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _column_view(t: Tensor, axis: int) -> Tensor:
    """(B, H, W, Z) -> view (T, B, R, Z); axis 0 scans along rows, 1 along columns."""
    return t.permute(1, 0, 2, 3) if axis else t.permute(2, 0, 1, 3)


def _columns(t: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    """(B, H, W, Z) -> contiguous copy (T, B R, Z) in ``dtype``."""
    view = _column_view(t, axis)
    return torch.empty(view.shape, dtype=dtype, device=t.device).copy_(view).flatten(1, 2)


class _Direction:
    """Arrays of direction k in column layout, and the walks over them: 0 is row-major, 1 is
    column-major, 2 and 3 are their reverses.
    """

    def __init__(self, k: int, x: Tensor, dt: Tensor, A: Tensor, Bm: Tensor, Cm: Tensor,
                 bias: Tensor) -> None:  # fmt: skip
        dtype = compute_dtype(x)
        self.axis, self.reverse = k % 2, k >= 2
        self.x = _column_view(x, self.axis)  # (T, B, R, C), in the dtype of the input
        self.steps, self.batch, self.rows = self.x.shape[:3]
        self.delta = _columns(dt[..., k, :], self.axis, dtype).add_(bias[k])  # (T, P, C)
        F.softplus(self.delta, out=self.delta)
        self.dx = (self._by_row(self.delta) * self.x).flatten(1, 2)
        self.b, self.c = (_columns(t[..., k, :], self.axis, dtype) for t in (Bm, Cm))  # (T, P, N)
        self.a = A[k].t().contiguous()  # (N, C)
        self.a2 = self.a * _LOG2E
        self.state_shape = (self.batch * self.rows, *self.a.shape)

    def _by_row(self, t: Tensor) -> Tensor:
        """(T, P, Z) -> view (T, B, R, Z)."""
        return t.unflatten(1, (self.batch, self.rows))

    def to_image(self, t: Tensor, out: Tensor, *, accumulate: bool = False) -> None:
        """Writes (or adds) the columns (T, P, Z) into the image (B, H, W, Z)."""
        target = _column_view(out, self.axis)
        t = self._by_row(t)
        target.add_(t) if accumulate else target.copy_(t)

    def blocks(self, size: int, *, backwards: bool = False) -> list[tuple[int, int]]:
        """Column ranges of at most ``size`` columns in scan order (or against it)."""
        cuts = [(lo, min(lo + size, self.steps)) for lo in range(0, self.steps, size)]
        return cuts[::-1] if self.reverse != backwards else cuts

    def order(self, count: int) -> range:
        """Columns inside a block in scan order."""
        return range(count - 1, -1, -1) if self.reverse else range(count)

    def cached_columns(self) -> int:
        """Columns per block such that one block buffer stays in the cache."""
        most = max(8, self.steps // 8)  # bounds the buffers where the state is small
        return max(1, min(most, self.steps, _BLOCK_NUMEL // math.prod(self.state_shape)))

    def empty(self, *lead: int) -> Tensor:
        return torch.empty((*lead, *self.state_shape), dtype=self.dx.dtype, device=self.dx.device)

    def decay(self, lo: int, hi: int, out: Tensor) -> Tensor:
        """exp(delta A) of columns lo..hi, (K, P, N, C)."""
        out = out[: hi - lo]
        return torch.mul(self.delta[lo:hi].unsqueeze(2), self.a2, out=out).exp2_()

    def states(self, lo: int, hi: int, h: Tensor, decay: Tensor, out: Tensor) -> tuple:
        """States of columns lo..hi entered with state h: (all of them (K, P, N, C), the last)."""
        out = out[: hi - lo]
        torch.mul(self.dx[lo:hi].unsqueeze(2), self.b[lo:hi].unsqueeze(3), out=out)
        state, factor = out.unbind(0), decay.unbind(0)
        for t in self.order(hi - lo):
            h = state[t].addcmul_(factor[t], h)
        return out, h

    def carry(self, gain: Tensor, end: Tensor, *, backwards: bool = False) -> Tensor:
        """Start value of every row from the rows' results for a zero start, (P, N, C)."""
        start = torch.empty_like(end)
        lead = (self.batch, -1)
        to, ends, gains = (t.unflatten(0, lead).unbind(1) for t in (start, end, gain))
        order = range(len(to))
        if self.reverse != backwards:
            order = order[::-1]
        to[order[0]].zero_()
        for row, following in pairwise(order):
            torch.addcmul(ends[row], gains[row], to[row], out=to[following])
        return start


def _contract(weight: Tensor, states: Tensor, out: Tensor) -> Tensor:
    """out[..., c] = sum_n weight[..., n] states[..., n, c] with K P leading numbers."""
    if states.shape[2] == 1:
        return torch.mul(weight, states.squeeze(2), out=out)
    weight, states = weight.flatten(0, 1).unsqueeze(1), states.flatten(0, 1)
    torch.bmm(weight, states, out=out.flatten(0, 1).unsqueeze(1))
    return out


def _outer_grad(states: Tensor, vector: Tensor, out: Tensor) -> Tensor:
    """out[..., n] = sum_c states[..., n, c] vector[..., c]."""
    states, vector = states.flatten(0, 1), vector.flatten(0, 1)
    torch.bmm(vector.unsqueeze(1), states.transpose(1, 2), out=out.flatten(0, 1).unsqueeze(1))
    return out


def _scan(d: _Direction) -> Tensor:
    """y of one direction without the D term, (T, P, C); overwrites ``d.dx``."""
    size = d.cached_columns()
    blocks = d.blocks(size)
    decay, buffers = d.empty(size), (d.empty(size), d.empty(size))
    h = torch.zeros(d.state_shape, dtype=d.dx.dtype, device=d.dx.device)
    if d.rows > 1:
        for i, (lo, hi) in enumerate(blocks):
            _, h = d.states(lo, hi, h, d.decay(lo, hi, decay), buffers[i % 2])
        row_decay = torch.mul(d.delta.sum(0).unsqueeze(1), d.a2).exp2_()  # (P, N, C)
        h = d.carry(row_decay, h)
    for i, (lo, hi) in enumerate(blocks):
        states, h = d.states(lo, hi, h, d.decay(lo, hi, decay), buffers[i % 2])
        _contract(d.c[lo:hi], states, out=d.dx[lo:hi])
    return d.dx


def forward(x: Tensor, dt: Tensor, A: Tensor, Bm: Tensor, Cm: Tensor, D: Tensor,
            bias: Tensor) -> Tensor:  # fmt: skip
    """See :func:`unfoldldm_basicsr.ops.ss2d.ss2d_scan`; A, D, bias in the compute dtype."""
    y = x * D.sum(0)  # promoted to the compute dtype
    for k in _BY_AXIS:
        direction = _Direction(k, x, dt, A, Bm, Cm, bias)
        direction.to_image(_scan(direction), y, accumulate=True)
        del direction  # frees its arrays before the next direction allocates
    return y.to(x.dtype).contiguous()


def _start_values(d: _Direction, gy: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Start state of every row, and gradient with respect to every row's end state.

    Both row passes share the decays: a row's gradient with respect to its start state is
    ``sum_t (prod_{s<=t} decay_s) C_t gy_t`` when nothing enters at its end, which a forward walk
    can sum as it goes.
    """
    zeros = torch.zeros(d.state_shape, dtype=d.dx.dtype, device=d.dx.device)
    if d.rows == 1:
        return zeros, zeros
    decay, emitted, buffers = d.empty(size), d.empty(size), (d.empty(size), d.empty(size))
    h, gain, grad = zeros, torch.ones_like(zeros), torch.zeros_like(zeros)
    for i, (lo, hi) in enumerate(d.blocks(size)):
        factors = d.decay(lo, hi, decay)
        _, h = d.states(lo, hi, h, factors, buffers[i % 2])
        torch.mul(d.c[lo:hi].unsqueeze(3), gy[lo:hi].unsqueeze(2), out=emitted[: hi - lo])
        for t in d.order(hi - lo):
            grad.addcmul_(gain.mul_(factors[t]), emitted[t])
    return d.carry(gain, h), d.carry(gain, grad, backwards=True)


def _scan_backward(d: _Direction, gy: Tensor) -> tuple[Tensor, ...]:
    """Gradients of one direction's scan in column layout: x, delta, A, B, C (without D)."""
    h, flow = _start_values(d, gy, d.cached_columns())
    # Blocks of sqrt(T / 3) columns minimise the states held: one per block + three per column.
    size = min(d.steps, max(d.cached_columns(), math.isqrt(max(1, d.steps // 3))))
    decay, buffers = d.empty(size), (d.empty(size), d.empty(size))
    entering = [h]
    for i, (lo, hi) in enumerate(d.blocks(size)[:-1]):
        _, h = d.states(lo, hi, h, d.decay(lo, hi, decay), buffers[i % 2])
        entering.append(h.clone())

    a_grad = torch.zeros(d.state_shape, dtype=d.dx.dtype, device=d.dx.device)
    input_grad, delta_grad = torch.empty_like(d.dx), torch.empty_like(d.dx)
    b_grad, c_grad = torch.empty_like(d.b), torch.empty_like(d.c)
    ones = d.b.new_ones(()).expand(size, *d.b.shape[1:])
    adjoints = buffers[1]
    for lo, hi in d.blocks(size, backwards=True):
        h = entering.pop()
        decays = d.decay(lo, hi, decay)
        states, _ = d.states(lo, hi, h, decays, buffers[0])
        _outer_grad(states, gy[lo:hi], out=c_grad[lo:hi])

        adjoint = torch.mul(d.c[lo:hi].unsqueeze(3), gy[lo:hi].unsqueeze(2),
                            out=adjoints[: hi - lo])  # fmt: skip
        order = d.order(hi - lo)
        for t in reversed(order):
            flow = decays[t] * adjoint[t].add_(flow)
        _outer_grad(adjoint, d.dx[lo:hi], out=b_grad[lo:hi])
        _contract(d.b[lo:hi], adjoint, out=input_grad[lo:hi])

        # Gradient with respect to the exponent delta A: adjoint_t * decay_t * h_{t-1}.
        delta = d.delta[lo:hi].unsqueeze(2)
        decays.mul_(adjoint)
        for t, before in zip(order, (None, *order)):  # noqa: B905 (one longer on purpose)
            decays[t].mul_(h if before is None else states[before])
            a_grad.addcmul_(decays[t], delta[t])
        _contract(ones[: hi - lo], decays.mul_(d.a), out=delta_grad[lo:hi])
    d._by_row(delta_grad).addcmul_(d.x.to(delta_grad.dtype), d._by_row(input_grad))
    return input_grad.mul_(d.delta), delta_grad, a_grad.sum(0).t(), b_grad, c_grad


def backward(gy: Tensor, x: Tensor, dt: Tensor, A: Tensor, Bm: Tensor, Cm: Tensor, D: Tensor,
             bias: Tensor) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of :func:`forward` for x, dt, A, Bm, Cm, D, bias; everything is recomputed."""
    dtype = compute_dtype(x)
    x_grad = gy * D.sum(0)
    # Contiguous whatever the strides of the inputs are, as torch.compile was told.
    dt_grad, b_grad, c_grad, a_grad, bias_grad = (
        t.new_empty(t.shape) for t in (dt, Bm, Cm, A, bias)
    )
    d_grad = (gy.to(dtype) * x.to(dtype)).sum((0, 1, 2)).expand(D.shape).contiguous()
    for k in _BY_AXIS:
        direction = _Direction(k, x, dt, A, Bm, Cm, bias)
        if not direction.reverse:  # its reverse, which is next, has the same
            gy_columns = _columns(gy, direction.axis, dtype)
        gx, gdelta, ga, gb, gc = _scan_backward(direction, gy_columns)
        # d softplus(v) / dv = sigmoid(v) = 1 - exp(-softplus(v))
        gdt = gdelta.mul_(torch.expm1(direction.delta.neg_())).neg_()
        direction.to_image(gx, x_grad, accumulate=True)
        for full, part in ((dt_grad, gdt), (b_grad, gb), (c_grad, gc)):
            direction.to_image(part, full[..., k, :])
        a_grad[k], bias_grad[k] = ga, gdt.sum((0, 1))
        del direction, gx, gdelta, gdt  # frees its arrays before the next direction allocates
    return x_grad.to(x.dtype).contiguous(), dt_grad, a_grad, b_grad, c_grad, d_grad, bias_grad
