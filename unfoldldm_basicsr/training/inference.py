"""Restoring the images of a validation: whole, traced or in tiles."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from basicsr.utils import get_root_logger
from torch import Tensor, nn

from unfoldldm_basicsr.common.contract import contract_of
from unfoldldm_basicsr.restoring.tiling import restore_in_tiles
from unfoldldm_basicsr.training.options import ValOptions


class Restored(NamedTuple):
    """What a model made of a batch: images (B, C, H, W), and its stages where they are traced."""

    output: Tensor
    trace: Any = None


def restore_image(
    net: nn.Module, lq: Tensor, arguments: Mapping[str, Any], val: ValOptions
) -> Restored:
    """Runs a network on (B, C, H, W); in tiles as ``unfoldldm restore --tile`` does.

    Args:
        net: the bare network, in eval mode.
        lq: degraded images.
        arguments: further arguments of its forward pass.
        val: ``tile``, ``tile_overlap``, ``trace``.
    """
    if val.tile and max(lq.shape[-2:]) > val.tile:
        output, note = restore_in_tiles(
            lambda part: net(part, **arguments),
            lq,
            contract_of(net),
            tile=val.tile,
            overlap=val.tile_overlap,
        )
        if note:
            _warn_once(f'val.tile changes the results: {type(net).__name__} {note}')
        return Restored(output)
    if val.trace:
        trace = net(lq, **arguments, return_trace=True)
        return Restored(trace.output, trace)
    return Restored(net(lq, **arguments))


@functools.cache
def _warn_once(message: str) -> None:
    """Not for every image."""
    get_root_logger().warning(message)
