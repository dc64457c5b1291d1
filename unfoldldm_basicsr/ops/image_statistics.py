"""Statistics of the whole image inside a network, kept the same for all tiles of an image.

Channel attention, pooled descriptors, a degradation embedding or a generated prior depend on the
whole image; computed tile by tile they differ between tiles, and so does the restored image. A
network passes each such value through :func:`image_statistic`, which returns it unchanged. Within
:meth:`ImageStatistics.recorded` the values of a forward pass are collected as well, and within
:meth:`ImageStatistics.used` the means of what was collected (of sorted values, the quantiles of
all together) take their place, call by call.

The parts to record are taken at full resolution: a reduced image has less noise, and the
statistics of degraded images are about their degradation.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
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
        self._settled = 0  # calls whose value is fixed
        self._position = 0  # of the next call

    def __len__(self) -> int:
        """Number of marked values of one forward pass."""
        return len(self._calls)

    def recorded(self) -> AbstractContextManager[None]:
        """One forward pass within it is added to the record."""
        return self._within(self._record)

    def used(self) -> AbstractContextManager[None]:
        """One forward pass within it uses the record."""
        return self._within(self._use)

    def settle_sorted(self) -> bool:
        """Fixes the values up to the next sorted one, for further records too, and forgets the
        rest; False where there is none. Quantiles of a tile are far from those of the image, and
        a mean over what was made of them is of no use.
        """
        ends = [at for at, (kind, _) in enumerate(self._calls, start=1) if kind == 'sorted']
        if ends:
            self._settled = ends[0]
            self._calls = [('mean', [_pooled(*call)]) for call in self._calls[: ends[0]]]
        return bool(ends)

    @contextmanager
    def _within(self, function: Callable[[Tensor, Kind], Tensor]) -> Iterator[None]:
        thread, self._position = get_ident(), 0
        _active[thread] = function
        try:
            yield
        finally:
            del _active[thread]

    def _record(self, value: Tensor, kind: Kind) -> Tensor:
        if self._position < self._settled:
            return self._use(value, kind)
        if self._position == len(self._calls):  # in the first pass
            self._calls.append((kind, []))
        self._calls[self._position][1].append(value.detach().clone())
        self._position += 1
        return value

    def _use(self, value: Tensor, kind: Kind) -> Tensor:
        self._position += 1
        return _pooled(*self._calls[self._position - 1]).to(value.dtype)


def _pooled(kind: Kind, values: list[Tensor]) -> Tensor:
    if kind == 'mean':
        return reduce(torch.add, values) / len(values)
    last, count = sum(value.shape[-1] for value in values) - 1, values[0].shape[-1]
    ranks = [round(i / (count - 1) * last) for i in range(count)]
    return torch.cat(values, -1).sort(-1).values[..., ranks]
