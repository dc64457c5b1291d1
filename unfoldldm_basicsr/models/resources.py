"""Memory: what a run used, and advice when there is too little."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

TRAINING_ADVICE = (
    'Lower datasets.train.gt_size or batch_size_per_gpu, raise train.accum_iter, or set train.amp: '
    'bf16.'
)
VALIDATION_ADVICE = 'Set val.tile (for example 512) to restore large images in parts.'


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Adds ``advice`` to the error when the GPU runs out of memory inside.

    Raises:
        RuntimeError: out of GPU memory.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise RuntimeError(f'Out of GPU memory. {advice} ({error})') from error


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peak memory in GiB: of the GPU, or of this process on a CPU (empty where unknown)."""
    if device.type == 'cuda':
        return {'peak_memory_gib': torch.cuda.max_memory_allocated() / 2**30}
    if sys.platform not in ('linux', 'darwin'):
        return {}
    import resource  # does not exist on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {'peak_memory_gib': peak * (1024 if sys.platform == 'linux' else 1) / 2**30}
