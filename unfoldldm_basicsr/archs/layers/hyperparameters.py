"""Reading constructor arguments back from the shapes of a state dict.

With these, a weight file alone is enough to rebuild a network.
"""

import itertools
from collections.abc import Mapping, Sequence

from torch import Tensor

StateDict = Mapping[str, Tensor]

PUBLISHED_EXPANSION = 2.66  # of Restormer and VLU-Net


def shape_of(state_dict: StateDict, key: str, arch: str) -> tuple[int, ...]:
    """The shape stored under ``key``; ValueError without it: these are not weights of ``arch``."""
    if key not in state_dict:
        known = ', '.join(list(state_dict)[:3]) or 'no keys at all'
        raise ValueError(
            f"These are not weights of {arch}: '{key}' is missing (found: {known}, ...). "
            f"A training checkpoint keeps them under 'params' or 'params_ema'."
        )
    return tuple(state_dict[key].shape)


def count_blocks(state_dict: StateDict, prefix: str) -> int:
    """Number of consecutive modules ``prefix.0``, ``prefix.1``, ... that own weights."""
    start = f'{prefix}.'
    found = {key.removeprefix(start).split('.')[0] for key in state_dict if key.startswith(start)}
    return next(count for count in itertools.count() if str(count) not in found)


def find_expansion(dims: Sequence[int], hidden: Sequence[int], arch: str) -> float:
    """The factor f with int(dim * f) = hidden at every level: 2.66 or the shortest decimal.

    ValueError: no single factor explains all levels, so these are not weights of ``arch``.
    """
    low = max(h / d for h, d in zip(hidden, dims, strict=True))
    shortest = [(int(low * 10**digits) + up) / 10**digits for digits in range(8) for up in (0, 1)]
    for factor in (PUBLISHED_EXPANSION, *shortest):
        if all(int(d * factor) == h for h, d in zip(hidden, dims, strict=True)):
            return factor
    raise ValueError(
        f'These are not weights of {arch}: no ffn_expansion_factor turns {list(dims)} channels '
        f'into hidden widths {list(hidden)}.'
    )
