"""Stored outputs and key tables of the released networks, and checks common to all networks."""

import json
from pathlib import Path

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

DATA = Path(__file__).parent / 'data'


def released_pair(name: str) -> dict:
    """Arguments, weights, inputs and output of a small network of the released code."""
    return torch.load(DATA / f'{name}_official_tiny.pt', weights_only=True)


def released_keys(arch: str) -> dict:
    """``kwargs``, ``shapes`` (in order) and number of ``params`` of a released configuration."""
    return json.loads((DATA / 'official_keys.json').read_text(encoding='utf-8'))[arch]


def build_released(pair: dict) -> nn.Module:
    """Our network with the stored weights, loaded strictly."""
    net = ARCH_REGISTRY.get(pair['arch'])(**pair['kwargs']).eval()
    net.load_state_dict(pair['params'], strict=True)
    return net


def randomise(net: nn.Module) -> nn.Module:
    """Random values for every parameter, so that nothing hides behind a zero or a one."""
    with torch.no_grad():
        for parameter in net.parameters():
            scale = 1 / max(1, parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.5
            parameter.add_(torch.randn_like(parameter) * scale)
    return net.eval()


def without_gradient(net: nn.Module, *inputs: Tensor) -> list[str]:
    """Names of parameters that a training step leaves without a finite, nonzero gradient."""
    net.train()(*inputs).square().mean().backward()
    gradients = ((name, parameter.grad) for name, parameter in net.named_parameters())
    return [n for n, g in gradients if g is None or not (g.isfinite().all() and g.abs().sum() > 0)]
