"""Memory of a run: what to do where it runs out, and how much it took."""

import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY


def training_advice(opt: Mapping[str, Any]) -> str:
    """What to do where memory runs out in a training with these options."""
    network = opt['network_g']
    option = inspect.signature(ARCH_REGISTRY.get(network['type'])).parameters.get('use_checkpoint')
    recompute = ''
    if option is not None and not network.get('use_checkpoint', option.default):
        recompute = (
            ' set network_g.use_checkpoint: true, which saves the most memory, for about a quarter '
            'more time and the same result;'
        )
    # from the cheapest remedy to the dearest, as in docs/training.md
    return (
        f'In this order: raise train.accum_iter, up to the batch size;{recompute} set train.amp: '
        'bf16; lower datasets.train.gt_size.'
    )


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Adds ``advice`` to the RuntimeError of a GPU that runs out of memory inside."""
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
