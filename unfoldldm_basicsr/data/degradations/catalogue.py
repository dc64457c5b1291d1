"""The degradations that option files can name, and chains of them.

A chain is a list of steps, applied in order::

    degradations:
      - {type: gaussian_blur, prob: 0.5, sigma: [0.2, 2.0]}   # uniform in the range
      - {type: gaussian_noise, sigma: 25}                     # fixed value
      - {type: jpeg, quality: [30, 90]}                       # whole numbers, ends included

A parameter is a number, or a range that every image draws from anew; one that is left out takes its
default.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from unfoldldm_basicsr.common.declaration import OptionError, Options, Problem, Tuple, read, takes
from unfoldldm_basicsr.common.suggest import did_you_mean
from unfoldldm_basicsr.data.degradations import blur, sensor, weather


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


def _within(minimum: float, maximum: float, stronger: str = 'up', *, integer: bool = False) -> Any:
    parameter = Parameter(minimum, maximum, stronger, integer)
    return Annotated[Any, BeforeValidator(parameter.range_of), parameter]


Share = _within(0.0, 1.0)
Deviation = _within(0.0, 255.0)  # 8-bit units, as denoising papers state it
Probability = Annotated[float, Field(ge=0, le=1)]
Level = Annotated[float, Field(ge=0, le=255)]  # the same, one of several
Angle = _within(-360.0, 360.0, 'neither')  # degrees


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

    def sample(self, rng: np.random.Generator) -> dict[str, float]:
        """Draws every parameter; fixed ones use no random number."""
        values: dict[str, float] = {}
        for name, parameter in self.parameters().items():
            low, high = self.ranges[name]
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
        for name, parameter in self.parameters().items():
            low, high = self.ranges[name]
            share = 1 - strength if parameter.stronger == 'down' else strength
            value = low + (high - low) * share
            values[name] = round(value) if parameter.integer else value
        return values

    @property
    def has_strengths(self) -> bool:
        """Whether the ranges leave the strength open, not only the appearance."""
        pairs = zip(self.parameters().values(), self.ranges.values(), strict=True)
        return any(p.stronger != 'neither' and low < high for p, (low, high) in pairs)


class GaussianNoise(Degradation):
    """Additive white Gaussian noise."""

    apply = staticmethod(sensor.gaussian_noise)
    type: Literal['gaussian_noise'] = 'gaussian_noise'
    sigma: Deviation = (0.0, 50.0)
    """Standard deviation, 8-bit units."""
    levels: Annotated[Tuple[Level], Field(min_length=1)] | None = None
    """Draw one of these standard deviations, each as often, instead of one from a range."""
    gray_prob: Probability = 0.0
    """Probability that all channels get the same noise, as grey photos have it."""

    @field_validator('levels')
    @classmethod
    def _instead_of_sigma(cls, levels: tuple | None, info: ValidationInfo) -> tuple | None:
        if levels and info.data.get('sigma', ()) != cls.model_fields['sigma'].default:
            raise ValueError('stands instead of sigma: remove one of them.')
        return levels

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        levels = self.levels or self.sigma
        return {'sigma': (min(levels), max(levels))}

    def sample(self, rng: np.random.Generator) -> dict[str, float]:
        drawn = {'sigma': float(rng.choice(self.levels))} if self.levels else super().sample(rng)
        if self.gray_prob > 0:  # else no random number is used
            drawn['gray'] = bool(rng.random() < self.gray_prob)
        return drawn


class PoissonNoise(Degradation):
    """Photon shot noise."""

    apply = staticmethod(sensor.poisson_noise)
    type: Literal['poisson_noise'] = 'poisson_noise'
    peak: _within(1.0, 1e6, 'down') = (20.0, 300.0)
    """Photons at intensity 1."""


class GaussianBlur(Degradation):
    """Defocus-like blur."""

    apply = staticmethod(blur.gaussian_blur)
    type: Literal['gaussian_blur'] = 'gaussian_blur'
    sigma: _within(0.0, 50.0) = (0.2, 3.0)
    """Standard deviation, pixels."""
    aspect: _within(0.05, 1.0, 'neither') = 1.0
    """Minor divided by major axis; 1: round."""
    angle: Angle = (0.0, 180.0)
    """Direction of the major axis, degrees."""

    @property
    def reach(self) -> int:
        return blur.gaussian_radius(self.sigma[1])


class MotionBlur(Degradation):
    """Camera shake along a line or an arc."""

    apply = staticmethod(blur.motion_blur)
    type: Literal['motion_blur'] = 'motion_blur'
    length: _within(0.0, 201.0) = (3.0, 21.0)
    """Length of the path, pixels."""
    angle: Angle = (0.0, 180.0)
    """Direction of the path, degrees."""
    bend: _within(-180.0, 180.0, 'neither') = 0.0
    """Turn along the path, degrees; 0: straight."""

    @property
    def reach(self) -> int:
        return blur.motion_radius(self.length[1])


class LowLight(Degradation):
    """An under-exposed photo with the noise of its sensor."""

    apply = staticmethod(sensor.low_light)
    type: Literal['low_light'] = 'low_light'
    gamma: _within(0.1, 10.0) = (1.5, 3.0)
    """Exponent of the tone curve."""
    gain: _within(0.001, 1.0, 'down') = (0.4, 0.9)
    """Exposure factor."""
    shot_noise: Share = (0.0, 0.005)
    """Variance per unit intensity."""
    read_noise: Deviation = (0.0, 5.0)
    """Standard deviation, 8-bit units."""


class Jpeg(Degradation):
    """JPEG compression."""

    apply = staticmethod(sensor.jpeg)
    type: Literal['jpeg'] = 'jpeg'
    quality: _within(1, 100, 'down', integer=True) = (20, 90)
    """Quality as libjpeg counts it."""

    block: ClassVar[int] = 16  # 8 x 8 values of chroma at half the resolution
    reach: ClassVar[int] = 17  # a block, and what its decoder sees of the next one's chroma


class Rain(Degradation):
    """Rain streaks."""

    apply = staticmethod(weather.rain)
    type: Literal['rain'] = 'rain'
    density: _within(0.0, 0.2) = (0.001, 0.006)
    """Drops per pixel."""
    length: _within(1.0, 200.0) = (15.0, 40.0)
    """Length of the streaks, pixels."""
    angle: _within(-80.0, 80.0, 'neither') = (-25.0, 25.0)
    """Slant from the vertical, degrees."""
    thickness: _within(0.5, 10.0) = (1.0, 2.0)
    """Thickness of the streaks, pixels."""
    intensity: Share = (0.3, 0.8)
    """Largest opacity."""


class Haze(Degradation):
    """Haze that grows with the depth of the scene."""

    apply = staticmethod(weather.haze)
    type: Literal['haze'] = 'haze'
    beta: _within(0.0, 20.0) = (0.6, 2.4)
    """Scattering coefficient times the largest depth."""
    airlight: _within(0.0, 1.0, 'neither') = (0.7, 1.0)
    """Colour of the haze, grey."""
    depth_cells: _within(1, 64, 'neither', integer=True) = (2, 4)
    """Smoothness of the depth: grid cells per side."""


DEGRADATIONS: dict[str, type[Degradation]] = {
    cls.model_fields['type'].default: cls
    for cls in (
        GaussianNoise, PoissonNoise, GaussianBlur, MotionBlur, LowLight, Jpeg, Rain, Haze
    )
}  # fmt: skip


def read_step(entry: object) -> Degradation:
    """One entry of a ``degradations`` list. OptionError: its faults, each at its key."""
    if isinstance(entry, Degradation):
        return entry
    if not isinstance(entry, Mapping) or 'type' not in entry:
        raise ValueError(f'must be a mapping with a type, got {entry!r}.')
    name = entry['type']
    if not isinstance(name, str) or name not in DEGRADATIONS:
        hint = did_you_mean(name, DEGRADATIONS)
        raise OptionError('', [Problem('type', f"is no degradation: '{name}'.{hint}")])
    return read(DEGRADATIONS[name], entry, str(name))


# ---- chains -------------------------------------------------------------------------------------

Step = Annotated[Any, BeforeValidator(read_step)]


class ChainOptions(Options):
    """A chain of degradations."""

    degradations: Annotated[list[Step], Field(min_length=1)]
    """Steps in order: {type, prob, parameter: value or [low, high]}."""
    lq_output: Literal['clip', 'uint8', 'unclipped'] = 'clip'
    """What becomes of the last step's values: clip to [0, 1], uint8 rounds to the 256 levels of a
    saved photo, unclipped leaves them, as the usual Gaussian denoising benchmark does."""


@takes(ChainOptions)
class DegradationChain:
    """Applies a list of degradations with parameters drawn from their ranges."""

    def __init__(self, options: ChainOptions) -> None:
        self.steps, self.output = options.degradations, options.lq_output

    @property
    def name(self) -> str:
        """The steps' types joined by ``+``."""
        return '+'.join(step.type for step in self.steps)

    @property
    def reach(self) -> int:
        """How many pixels away an output pixel depends on the input."""
        return sum(step.reach for step in self.steps if step.prob > 0)

    @property
    def block(self) -> int:
        """Side of the squares that its steps treat one by one."""
        return max((step.block for step in self.steps if step.prob > 0), default=1)

    def sample(self, rng: np.random.Generator) -> list[tuple[str, dict[str, float]]]:
        """Draws which steps act and their parameters: (type, parameters), in order."""
        drawn = []
        for step in self.steps:
            acts = step.prob >= 1 or rng.random() < step.prob
            parameters = step.sample(rng)
            if acts:
                drawn.append((step.type, parameters))
        return drawn

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Degrades float32 H W C (RGB or one channel), [0, 1]; all randomness is of ``rng``."""
        for name, parameters in self.sample(rng):
            image = DEGRADATIONS[name].apply(image, rng, **parameters)
        if self.output == 'unclipped':
            return image.astype(np.float32)
        image = np.clip(image, 0.0, 1.0)
        if self.output == 'uint8':
            image = np.round(image * 255.0) / np.float32(255.0)
        return image.astype(np.float32)
