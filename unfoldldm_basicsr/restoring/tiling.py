"""Restores an image in overlapping tiles, blended so that no seam is visible.

Every tile is weighted by a window that is one in its middle, falls smoothly to zero inside the
overlap, and is exactly zero on the outer quarter of the overlap, where a tile lacks the context
that the whole image has. The windows of all tiles sum to one at every pixel. For an operator whose
receptive field (full width) is smaller than half the overlap the result therefore equals the
untiled one; for a network with global statistics it does not, and such networks say so through
their attribute ``tiling_changes_result``. :func:`with_image_statistics` gives all tiles the same
statistics, close to those of the whole image.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise, product
from typing import NamedTuple
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn

from unfoldldm_basicsr.common.contract import check_tile, contract_of
from unfoldldm_basicsr.common.errors import first_line
from unfoldldm_basicsr.ops.image_statistics import ImageStatistics

_warned: WeakSet[nn.Module] = WeakSet()  # networks of which it was said that tiles change them


class TileError(RuntimeError):
    """A tile, or an image in one piece, could not be restored; the message says what to do."""


@contextmanager
def telling_remedy(what: str, remedy: str) -> Iterator[None]:
    """TileError that names what failed and the remedy where a network fails, mostly for memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise TileError(f'{what}: {first_line(error)}. If memory ran out, {remedy}.') from error


class Span(NamedTuple):
    """One tile along one axis: pixels ``start`` to ``stop`` and their blending ``weight``."""

    start: int
    stop: int
    weight: Tensor  # (stop - start,) float64


def tile_spans(size: int, tile: int, overlap: int, size_multiple: int = 1) -> list[Span]:
    """Cuts one axis into overlapping tiles whose weights sum to one at every pixel.

    All tiles start at a multiple of ``size_multiple``, so that a network that downsamples sees the
    same pixel grid as without tiles. The last tile is shifted inwards to end with the image.
    ``tile`` is the largest side, ``overlap`` the smallest, in pixels.
    """
    tile, overlap = check_tile(tile, overlap, size_multiple)
    last = max(0, -(-(size - tile) // size_multiple) * size_multiple)
    starts = [*range(0, size - tile, tile - overlap), last]
    stops = [*(start + tile for start in starts[:-1]), size]

    # rise[i] goes from 0 to 1 in the middle of the overlap of the tiles i-1 and i. A tile's weight
    # is the difference of two successive rises, hence the sum over all tiles telescopes to one.
    position = torch.arange(size, dtype=torch.float64) + 0.5
    rises = [torch.ones(size, dtype=torch.float64)]
    for start, stop in zip(starts[1:], stops[:-1], strict=True):
        centre, width = (start + stop) / 2, max(overlap / 2, 1e-6)
        ramp = ((position - centre) / width + 0.5).clamp(0, 1)
        rises.append(0.5 - 0.5 * torch.cos(torch.pi * ramp))
    rises.append(torch.zeros(size, dtype=torch.float64))
    places = zip(starts, stops, pairwise(rises), strict=True)
    return [Span(start, stop, (up - down)[start:stop]) for start, stop, (up, down) in places]


def sample_tiles(
    height: int, width: int, tile: int, size_multiple: int
) -> list[tuple[slice, slice]]:
    """(rows, columns) of tiles of one size spread evenly over an image, at most three along each
    side; all start at multiples of ``size_multiple``.
    """

    def spans(size: int) -> list[slice]:
        side = min(size, tile)
        starts = np.linspace(0, size - side, min(3, -(-size // side)), dtype=int)
        starts = np.unique(starts // size_multiple * size_multiple)
        return [slice(start, start + side) for start in starts]

    return [*product(spans(height), spans(width))]


def with_image_statistics(
    fn: Callable[[Tensor], Tensor], image: Tensor, *, tile: int, size_multiple: int = 1
) -> Callable[[Tensor], Tensor] | None:
    """``fn`` with a network's statistics of the whole image fixed to their means over 3 x 3 of its
    tiles.

    Args are those of :func:`restore_in_tiles`, which applies the result to tiles of ``image``;
    None where the network marks no statistics. TileError: ``fn`` failed.
    """
    statistics = ImageStatistics()

    def record() -> None:
        for rows, columns in sample_tiles(*image.shape[-2:], tile, size_multiple):
            part = image[..., rows, columns]
            what = f'Statistics of {part.shape[-1]}x{part.shape[-2]} pixels failed'
            with telling_remedy(what, f'lower --tile (now {tile})'), statistics.applied():
                fn(part)

    record()
    if len(statistics) == 0:
        return None
    while statistics.settle():
        record()

    def fixed(part: Tensor) -> Tensor:
        with statistics.applied():
            return fn(part)

    return fixed


def restore_in_tiles(
    net: nn.Module,
    forward: Callable[[Tensor], Tensor],
    image: Tensor,
    *,
    tile: int,
    overlap: int,
    global_statistics: bool = True,
    on_tile: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Applies ``forward`` tile by tile and blends the results: (B, C', H, W) on the CPU in the
    dtype of its output. The sum is kept in float64, so that blending adds no rounding error.

    Warns once of a network whose results differ from those without tiles by more than a little.

    Args:
        net: the network behind ``forward``; tiles start at multiples of its ``size_multiple``.
        forward: (B, C, h, w) -> (B, C', h, w), same height and width, which brings the tile to its
            device; a large image is best left on the CPU.
        image: (B, C, H, W).
        tile, overlap: side of a tile, and what neighbours share, in pixels. An image that fits is
            passed to ``forward`` as it is.
        global_statistics: all tiles have the same statistics, where the network marks any.
        on_tile: called with (number of finished tiles, number of tiles) after every tile.

    Raises:
        ValueError: a tile that is not larger than the overlap, or ``forward`` changed the size.
        TileError: ``forward`` failed on a tile; nothing is filled in for it.
    """
    contract, (height, width) = contract_of(net), image.shape[-2:]
    step, fixed = contract.size_multiple, None
    side, _ = check_tile(tile, overlap, step)
    if contract.tiling_changes_result and max(height, width) > side:
        if global_statistics:
            fixed = with_image_statistics(forward, image, tile=side, size_multiple=step)
        if fixed is None and net not in _warned:
            _warned.add(net)
            logging.getLogger('basicsr').warning(
                'Tiles change the results: %s uses statistics of the whole image, here those of '
                'each tile, and seams may show. Leave tiles off where memory allows, or use the '
                'same statistics for all where it marks them (--global-statistics).',
                type(net).__name__,
            )
    forward, blended = fixed or forward, None
    spans = [*product(*(tile_spans(size, tile, overlap, step) for size in (height, width)))]
    for done, (row, column) in enumerate(spans, start=1):
        place = np.s_[..., row.start : row.stop, column.start : column.stop]
        part = image[place]
        where = f'rows {row.start}-{row.stop}, columns {column.start}-{column.stop}'
        what = f'Tile {done} of {len(spans)} ({where}) failed'
        with telling_remedy(what, f'lower --tile (now {tile})'):
            result = forward(part).cpu()
        if result.shape[-2:] != part.shape[-2:]:
            raise ValueError(
                f'Tiles need a network whose output has the size of its input, but'
                f' {tuple(part.shape[-2:])} became {tuple(result.shape[-2:])} (height, width).'
            )
        if blended is None:
            blended = torch.zeros(*result.shape[:2], height, width, dtype=torch.float64)
        blended[place].addcmul_(result.double(), row.weight[:, None] * column.weight)
        if on_tile is not None:
            on_tile(done, len(spans))
    return blended.to(result.dtype)
