"""Structured degradation factors: D = M^T kron W, applied as y = W x M, and its adjoint.

Per colour channel, with column-stacking vec, vec(W X M) = (M^T kron W) vec(X), so a left factor
W (h x h) acting on columns of pixels and a right factor M (w x w) acting on rows of pixels are the
Kronecker-structured degradation of UnfoldLDM (arXiv 2511.18152). Both are held as one operator type

    F = diag(gain) + diag(mix) A,        ||A||_2 <= 1,        ||F||_2 <= max|gain| + max|mix|,

with W = F_rows and M = F_cols^T. How the paper produces W and M is not known; A comes in three
variants that share this bound: a dense affinity, a low-rank product and a banded affinity.

Shapes: B batch, c colour channels, n = h or w, r rank.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F


class Factor(NamedTuple):
    """One factor F = diag(gain) + diag(mix) A of size n x n, per image and channel.

    Attributes:
        gain: (B, c, n).
        mix: (B, c, n).
        core: what represents A: (B, c, n, n) dense; two (B, c, n, r) tensors for A = U V^T; or
            (B, c, blocks, R, 3R) for a band of half-width R.
    """

    gain: Tensor
    mix: Tensor
    core: Tensor | tuple[Tensor, Tensor]

    @property
    def norm_bound(self) -> Tensor:
        """Upper bound of the spectral norm, (B, c)."""
        return self.gain.abs().amax(-1) + self.mix.abs().amax(-1)

    def left(self, x: Tensor) -> Tensor:
        """F x for x (B, c, n, m)."""
        return self.gain[..., None] * x + self.mix[..., None] * self._core(x)

    def left_adjoint(self, x: Tensor) -> Tensor:
        """F^T x for x (B, c, n, m)."""
        return self.gain[..., None] * x + self._core_adjoint(self.mix[..., None] * x)

    def right(self, x: Tensor) -> Tensor:
        """x F^T for x (B, c, m, n), that is x M for the right factor M = F^T."""
        if self._is_dense:
            gain, mix = self.gain[..., None, :], self.mix[..., None, :]
            return gain * x + mix * (x @ self.core.mT)
        return self.left(x.mT).mT

    def right_adjoint(self, x: Tensor) -> Tensor:
        """x F for x (B, c, m, n), that is x M^T for the right factor M = F^T."""
        if self._is_dense:
            gain, mix = self.gain[..., None, :], self.mix[..., None, :]
            return gain * x + (mix * x) @ self.core
        return self.left_adjoint(x.mT).mT

    def dense(self) -> Tensor:
        """F as a matrix (B, c, n, n)."""
        n = self.gain.shape[-1]
        eye = torch.eye(n, device=self.gain.device, dtype=self.gain.dtype)
        return self.left(eye.expand(*self.gain.shape[:2], n, n))

    @property
    def _is_dense(self) -> bool:
        return isinstance(self.core, Tensor) and self.core.ndim == 4

    def _core(self, x: Tensor) -> Tensor:
        if isinstance(self.core, tuple):
            u, v = self.core
            return u @ (v.mT @ x)
        return self.core @ x if self.core.ndim == 4 else band_matmul(self.core, x)

    def _core_adjoint(self, x: Tensor) -> Tensor:
        if isinstance(self.core, tuple):
            u, v = self.core
            return v @ (u.mT @ x)
        return self.core.mT @ x if self.core.ndim == 4 else band_matmul_adjoint(self.core, x)


def kronecker_apply(W: Factor, M: Factor, x: Tensor) -> Tensor:
    """W x M per channel, x (B, c, h, w); ``M`` holds F with M = F^T."""
    return M.right(W.left(x))


def kronecker_adjoint(W: Factor, M: Factor, r: Tensor) -> Tensor:
    """W^T r M^T per channel, r (B, c, h, w)."""
    return M.right_adjoint(W.left_adjoint(r))


def decomposed_step(x: Tensor, y: Tensor, W: Factor, M: Factor, step: Tensor) -> Tensor:
    """x - mu W^T (W x M - y) M^T with mu = step / max((||W|| ||M||)^2, 0.01).

    Any ``step`` in (0, 2) lowers 1/2 ||y - W x M||^2, whatever the image size, because the norm
    bound is never below the true norm. The floor 0.01 caps the amplification of noise at a factor
    of 10 and leaves the inverse of a gain exact down to 0.1.

    Args:
        x, y: (B, c, h, w).
        step: scalar tensor in (0, 2).
    """
    bound = (W.norm_bound * M.norm_bound).square().clamp_min(0.01)[..., None, None]
    return x - step / bound * kronecker_adjoint(W, M, kronecker_apply(W, M, x) - y)


def affinity_core(q: Tensor, k: Tensor, decay: Tensor) -> Tensor:
    """Dense A_ij = E_ij / sqrt(rowsum_i colsum_j), E = exp(q_i . k_j / sqrt(r) - decay |i - j|).

    The symmetric normalisation has spectral norm 1 for every n, where a row softmax can exceed it
    many times. Evaluated in the log domain, so no row or column can vanish.

    Args:
        q, k: (B, c, n, r).
        decay: (c,), per pixel, positive.

    Returns:
        (B, c, n, n).
    """
    n, r = q.shape[-2:]
    position = torch.arange(n, device=q.device, dtype=q.dtype)
    distance = (position[:, None] - position[None, :]).abs()
    scores = (q @ k.mT) / math.sqrt(r) - decay[:, None, None] * distance
    rows, cols = scores.logsumexp(-1, keepdim=True), scores.logsumexp(-2, keepdim=True)
    return (scores - 0.5 * (rows + cols)).exp()


def lowrank_core(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """A = U V^T with ||U||_F = ||V||_F = 1, hence ||A||_2 <= 1; q, k (B, c, n, r)."""

    def unit(t: Tensor) -> Tensor:
        return t * t.square().sum((-2, -1), keepdim=True).add(1e-12).rsqrt()

    return unit(q), unit(k)


def banded_core(q: Tensor, k: Tensor, decay: Tensor, radius: int) -> Tensor:
    """The affinity restricted to |i - j| <= radius, in O(n radius) memory.

    Rows are cut into blocks of ``radius``; each sees its own and both neighbouring column blocks.

    Returns:
        (B, c, blocks, radius, 3 radius), zero outside the band and the image.
    """
    n, r = q.shape[-2:]
    blocks = -(-n // radius)
    q = _to_blocks(q, blocks, radius)
    k = _with_neighbours(_to_blocks(k, blocks, radius))
    row = torch.arange(blocks * radius, device=q.device).view(blocks, radius, 1)
    col = torch.arange(3 * radius, device=q.device) - radius
    col = col + radius * torch.arange(blocks, device=q.device)[:, None]
    col = col[:, None, :]
    inside = ((row - col).abs() <= radius) & (col >= 0) & (col < n) & (row < n)
    scores = (q @ k.mT) / math.sqrt(r) - decay[:, None, None, None] * (row - col).abs().to(q.dtype)
    # A finite floor keeps logsumexp and its gradient defined in the rows beyond the image.
    scores = scores.masked_fill(~inside, -1e4)
    rows = scores.logsumexp(-1, keepdim=True)
    parts = scores.logsumexp(-2).unflatten(-1, (3, radius))  # per block: columns of 3 blocks
    before = F.pad(parts[..., :-1, 2, :], (0, 0, 1, 0), value=-1e4)  # rows of the previous block
    after = F.pad(parts[..., 1:, 0, :], (0, 0, 0, 1), value=-1e4)  # rows of the next block
    cols = torch.stack([before, parts[..., 1, :], after], -1).logsumexp(-1)[..., None]
    cols = _with_neighbours(cols).mT
    return (scores - 0.5 * (rows + cols)).exp() * inside


def band_matmul(band: Tensor, x: Tensor) -> Tensor:
    """A x for a band (B, c, blocks, R, 3R) and x (B, c, n, m)."""
    blocks, radius = band.shape[2:4]
    y = band @ _with_neighbours(_to_blocks(x, blocks, radius))
    return rearrange(y, 'b c blocks r m -> b c (blocks r) m')[:, :, : x.shape[2]]


def band_matmul_adjoint(band: Tensor, x: Tensor) -> Tensor:
    """A^T x for a band (B, c, blocks, R, 3R) and x (B, c, n, m)."""
    blocks, radius = band.shape[2:4]
    parts = (band.mT @ _to_blocks(x, blocks, radius)).unflatten(3, (3, radius))
    y = parts[:, :, :, 1]
    y = y + F.pad(parts[:, :, 1:, 0], (0, 0, 0, 0, 0, 1))  # goes to the previous block
    y = y + F.pad(parts[:, :, :-1, 2], (0, 0, 0, 0, 1, 0))  # goes to the next block
    return rearrange(y, 'b c blocks r m -> b c (blocks r) m')[:, :, : x.shape[2]]


def _to_blocks(x: Tensor, blocks: int, radius: int) -> Tensor:
    """(B, c, n, m) -> (B, c, blocks, radius, m), zero-padded at the end."""
    x = F.pad(x, (0, 0, 0, blocks * radius - x.shape[2]))
    return rearrange(x, 'b c (blocks r) m -> b c blocks r m', blocks=blocks)


def _with_neighbours(x: Tensor) -> Tensor:
    """(B, c, blocks, R, m) -> (B, c, blocks, 3R, m): previous, own and next block."""
    padded = F.pad(x, (0, 0, 0, 0, 1, 1))
    return torch.cat([padded[:, :, :-2], x, padded[:, :, 2:]], 3)
