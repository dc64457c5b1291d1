"""Statistics of the whole image inside a network, kept the same for all tiles of an image.

Channel attention, pooled descriptors, a degradation embedding or a generated prior depend on the
whole image; computed tile by tile they differ between tiles, and so does the restored image. A
network passes each such value through :func:`image_statistic`, which returns it unchanged. Within
:meth:`ImageStatistics.recorded` the values of a forward pass are collected as well, and within
:meth:`ImageStatistics.used` the means of what was collected take their place, call by call.

The parts to record are taken at full resolution: a reduced image has less noise, and the
statistics of degraded images are about their degradation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

_active: Callable[[Tensor], Tensor] | None = None


def image_statistic(value: Tensor) -> Tensor:
    """Marks a value that depends on the whole image but whose shape does not depend on its size."""
    return value if _active is None else _active(value)


class ImageStatistics:
    """Means of the marked values over the forward passes of one network that were recorded.

    Not for several threads at a time.
    """

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._passes = 0
        self._position = 0

    def __len__(self) -> int:
        """Number of marked values of one forward pass."""
        return len(self._sums)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """One forward pass within it is added to the record."""
        with self._within(self._record):
            yield
        self._passes += 1

    @contextmanager
    def used(self) -> Iterator[None]:
        """One forward pass within it uses the means of the record."""
        with self._within(self._use):
            yield

    @contextmanager
    def _within(self, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
        global _active
        before, _active, self._position = _active, function, 0
        try:
            yield
        finally:
            _active = before

    def _record(self, value: Tensor) -> Tensor:
        if self._passes == 0:
            self._sums.append(value.detach().clone())
        else:
            self._sums[self._position] += value.detach()
        self._position += 1
        return value

    def _use(self, value: Tensor) -> Tensor:
        mean = self._sums[self._position] / self._passes
        self._position += 1
        return mean.to(value.dtype)
