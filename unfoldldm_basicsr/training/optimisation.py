"""Parameter groups, optimiser and gradient clipping."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from unfoldldm_basicsr.common.contract import contract_of
from unfoldldm_basicsr.common.suggest import did_you_mean

Groups = dict[str, list[tuple[str, Parameter]]]


def parameter_groups(net: nn.Module) -> Groups:
    """Groups that are trained, scheduled and clipped together; without any of its own, one.

    Raises ValueError: the network's own groups miss or repeat a trainable parameter.
    """
    trainable = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    own = contract_of(net).parameter_groups
    if own is None:
        return {'restoration': trainable}
    groups = own()
    times = Counter(id(p) for members in groups.values() for _, p in members)
    wrong = [f'{name} {times[id(p)]} times' for name, p in trainable if times[id(p)] != 1]
    if wrong:
        raise ValueError(
            f'{type(net).__name__}.parameter_groups() must list every parameter that requires a '
            f'gradient once, but lists {", ".join(wrong[:5])}{" ..." if len(wrong) > 5 else ""}.'
        )
    return groups


def build_optimizer(
    groups: Groups, section: Mapping[str, Any], *, decay_all: bool = False
) -> Optimizer:
    """Builds the optimiser of a ``train.optim_g`` section.

    Each named group becomes up to two groups of the optimiser: parameters with weight decay, and
    parameters without (fewer than two dimensions, or marked ``_no_weight_decay``; with
    ``decay_all`` none). Both carry their name under ``group``.
    """
    param_groups: list[dict[str, Any]] = []
    for name, members in groups.items():
        parts: tuple[list, list] = [], []
        for _, p in members:
            spared = p.ndim < 2 or getattr(p, '_no_weight_decay', False)
            parts[spared and not decay_all].append(p)
        for part, settings in zip(parts, ({}, {'weight_decay': 0.0}), strict=True):
            if part:
                param_groups.append({'params': part, 'group': name, **settings})
    options = {k: v for k, v in section.items() if k != 'type'}
    return getattr(torch.optim, section['type'])(param_groups, **options)


class GradientClipper:
    """Measures, and if asked limits, the gradient norm of each group separately.

    One norm for all would let a large loss of one part scale the gradient of another to nothing.
    ``max_norm``: one limit for every group, a limit per group, or None to only measure.

    Raises ValueError: the names do not match the groups.
    """

    def __init__(self, groups: Groups, max_norm: float | Mapping[str, float] | None):
        # Phase I has the prior's group, but nothing in it.
        self.groups = {name: [p for _, p in members] for name, members in groups.items() if members}
        if not isinstance(max_norm, Mapping):
            max_norm = dict.fromkeys(groups, float('inf' if max_norm is None else max_norm))
        for name in sorted(max_norm.keys() - groups.keys()):
            hint = did_you_mean(name, groups)
            raise ValueError(f"the network has no parameter group '{name}'.{hint}")
        for name in sorted(groups.keys() - max_norm.keys()):
            raise ValueError(
                f"no limit for the parameter group '{name}'; name every group: {', '.join(groups)}."
            )
        self.limits = max_norm

    def __call__(self) -> dict[str, Tensor]:
        """Clips in place and returns each group's norm before clipping (scalar tensors)."""
        clip = nn.utils.clip_grad_norm_
        return {name: clip(members, self.limits[name]) for name, members in self.groups.items()}
