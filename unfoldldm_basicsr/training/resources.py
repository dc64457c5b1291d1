"""Memory: what a run used, and advice when there is too little."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY

CHECKPOINT_ADVICE = (
    'Set network_g.use_checkpoint: true, which saves the most memory, for about a quarter more '
    'time and the same result. '
)
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


@contextmanager
def training_memory(opt: Mapping[str, Any]) -> Iterator[None]:
    """:func:`memory_advice` for a step of the training with these options.

    Raises:
        RuntimeError: out of GPU memory.
    """
    network = opt['network_g']
    option = inspect.signature(ARCH_REGISTRY.get(network['type'])).parameters.get('use_checkpoint')
    off = option is not None and not network.get('use_checkpoint', option.default)
    with memory_advice((CHECKPOINT_ADVICE if off else '') + TRAINING_ADVICE):
        yield


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peak memory in GiB: of the GPU, or of this process on a CPU (empty where unknown)."""
    if device.type == 'cuda':
        return {'peak_memory_gib': torch.cuda.max_memory_allocated() / 2**30}
    if sys.platform not in ('linux', 'darwin'):
        return {}
    import resource  # does not exist on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {'peak_memory_gib': peak * (1024 if sys.platform == 'linux' else 1) / 2**30}
