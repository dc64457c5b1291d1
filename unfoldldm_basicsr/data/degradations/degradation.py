"""A degradation: what it does to an image, and the parameters that it draws for each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field

from unfoldldm_basicsr.common.declaration import Options


@dataclass(frozen=True)
class Parameter:
    """Inclusive limits of a parameter, whether larger values degrade more (``'up'``), less
    (``'down'``) or change only the appearance (``'neither'``), and whether only whole numbers
    count.
    """

    minimum: float
    maximum: float
    stronger: Literal['up', 'down', 'neither'] = 'up'
    integer: bool = False

    def range_of(self, given: object) -> tuple[float, float]:
        """(low, high) of a value in an option file; raises ValueError for others."""
        values = list(given) if isinstance(given, list | tuple) else [given, given]
        numbers = [v for v in values if isinstance(v, int | float | np.number) and v == v]
        if len(values) != 2 or len(numbers) < 2 or bool in map(type, values):
            raise ValueError(f'must be a number or [low, high], got {given!r}.')
        if values[0] > values[1]:
            raise ValueError(f'is a range upside down: {values}. Low comes first.')
        for value in values:
            if not self.minimum <= value <= self.maximum:
                limits = f'{self.minimum:g}..{self.maximum:g}'
                raise ValueError(f'is {value}, outside {limits}.')
            if self.integer and value != int(value):
                raise ValueError(f'must be a whole number, got {value}.')
        return values[0], values[1]


def within(minimum: float, maximum: float, stronger: str = 'up', *, integer: bool = False) -> Any:
    parameter = Parameter(minimum, maximum, stronger, integer)
    return Annotated[Any, BeforeValidator(parameter.range_of), parameter]


Probability = Annotated[float, Field(ge=0, le=1)]


class Degradation(Options):
    """One step of a chain: the degradation and the ranges of its parameters."""

    model_config = ConfigDict(validate_default=True)
    apply: ClassVar[Callable[..., np.ndarray]]
    """float32 H W C in, a random generator and the parameters by name; float32 H W C out."""
    reach: ClassVar[int] = 0
    """How many pixels away an output pixel depends on the input, at most."""
    block: ClassVar[int] = 1
    """Side of the squares, counted from the corner of the image, that it treats one by one."""
    type: str
    """Name of the degradation."""
    prob: Probability = 1.0
    """Probability that the step acts on an image."""

    @classmethod
    def parameters(cls) -> dict[str, Parameter]:
        """By name, in the order in which they are drawn."""
        return {
            name: item
            for name, field in cls.model_fields.items()
            for item in field.metadata
            if isinstance(item, Parameter)
        }

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """(low, high) of each parameter; equal for a fixed one."""
        return {name: getattr(self, name) for name in self.parameters()}

    def _limits(self) -> Iterator[tuple[str, Parameter, float, float]]:
        for name, (low, high) in self.ranges.items():
            yield name, self.parameters()[name], low, high

    def sample(self, rng: np.random.Generator) -> dict[str, float]:
        """Draws every parameter; fixed ones use no random number."""
        values: dict[str, float] = {}
        for name, parameter, low, high in self._limits():
            if low == high:
                values[name] = low
            elif parameter.integer:
                values[name] = int(rng.integers(int(low), int(high), endpoint=True))
            else:
                values[name] = float(rng.uniform(low, high))
        return values

    def at_strength(self, strength: float) -> dict[str, float]:
        """Parameters at ``strength`` in [0, 1] of their ranges, 1 degrading most."""
        values: dict[str, float] = {}
        for name, parameter, low, high in self._limits():
            share = 1 - strength if parameter.stronger == 'down' else strength
            value = low + (high - low) * share
            values[name] = round(value) if parameter.integer else value
        return values

    @property
    def has_strengths(self) -> bool:
        """Whether the ranges leave the strength open, not only the appearance."""
        return any(p.stronger != 'neither' and low < high for _, p, low, high in self._limits())
