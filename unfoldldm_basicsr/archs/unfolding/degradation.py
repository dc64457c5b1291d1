"""Structured degradation factors: D = M^T kron W, applied as y = W x M, and its adjoint.

Per colour channel, with column-stacking vec, vec(W X M) = (M^T kron W) vec(X), so a left factor
W (h x h) acting on columns of pixels and a right factor M (w x w) acting on rows of pixels are the
Kronecker-structured degradation of UnfoldLDM (arXiv 2511.18152). Both are held as one operator type

    F = diag(gain) + diag(mix) A,        ||A||_2 <= 1,        ||F||_2 <= max|gain| + max|mix|,

with W = F_rows and M = F_cols^T. How the paper produces W and M is not known; here A is an
affinity of rows with rows, or of columns with columns.

Shapes: B batch, c colour channels, n = h or w, r rank of the affinity.
"""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F


class Factor(NamedTuple):
    """One factor of size n x n, per image and channel."""

    matrix: Tensor  # F, (B, c, n, n)
    norm_bound: Tensor  # max|gain| + max|mix|, (B, c)


def factor(gain: Tensor, mix: Tensor, core: Tensor) -> Factor:
    """diag(gain) + diag(mix) A of gain, mix (B, c, n) and A (B, c, n, n) with norm 1."""
    matrix = mix[..., None] * core
    matrix.diagonal(dim1=-2, dim2=-1).add_(gain)
    return Factor(matrix, gain.abs().amax(-1) + mix.abs().amax(-1))


def decomposed_step(x: Tensor, y: Tensor, W: Factor, M: Factor, step: Tensor) -> Tensor:
    """x - mu W^T (W x M - y) M^T with mu = step / max((||W|| ||M||)^2, 0.01).

    Any ``step`` in (0, 2) lowers 1/2 ||y - W x M||^2, whatever the image size, because the norm
    bound is never below the true norm. The floor 0.01 caps the amplification of noise at a factor
    of 10 and leaves the inverse of a gain exact down to 0.1. x, y (B, c, h, w), step (B, 1, 1, 1);
    ``M`` holds F with M = F^T.
    """
    bound = (W.norm_bound * M.norm_bound).square().clamp_min(0.01)[..., None, None]
    residual = W.matrix @ x @ M.matrix.mT - y
    return x - step / bound * (W.matrix.mT @ residual @ M.matrix)


def affinity_core(q: Tensor, k: Tensor, decay: Tensor) -> Tensor:
    """Dense A_ij = E_ij / sqrt(rowsum_i colsum_j), E = exp(q_i . k_j / sqrt(r) - decay |i - j|).

    The symmetric normalisation has spectral norm 1 for every n, where a row softmax can exceed it
    many times. Evaluated in the log domain, so no row or column can vanish. q, k (B, c, n, r),
    decay (c,), per pixel, positive -> (B, c, n, n).
    """
    n, r = q.shape[-2:]
    position = torch.arange(n, device=q.device, dtype=q.dtype)
    distance = (position[:, None] - position[None, :]).abs()
    scores = (q @ k.mT) / math.sqrt(r) - decay[:, None, None] * distance
    rows, cols = scores.logsumexp(-1, keepdim=True), scores.logsumexp(-2, keepdim=True)
    return (scores - 0.5 * (rows + cols)).exp()


def cut(images: Tensor, side: int) -> Tensor:
    """(B, c, h, w) -> (B n, c, side, side): windows that overlap by half, edges repeated beyond."""
    bottom, right = (_covered(length, side) - length for length in images.shape[2:])
    images = F.pad(images, (0, right, 0, bottom), 'replicate')
    windows = images.unfold(2, side, side // 2).unfold(3, side, side // 2)
    return rearrange(windows, 'b c i j h w -> (b i j) c h w')


def join(windows: Tensor, size: torch.Size) -> Tensor:
    """Undoes :func:`cut` for images of ``size`` (h, w); the windows fade into each other."""
    side = windows.shape[-1]
    covered = [_covered(length, side) for length in size]
    below, beside = (2 * length // side - 1 for length in covered)
    count = below * beside
    fade = torch.hann_window(side + 2, periodic=False, dtype=windows.dtype, device=windows.device)
    fade = fade[1:-1]
    fade = (fade[:, None] * fade).expand(1, 1, -1, -1)

    def add(parts: Tensor) -> Tensor:
        parts = rearrange(parts, '(b n) c h w -> b (c h w) n', n=count)
        return F.fold(parts, covered, side, stride=side // 2)

    image = add(windows * fade) / add(fade.repeat(count, 1, 1, 1))
    return image[..., : size[0], : size[1]]


def _covered(length: int, side: int) -> int:
    """How far windows of an even ``side`` reach that overlap by half and cover ``length``."""
    half = side // 2
    return max(-(-length // half) * half, side)
