"""A restoration network small enough to reason about, registered for the tests that need one."""

from pathlib import Path

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from helpers import tiny_unfoldldm
from torch import Tensor, nn
from torch.nn import functional as F

from unfoldldm_basicsr.archs.unfoldldm_arch import UnfoldLDM
from unfoldldm_basicsr.weights.checkpoint import network_meta


@ARCH_REGISTRY.register()
class TinyConvNet(nn.Module):
    """x + conv(conv(x)), or with ``use_mean`` x + conv(conv(x)) * mean(x), a global network."""

    def __init__(self, *, inp_channels: int = 3, dim: int = 4, use_mean: bool = False):
        super().__init__()
        self.head = nn.Conv2d(inp_channels, dim, 3)
        self.tail = nn.Conv2d(dim, inp_channels, 3)
        self.tiling_changes_result = use_mean

    def forward(self, lq: Tensor) -> Tensor:
        residual = self.head(F.pad(lq, (1, 1, 1, 1), mode='replicate'))
        residual = self.tail(F.pad(residual.tanh(), (1, 1, 1, 1), mode='replicate'))
        factor = lq.mean((1, 2, 3), keepdim=True) if self.tiling_changes_result else 1
        return lq + residual * factor


@ARCH_REGISTRY.register()
class TwoGroupTestNet(nn.Module):
    """Two convolutions in two groups, a frozen teacher, optionally batch normalisation."""

    def __init__(self, *, normalise: bool = False):
        super().__init__()
        self.restore = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3) if normalise else nn.Identity()
        self.prior = nn.Conv2d(3, 3, 1)
        self.step = nn.Parameter(torch.ones(1, 1))
        self.step._no_weight_decay = True
        self.teacher = nn.Conv2d(3, 3, 1).requires_grad_(False)

    def parameter_groups(self):
        named = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        return {
            'restoration': [item for item in named if not item[0].startswith('prior')],
            'prior': [item for item in named if item[0].startswith('prior')],
        }

    def forward(self, lq):
        return lq + self.step * self.prior(self.norm(self.restore(lq))) + 0 * self.teacher(lq)


# arguments of the smallest Restormer that has every part
RESTORMER = {
    'dim': 8, 'num_blocks': [1, 2, 1, 1], 'num_refinement_blocks': 2, 'heads': [1, 2, 2, 4],
}  # fmt: skip
TWO_GROUPS = {'type': 'TwoGroupTestNet'}
NORMED = {**TWO_GROUPS, 'normalise': True}


def unfoldldm_kwargs(phase: int | str = 2, **changes) -> dict:
    """Arguments of an UnfoldLDM that runs in milliseconds."""
    return {k: v for k, v in tiny_unfoldldm(phase, **changes).items() if k != 'type'}


def shake(net: nn.Module, size: float = 0.03) -> nn.Module:
    """Moves all parameters away from their initial values: zeros would hide faults."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return net


def save_weights(path: Path, net: nn.Module, *, average: nn.Module | None = None, **kwargs) -> Path:
    """Writes a file as training does; ``kwargs`` are the arguments that ``net`` was built with."""
    content = {'params': net.state_dict()}
    if average is not None:
        content['params_ema'] = average.state_dict()
    torch.save({**content, 'arch': network_meta({'type': type(net).__name__, **kwargs})}, path)
    return path


def save_trained(path: Path, phase: int | str = 2, **changes) -> UnfoldLDM:
    """A file of an UnfoldLDM that looks trained; returns the network with its averaged weights."""
    kwargs = unfoldldm_kwargs(phase, **changes)
    net, average = (shake(UnfoldLDM(**kwargs)) for _ in range(2))
    save_weights(path, net, average=average, **kwargs)
    return average.eval()
