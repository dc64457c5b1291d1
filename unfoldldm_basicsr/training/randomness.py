"""Random numbers that survive an interruption.

The random numbers of a training step (prior dropout, diffusion noise) depend on the seed, the
iteration and the rank alone. What other code draws from the global generators is saved with the
training state, and validation leaves those generators as it found them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

RngState = dict[str, Any]


def rng_state() -> RngState:
    """State of the global generators in plain python types and tensors (``weights_only`` safe)."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    return {
        'python': random.getstate(),
        'numpy': [kind, keys.tolist(), int(position), int(has_gauss), float(gauss)],
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_rng_state(state: RngState) -> None:
    """Puts back what :func:`rng_state` returned, also after it went through a file."""
    version, internal, gauss = state['python']
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state['numpy']
    np.random.set_state(  # noqa: NPY002
        (kind, np.asarray(keys, dtype=np.uint32), position, has_gauss, cached)
    )
    torch.set_rng_state(state['torch'].cpu())
    if state['cuda'] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


@contextmanager
def step_rng(seed: int, current_iter: int, rank: int) -> Iterator[None]:
    """Torch random numbers inside depend on the three arguments only; outside nothing changes."""
    digest = hashlib.blake2b(f'{seed}/{current_iter}/{rank}'.encode(), digest_size=8).digest()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        # torch.manual_seed would note the call stack for GPUs not in use: a millisecond each time.
        draw = int.from_bytes(digest, 'big') >> 1
        torch.default_generator.manual_seed(draw)
        if devices:
            torch.cuda.manual_seed(draw)
        yield
