"""Parameters, operations and memory of a network, counted without running it."""

import weakref
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from unfoldldm_basicsr.common.contract import image_channels, run_on_trial

SIZE = 256  # of the image that operations are counted for, in pixels


class Cost(NamedTuple):
    """Cost of restoring one image: parameters without buffers, and multiply-accumulate operations
    of matrix products, convolutions, attention and operators with a registered formula.
    """

    params: int
    macs: int


def network_cost(network_opt: Mapping[str, Any], size: int = SIZE) -> Cost:
    """Cost of the ``network_g`` of an option file, for one image of ``size`` x ``size`` pixels.

    KeyError: no registered network of that type; RuntimeError: it looks at tensor values to know
    what to compute; ValueError: it has inputs of its own.
    """
    from basicsr.utils.registry import ARCH_REGISTRY

    arguments = dict(network_opt)
    cls = ARCH_REGISTRY.get(arguments.pop('type'))
    net = build_on_meta(cls, arguments).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run_on_trial(net, torch.empty(1, image_channels(cls, arguments), size, size, device='meta'))
    return Cost(sum(p.numel() for p in net.parameters()), counter.get_total_flops() // 2)


def build_on_meta(cls: type[nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """Builds a network on the meta device: tensors with shapes but no values, so no memory.

    A few constructors compute with tensor values, or set some; their networks are moved there.
    """
    try:
        with torch.device('meta'):
            return cls(**arguments)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        if not any(words in str(error).lower() for words in ('meta', 'incompatible tensor type')):
            raise
        return cls(**arguments).to('meta')


def bytes_per_pixel(net: nn.Module, channels: int) -> float:
    """Memory that restoring takes at its peak, over the pixels of the image: tensors in fp32.

    Counted on the meta device. What libraries take beside the tensors comes on top.
    """
    copy = deepcopy(net).to('meta').eval()
    with torch.no_grad(), _LiveTensors() as memory:
        run_on_trial(copy, torch.empty(1, channels, 256, 256, device='meta'))
    return memory.peak / 256**2


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be had on a device without ending other programs; None where unknown."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    limits = []
    info, group = Path('/proc/meminfo'), Path('/sys/fs/cgroup')
    if info.is_file():
        lines = (line.split() for line in info.read_text().splitlines())
        limits += [1024 * int(words[1]) for words in lines if words[0] == 'MemAvailable:']
    if (group / 'memory.max').is_file() and (group / 'memory.current').is_file():  # a container
        limit = (group / 'memory.max').read_text().strip()
        used = int((group / 'memory.current').read_text())
        stat = dict(line.split() for line in (group / 'memory.stat').read_text().splitlines())
        used -= int(stat.get('inactive_file', 0))  # given back on demand
        limits += [] if limit == 'max' else [int(limit) - used]
    return max(min(limits), 0) if limits else None


class _LiveTensors(TorchDispatchMode):
    """Adds up the storages that are alive; ``peak`` is the most there was, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.live = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and value.untyped_storage()._cdata not in self.known:
                storage = value.untyped_storage()
                self.known.add(storage._cdata)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size
