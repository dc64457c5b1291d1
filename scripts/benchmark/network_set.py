"""The networks that the benchmark scripts compare, by name."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from vlunet_plain import plain_vlunet

from unfoldldm_basicsr import archs

OPTIONS = Path(__file__).resolve().parents[2] / 'options' / 'train' / 'UnfoldLDM'
REFERENCE = 'restormer'
PRESETS = ('tiny', 'small', 'base', 'large')
PEERS: dict[str, dict[str, Any]] = {
    'restormer': {'type': 'Restormer'},
    # the network of the released denoising weights, width 32
    'nafnet': {
        'type': 'NAFNet', 'width': 32, 'enc_blk_nums': [2, 2, 4, 8], 'middle_blk_num': 12,
        'dec_blk_nums': [2, 2, 2, 2],
    },
    'vlunet': {'type': 'VLUNet'},
    'vlunet-plain': {'type': 'VLUNet'},  # its formulas in plain PyTorch, with its parameters
}  # fmt: skip
TRAINED = [*PEERS, *(f'unfoldldm-{preset}-phase{phase}' for preset in PRESETS for phase in (1, 2))]
NAMES = [*TRAINED, *(f'unfoldldm-{preset}' for preset in PRESETS)]


def preset_options(preset: str, phase: int) -> dict[str, Any]:
    path = OPTIONS / f'denoise_{preset}_phase{phase}.yml'
    return yaml.safe_load(path.read_text(encoding='utf-8'))


def network_options(name: str, **changes: Any) -> dict[str, Any]:
    """``network_g`` of a network, with ``changes`` to its arguments.

    ``name``: one of :data:`PEERS`, ``unfoldldm-PRESET`` (as it restores), or
    ``unfoldldm-PRESET-phase1`` or ``-phase2`` (as it trains).
    """
    if name in PEERS:
        return {**PEERS[name], **changes}
    _, preset, *phase = name.split('-')
    phase = int(phase[0][-1]) if phase else 'inference'
    options = preset_options(preset, 1 if phase == 1 else 2)['network_g']
    return {**options, 'phase': phase, **changes}


def build(options: dict[str, Any], device: str = 'cpu') -> nn.Module:
    """A network of ``network_g`` with seeded weights, all of them moved away from zero."""
    arguments = dict(options)
    torch.manual_seed(0)
    net = getattr(archs, arguments.pop('type'))(**arguments)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return net.to(device)


def called(name: str, net: nn.Module) -> Callable[..., Tensor]:
    """What is run: the network, or the plain formulas with its parameters."""
    plain = name == 'vlunet-plain'
    return partial(plain_vlunet, dict(net.named_parameters())) if plain else net


def make_inputs(net: nn.Module, shape: tuple[int, ...], device: str = 'cpu') -> list[Tensor]:
    """A batch of noise (B, 3, H, W), and for VLU-Net a vector per image."""
    inputs = [torch.rand(shape, device=device)]
    if 'degradation' in inspect.signature(net.forward).parameters:
        inputs.append(torch.randn(shape[0], net.embed_dim, device=device))
    return inputs
