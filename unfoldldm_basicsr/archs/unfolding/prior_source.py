"""Which prior guides UnfoldLDM's proximal step in a call: one rule for all phases."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from unfoldldm_basicsr.common.suggest import check_choice

PriorSource = Literal['auto', 'generated', 'oracle', 'null', 'shuffled']
NEEDS_GT = ('oracle', 'joint', 'target')


def resolve_source(
    requested: str, phase: int | str, mode: str, gt: Tensor | None, training: bool
) -> str:
    """The source of the guiding prior.

    Args:
        requested: one of :data:`PriorSource`.
        phase: 1, 2, 'joint' or 'inference'.
        mode: 'restore' or 'warmup'.
        gt: ground truth, if there is one.
        training: whether the network is in training mode.

    Returns:
        'generated', 'oracle' (PI's prior), 'null', 'shuffled' (the batch neighbour's generated
        prior), 'joint' (half PI's, half generated), or 'target' (PI's prior guides while the
        diffusion warms up beside it).

    Raises:
        ValueError: an unknown value, or a source that lacks gt, PI or the diffusion.
    """
    check_choice('mode', mode, ('restore', 'warmup'))
    check_choice('prior_source', requested, get_args(PriorSource))
    if mode == 'warmup':
        if phase not in (2, 'joint') or gt is None:
            raise ValueError("mode 'warmup' needs phase: 2 and the ground truth.")
        return 'target'
    source = requested
    if source == 'auto':
        if phase == 1:
            source = 'null' if gt is None else 'oracle'
        else:
            source = 'joint' if phase == 'joint' and training else 'generated'
    if source in NEEDS_GT and gt is None:
        raise ValueError(f"prior_source '{source}' needs the ground truth.")
    if source in NEEDS_GT and phase == 'inference':
        raise ValueError(f"prior_source '{source}' needs PI, which phase 'inference' leaves out.")
    if source in ('generated', 'shuffled') and phase == 1:
        raise ValueError(f"prior_source '{source}' needs the diffusion of phase 2.")
    return source
