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
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

Kind = Literal['mean', 'sorted']
_active: Callable[[Tensor, Kind], Tensor] | None = None


def image_statistic(value: Tensor, kind: Kind = 'mean') -> Tensor:
    """Marks a value that depends on the whole image but whose shape does not depend on its size.

    ``kind``: how the value of an image follows from those of its tiles: their mean, or, 'sorted',
    (..., n) values at n evenly spaced ranks, the first and the last among them, pooled.
    """
    return value if _active is None else _active(value, kind)


class ImageStatistics:
    """The marked values of an image from the forward passes of one network that were recorded.

    Not for several threads at a time.
    """

    def __init__(self) -> None:
        self._values: list[Tensor] = []
        self._kinds: list[Kind] = []
        self._passes = 0
        self._position = 0
        self._settled = 0

    def __len__(self) -> int:
        """Number of marked values of one forward pass."""
        return len(self._values)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """One forward pass within it is added to the record."""
        with self._within(self._record):
            yield
        self._passes += 1

    @contextmanager
    def used(self) -> Iterator[None]:
        """One forward pass within it uses the record."""
        with self._within(self._use):
            yield

    def settle_sorted(self) -> bool:
        """Fixes the values up to the last sorted one, for further records too, and forgets the
        rest; False where there are none. Quantiles of a tile are far from those of the image, and
        a mean over what was made of them is of no use.
        """
        if 'sorted' not in self._kinds:
            return False
        count = len(self._kinds) - self._kinds[::-1].index('sorted')
        self._values = [self._finished(at) for at in range(count)]
        self._kinds, self._settled, self._passes = ['mean'] * count, count, 0
        return True

    @contextmanager
    def _within(self, function: Callable[[Tensor, Kind], Tensor]) -> Iterator[None]:
        global _active
        before, _active, self._position = _active, function, 0
        try:
            yield
        finally:
            _active = before

    def _record(self, value: Tensor, kind: Kind) -> Tensor:
        at = self._position
        if at < self._settled:
            return self._use(value, kind)
        if self._passes == 0:
            self._values.append(value.detach().clone())
            self._kinds.append(kind)
        elif kind == 'sorted':
            self._values[at] = torch.cat([self._values[at], value.detach()], -1)
        else:
            self._values[at] += value.detach()
        self._position += 1
        return value

    def _use(self, value: Tensor, kind: Kind) -> Tensor:
        self._position += 1
        return self._finished(self._position - 1).to(value.dtype)

    def _finished(self, at: int) -> Tensor:
        value = self._values[at]
        if at < self._settled:
            return value
        if self._kinds[at] == 'mean':
            return value / self._passes
        last, count = value.shape[-1] - 1, value.shape[-1] // self._passes
        ranks = [round(i / (count - 1) * last) for i in range(count)]
        return value.sort(-1).values[..., ranks]
