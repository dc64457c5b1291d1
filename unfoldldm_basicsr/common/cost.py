"""Parameters and multiply-accumulate operations of a network, counted without running it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class Cost(NamedTuple):
    """Cost of restoring one image.

    Attributes:
        params: number of parameters, without buffers.
        macs: multiply-accumulate operations of matrix products, convolutions, attention and
            operators with a registered formula. Element-wise operations do not count.
    """

    params: int
    macs: int


def network_cost(network_opt: Mapping[str, Any], size: int = 256) -> Cost:
    """Cost of the network of an option file, for one RGB image of ``size`` x ``size`` pixels.

    Args:
        network_opt: ``network_g``: ``type`` and the constructor's arguments.
        size: height and width of the image.

    Raises:
        KeyError: no registered network of that type.
        RuntimeError: the network looks at tensor values to know what to compute.
    """
    from basicsr.utils.registry import ARCH_REGISTRY

    arguments = dict(network_opt)
    kind = arguments.pop('type')
    networks = dict(iter(ARCH_REGISTRY))
    if kind not in networks:
        raise KeyError(f"no network '{kind}' is registered.")
    return module_cost(build_on_meta(networks[kind], arguments), size)


def build_on_meta(cls: type[nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """Builds a network on the meta device: tensors with shapes but no values, so no memory.

    A few constructors of BasicSR compute with tensor values; their networks are moved there.
    """
    try:
        with torch.device('meta'):
            return cls(**arguments)
    except (RuntimeError, NotImplementedError) as error:
        if 'meta' not in str(error).lower():
            raise
        return cls(**arguments).to('meta')


def module_cost(net: nn.Module, size: int = 256) -> Cost:
    """Cost of one evaluation of a network on the meta device.

    Args:
        net: called with an RGB image; VLU-Net also gets its vector ``degradation``.
        size: height and width of the image.
    """
    image, vector = torch.empty(1, 3, size, size, device='meta'), {}
    if 'degradation' in inspect.signature(net.forward).parameters:
        vector['degradation'] = torch.empty(1, net.embed_dim, device='meta')
    was_training = net.training
    net.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(image, **vector)
    net.train(was_training)
    params = sum(p.numel() for p in net.parameters())
    return Cost(params, counter.get_total_flops() // 2)
