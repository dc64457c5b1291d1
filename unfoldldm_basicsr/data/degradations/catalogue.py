"""The degradations that option files can name, with the meaning and limits of each parameter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from unfoldldm_basicsr.data.degradations.blur import (
    gaussian_blur,
    gaussian_radius,
    motion_blur,
    motion_radius,
)
from unfoldldm_basicsr.data.degradations.jpeg import jpeg
from unfoldldm_basicsr.data.degradations.low_light import low_light
from unfoldldm_basicsr.data.degradations.noise import gaussian_noise, poisson_noise
from unfoldldm_basicsr.data.degradations.weather import haze, rain


@dataclass(frozen=True)
class Parameter:
    """One parameter of a degradation.

    Attributes:
        default: the value, or the (low, high) range drawn from, when the option file is silent.
        minimum, maximum: inclusive limits.
        help: meaning and unit.
        integer: only whole numbers.
        stronger: whether larger values degrade more (``'up'``), less (``'down'``), or change only
            the appearance (``'neither'``).
    """

    default: float | tuple[float, float]
    minimum: float
    maximum: float
    help: str
    integer: bool = False
    stronger: Literal['up', 'down', 'neither'] = 'up'


def _no_reach(largest: dict[str, float]) -> int:
    return 0


@dataclass(frozen=True)
class Degradation:
    """A function ``apply(image, rng, **parameters) -> image`` and what its parameters mean.

    Attributes:
        apply: float32 H W 3 RGB in, the same out.
        parameters: by name.
        reach: from the largest value of every parameter, how many pixels away an output pixel
            depends on the input; patches are cut with this margin before they are degraded.
    """

    apply: Callable[..., np.ndarray]
    parameters: dict[str, Parameter]
    reach: Callable[[dict[str, float]], int] = field(default=_no_reach)


DEGRADATIONS: dict[str, Degradation] = {
    'gaussian_noise': Degradation(
        gaussian_noise,
        {'sigma': Parameter((0.0, 50.0), 0.0, 255.0, 'standard deviation, 8-bit units')},
    ),
    'poisson_noise': Degradation(
        poisson_noise,
        {'peak': Parameter((20.0, 300.0), 1.0, 1e6, 'photons at intensity 1', stronger='down')},
    ),
    'gaussian_blur': Degradation(
        gaussian_blur,
        {
            'sigma': Parameter((0.2, 3.0), 0.0, 50.0, 'standard deviation, pixels'),
            'aspect': Parameter(1.0, 0.05, 1.0, 'minor / major axis; 1: round', stronger='neither'),
            'angle': Parameter(
                (0.0, 180.0), -360.0, 360.0, 'major axis, degrees', stronger='neither'
            ),
        },
        reach=lambda largest: gaussian_radius(largest['sigma']),
    ),
    'motion_blur': Degradation(
        motion_blur,
        {
            'length': Parameter((3.0, 21.0), 0.0, 201.0, 'path length, pixels'),
            'angle': Parameter((0.0, 180.0), -360.0, 360.0, 'path, degrees', stronger='neither'),
            'bend': Parameter(
                0.0, -180.0, 180.0, 'turn along the path, degrees; 0: straight', stronger='neither'
            ),
        },
        reach=lambda largest: motion_radius(largest['length']),
    ),
    'low_light': Degradation(
        low_light,
        {
            'gamma': Parameter((1.5, 3.0), 0.1, 10.0, 'exponent of the tone curve'),
            'gain': Parameter((0.4, 0.9), 0.001, 1.0, 'exposure factor', stronger='down'),
            'shot_noise': Parameter((0.0, 0.005), 0.0, 1.0, 'variance per unit intensity'),
            'read_noise': Parameter((0.0, 5.0), 0.0, 255.0, 'standard deviation, 8-bit units'),
        },
    ),
    'jpeg': Degradation(
        jpeg,
        {'quality': Parameter((20, 90), 1, 100, 'libjpeg quality', integer=True, stronger='down')},
    ),
    'rain': Degradation(
        rain,
        {
            'density': Parameter((0.001, 0.006), 0.0, 0.2, 'drops per pixel'),
            'length': Parameter((15.0, 40.0), 1.0, 200.0, 'streak length, pixels'),
            'angle': Parameter(
                (-25.0, 25.0), -80.0, 80.0, 'slant from vertical, degrees', stronger='neither'
            ),
            'thickness': Parameter((1.0, 2.0), 0.5, 10.0, 'streak thickness, pixels'),
            'intensity': Parameter((0.3, 0.8), 0.0, 1.0, 'largest opacity'),
        },
    ),
    'haze': Degradation(
        haze,
        {
            'beta': Parameter((0.6, 2.4), 0.0, 20.0, 'scattering coefficient x largest depth'),
            'airlight': Parameter((0.7, 1.0), 0.0, 1.0, 'airlight', stronger='neither'),
            'depth_cells': Parameter(
                (2, 4),
                1,
                64,
                'smoothness of the depth: grid cells per side',
                integer=True,
                stronger='neither',
            ),
        },
    ),
}
