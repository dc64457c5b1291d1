"""Exponential moving average of a network: trained parameters averaged, everything else copied."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


@torch.no_grad()
def update_ema(ema: nn.Module, net: nn.Module, decay: float) -> None:
    """Moves ``ema`` towards ``net``.

    Parameters that require no gradient are left alone, so a frozen teacher stays bit-identical in
    the average; buffers (running statistics, counters) are copied.

    Args:
        ema: the average, same structure as ``net``.
        net: the bare network that is trained.
        decay: weight of the old average; 0 copies the whole network, frozen parts included.
    """
    if decay == 0:
        ema.load_state_dict(net.state_dict())
        return
    averages, values = [], []
    for average, value in zip(ema.parameters(), net.parameters(), strict=True):
        if value.requires_grad:
            averages.append(average)
            values.append(value)
    if averages:
        get_ema_multi_avg_fn(decay)(averages, values, 1)
    for average, value in zip(ema.buffers(), net.buffers(), strict=True):
        average.copy_(value)
