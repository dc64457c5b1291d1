"""Slow, obvious reference implementations; nothing here is shared with the package."""

import torch
import torch.nn.functional as F
from torch import Tensor


def naive_selective_scan(u, delta, A, B, C, D, bias) -> Tensor:
    """The recurrence as written, one step per position.

    u, delta (batch, D, L); A (D, N); B, C (batch, G, N, L), channel d reads group d // (D / G);
    D, bias (D,). ``unbind`` keeps the backward pass linear in L.
    """
    delta = F.softplus(delta + bias[:, None])
    B, C = (t.repeat_interleave(u.shape[1] // t.shape[1], dim=1) for t in (B, C))
    h, ys = u.new_zeros(u.shape[0], *A.shape), []
    steps = (t.unbind(-1) for t in (delta, u, B, C))
    for delta_t, u_t, B_t, C_t in zip(*steps, strict=True):
        h = torch.exp(delta_t[..., None] * A) * h + (delta_t * u_t)[..., None] * B_t
        ys.append((h * C_t).sum(-1))
    return torch.stack(ys, -1) + D[:, None] * u


def naive_ss2d(x, dt, A, Bm, Cm, D, bias) -> Tensor:
    """Explicit cross-scan, naive scan of the four sequences, explicit cross-merge."""
    batch, height, width, channels = x.shape
    rows = torch.arange(height * width).view(height, width)
    forward = torch.stack([rows.flatten(), rows.t().flatten()])
    order = torch.cat([forward, forward.flip(1)])  # (4, L): pixels as each direction visits them

    def sequences(t):  # (B, H, W, 4, Z) -> (B, 4, Z, L), every direction in its own order
        t = t.flatten(1, 2)
        return torch.stack([t[:, order[k], k] for k in range(4)], 1).transpose(2, 3)

    u = sequences(x[..., None, :].expand(-1, -1, -1, 4, -1)).flatten(1, 2)
    ys = naive_selective_scan(
        u, sequences(dt).flatten(1, 2), A.flatten(0, 1), sequences(Bm), sequences(Cm),
        D.flatten(), bias.flatten(),
    )  # fmt: skip
    ys = ys.view(batch, 4, channels, -1)
    merged = sum(ys[:, k][..., order[k].argsort()] for k in range(4))
    return merged.view(batch, channels, height, width).permute(0, 2, 3, 1)
