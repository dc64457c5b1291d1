"""Statistics of the whole image inside a network, kept the same for all tiles of an image.

Channel attention, pooled descriptors, a degradation embedding or a generated prior depend on the
whole image; computed tile by tile they differ between tiles, and so does the restored image. A
network passes each such value through :func:`image_statistic`, which returns it unchanged. Within
:meth:`ImageStatistics.applied` the values of a forward pass are collected as well, until
:meth:`ImageStatistics.settle` fixes the means of what was collected (of sorted values, the
quantiles of all together), which then take their place, call by call.

The parts to record are taken at full resolution: a reduced image has less noise, and the
statistics of degraded images are about their degradation.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from threading import get_ident
from typing import Literal

import torch
from torch import Tensor

Kind = Literal['mean', 'sorted']
_active: dict[int, Callable[[Tensor, Kind], Tensor]] = {}  # by thread: others run networks too


def image_statistic(value: Tensor, kind: Kind = 'mean') -> Tensor:
    """Marks a value that depends on the whole image but whose shape does not depend on its size.

    ``kind``: how the value of an image follows from those of its tiles: their mean, or, 'sorted',
    (..., n) values at n evenly spaced ranks, the first and the last among them, pooled.
    """
    function = _active.get(get_ident()) if _active else None
    return value if function is None else function(value, kind)


class ImageStatistics:
    """The marked values of an image from forward passes of one network, all in one thread."""

    def __init__(self) -> None:
        self._calls: list[tuple[Kind, list[Tensor]]] = []  # and their values in all passes
        self._settled = 0.0  # calls whose value is fixed, infinite where all are
        self._position = 0  # of the last call

    def __len__(self) -> int:
        """Number of marked values of one forward pass."""
        return len(self._calls)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """One forward pass within it uses the fixed values, and adds the others to the record."""
        thread, self._position = get_ident(), 0
        _active[thread] = self._mark
        try:
            yield
        finally:
            del _active[thread]

    def settle(self) -> bool:
        """Fixes the values up to the next sorted one and forgets the rest, which True says is to be
        recorded anew; else fixes all. Quantiles of a tile are far from those of the image, and a
        mean over what was made of them is of no use.
        """
        ends = [at for at, (kind, _) in enumerate(self._calls, start=1) if kind == 'sorted']
        kept = self._calls[: ends[0]] if ends else self._calls
        self._settled = ends[0] if ends else math.inf
        self._calls = [('mean', [_pooled(*call)]) for call in kept]
        return bool(ends)

    def _mark(self, value: Tensor, kind: Kind) -> Tensor:
        self._position += 1
        if max(len(self._calls), self._settled) < self._position:  # in the first pass
            self._calls.append((kind, []))
        values = self._calls[self._position - 1][1]
        if self._position <= self._settled:
            return values[0].to(value.dtype, copy=True)
        values.append(value.detach().clone())
        return value


def _pooled(kind: Kind, values: list[Tensor]) -> Tensor:
    if kind == 'mean':
        return reduce(torch.add, values) / len(values)
    last, count = sum(value.shape[-1] for value in values) - 1, values[0].shape[-1]
    ranks = [round(i / (count - 1) * last) for i in range(count)]
    return torch.cat(values, -1).sort(-1).values[..., ranks]
