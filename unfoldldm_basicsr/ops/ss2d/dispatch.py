"""Choice of the scan backend."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from unfoldldm_basicsr.ops.ss2d import _torch


def backend_for(x: Tensor) -> ModuleType:
    """Module with ``forward`` and ``backward`` for tensors like ``x``."""
    return _torch
