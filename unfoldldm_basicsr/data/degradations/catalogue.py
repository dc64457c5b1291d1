"""The degradations that option files can name, and chains of them.

A chain is a list of steps, applied in order::

    degradations:
      - {type: gaussian_blur, prob: 0.5, sigma: [0.2, 2.0]}   # uniform in the range
      - {type: gaussian_noise, sigma: 25}                     # fixed value
      - {type: jpeg, quality: [30, 90]}                       # whole numbers, ends included

A parameter is a number, or a range that every image draws from anew; one that is left out takes its
default. Images are float32 H W C, RGB or one channel, [0, 1].
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import cv2
import numpy as np
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from unfoldldm_basicsr.common.declaration import OptionError, Options, Problem, Tuple, read, takes
from unfoldldm_basicsr.common.suggest import did_you_mean
from unfoldldm_basicsr.data.degradations import psf
from unfoldldm_basicsr.data.degradations.degradation import Degradation, Probability, within

Share = within(0.0, 1.0)
Deviation = within(0.0, 255.0)  # 8-bit units, as denoising papers state it
Level = Annotated[float, Field(ge=0, le=255)]  # the same, one of several
Angle = within(-360.0, 360.0, 'neither')  # degrees


class GaussianNoise(Degradation):
    """Additive white Gaussian noise, independent per pixel and channel, not clipped."""

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

    @staticmethod
    def apply(image, rng, *, sigma, gray=False):
        shape = (*image.shape[:2], 1) if gray else image.shape
        return image + rng.standard_normal(shape, dtype=np.float32) * np.float32(sigma / 255.0)


class PoissonNoise(Degradation):
    """Photon shot noise: y = Poisson(peak * x) / peak, so that Var(y) = x / peak."""

    type: Literal['poisson_noise'] = 'poisson_noise'
    peak: within(1.0, 1e6, 'down') = (20.0, 300.0)
    """Photons at intensity 1."""

    @staticmethod
    def apply(image, rng, *, peak):
        photons = rng.poisson(np.maximum(image, 0.0).astype(np.float64) * peak)
        return (photons / peak).astype(np.float32)


class GaussianBlur(Degradation):
    """Defocus-like blur."""

    type: Literal['gaussian_blur'] = 'gaussian_blur'
    sigma: within(0.0, 50.0) = (0.2, 3.0)
    """Standard deviation, pixels."""
    aspect: within(0.05, 1.0, 'neither') = 1.0
    """Minor divided by major axis; 1: round."""
    angle: Angle = (0.0, 180.0)
    """Direction of the major axis, degrees."""

    @property
    def reach(self) -> int:
        return psf.gaussian_radius(self.sigma[1])

    @staticmethod
    def apply(image, rng, *, sigma, aspect, angle):
        if aspect < 1.0:
            return psf.convolve(image, psf.gaussian_psf(sigma, aspect, angle))
        side = 2 * psf.gaussian_radius(sigma) + 1
        profile = cv2.getGaussianKernel(side, sigma or 1, cv2.CV_32F)
        image, border = np.ascontiguousarray(image), cv2.BORDER_REFLECT_101
        blurred = cv2.sepFilter2D(image, -1, profile, profile, borderType=border)
        return blurred.reshape(image.shape)


class MotionBlur(Degradation):
    """Camera shake along a line or an arc."""

    type: Literal['motion_blur'] = 'motion_blur'
    length: within(0.0, 201.0) = (3.0, 21.0)
    """Length of the path, pixels."""
    angle: Angle = (0.0, 180.0)
    """Direction of the path, degrees."""
    bend: within(-180.0, 180.0, 'neither') = 0.0
    """Turn along the path, degrees; 0: straight."""

    @property
    def reach(self) -> int:
        return psf.motion_radius(self.length[1])

    @staticmethod
    def apply(image, rng, *, length, angle, bend):
        return psf.convolve(image, psf.motion_psf(length, angle, bend))


class LowLight(Degradation):
    """An under-exposed photo with the noise of its sensor.

    y = d + n with d = gain * x^gamma and Var(n) = shot_noise * d + (read_noise / 255)^2, not
    clipped: the Poisson-Gaussian sensor model of Foi et al. (IEEE TIP 2008) on the tone curve of
    LLNet (Lore et al. 2017); gamma above 1 darkens shadows more than highlights.
    """

    type: Literal['low_light'] = 'low_light'
    gamma: within(0.1, 10.0) = (1.5, 3.0)
    """Exponent of the tone curve."""
    gain: within(0.001, 1.0, 'down') = (0.4, 0.9)
    """Exposure factor."""
    shot_noise: Share = (0.0, 0.005)
    """Variance per unit intensity."""
    read_noise: Deviation = (0.0, 5.0)
    """Standard deviation, 8-bit units."""

    @staticmethod
    def apply(image, rng, *, gamma, gain, shot_noise, read_noise):
        dark = gain * np.maximum(image, 0.0).astype(np.float64) ** gamma
        if shot_noise > 1e-12:  # numpy draws no counts above 1e18, and there is nothing to see
            dark = rng.poisson(dark / shot_noise) * shot_noise
        if read_noise > 0:
            dark = dark + rng.standard_normal(dark.shape) * (read_noise / 255.0)
        return dark.astype(np.float32)


class Jpeg(Degradation):
    """JPEG compression (4:2:0) of values clipped to [0, 1] and rounded to 8 bits as in a camera."""

    type: Literal['jpeg'] = 'jpeg'
    quality: within(1, 100, 'down', integer=True) = (20, 90)
    """Quality as libjpeg counts it."""

    block: ClassVar[int] = 16  # 8 x 8 values of chroma at half the resolution
    reach: ClassVar[int] = 17  # a block, and what its decoder sees of the next one's chroma

    @staticmethod
    def apply(image, rng, *, quality):
        pixels = np.round(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)
        bgr = np.ascontiguousarray(pixels[..., ::-1])
        _, stream = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
        decoded = cv2.imdecode(stream, cv2.IMREAD_ANYCOLOR).reshape(image.shape)
        return decoded[..., ::-1].astype(np.float32) / 255.0


class Rain(Degradation):
    """Rain streaks.

    y = (1 - a S) x + a S with the opacity map S of two layers and a, the intensity: blending
    towards white keeps y within [0, 1], where the additive model x + S saturates. A layer is random
    drops smeared along their fall; a streak of a full-strength drop peaks at 1. Length and
    thickness are those of the near layer, the far one has half of both. Streaks of positive angle
    fall towards the left.
    """

    type: Literal['rain'] = 'rain'
    density: within(0.0, 0.2) = (0.001, 0.006)
    """Drops per pixel."""
    length: within(1.0, 200.0) = (15.0, 40.0)
    """Length of the streaks, pixels."""
    angle: within(-80.0, 80.0, 'neither') = (-25.0, 25.0)
    """Slant from the vertical, degrees."""
    thickness: within(0.5, 10.0) = (1.0, 2.0)
    """Thickness of the streaks, pixels."""
    intensity: Share = (0.3, 0.8)
    """Largest opacity."""

    @staticmethod
    def apply(image, rng, *, density, length, angle, thickness, intensity):
        height, width = image.shape[:2]
        clear = np.ones((height, width), np.float32)
        for scale in (1.0, 0.5):  # of the near and of the far half of the rain
            streak = psf.motion_psf(length * scale, 90.0 - angle, fade=True)  # 0 falls down
            thick = thickness * scale
            streak = np.pad(streak, 2 * math.ceil(thick))
            streak = cv2.filter2D(streak, -1, psf.gaussian_psf(thick / 2))
            margin = streak.shape[0] // 2  # streaks that start outside reach into the picture
            shape = (height + 2 * margin, width + 2 * margin)
            drops = (rng.random(shape) < density / 2) * rng.uniform(0.4, 1.0, shape)
            layer = psf.convolve(drops.astype(np.float32), streak / streak.max())
            layer = np.clip(layer[margin : margin + height, margin : margin + width], 0.0, 1.0)
            clear *= 1.0 - np.float32(intensity) * layer
        return 1.0 - clear[..., None] * (1.0 - image)


class Haze(Degradation):
    """Haze that grows with the depth of the scene.

    y = x t + A (1 - t), t = exp(-beta d) (Koschmieder 1924), with a :func:`random_depth` d.
    """

    type: Literal['haze'] = 'haze'
    beta: within(0.0, 20.0) = (0.6, 2.4)
    """Scattering coefficient times the largest depth."""
    airlight: within(0.0, 1.0, 'neither') = (0.7, 1.0)
    """Colour of the haze, grey."""
    depth_cells: within(1, 64, 'neither', integer=True) = (2, 4)
    """Smoothness of the depth: grid cells per side."""

    @staticmethod
    def apply(image, rng, *, beta, airlight, depth_cells):
        depth = random_depth(*image.shape[:2], int(depth_cells), rng)
        transmission = np.exp(-np.float32(beta) * depth)[..., None]
        return image * transmission + np.float32(airlight) * (1.0 - transmission)


def random_depth(height: int, width: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth random scene depth, float32 H W that spans [0, 1] and tends to grow towards the top:
    two octaves of bicubically interpolated grids (``cells`` and twice as many a side) on a ramp.
    """
    depth = np.repeat(np.linspace(1.0, 0.0, height, dtype=np.float32)[:, None], width, axis=1)
    for octave, weight in ((1, 1.0), (2, 0.5)):
        grid = rng.random((cells * octave + 1, cells * octave + 1), dtype=np.float32)
        fine = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        depth += np.float32(weight) * fine
    low, high = float(depth.min()), float(depth.max())
    return (depth - low) / (high - low or 1.0)


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
