"""Rain streaks and haze. Images are float32 H W C, RGB or one channel, [0, 1].

Units and limits of the parameters: :mod:`.catalogue`.
"""

import math

import cv2
import numpy as np

from unfoldldm_basicsr.data.degradations.blur import convolve, gaussian_psf, motion_psf

_FAR_STREAK_LENGTH = 0.5  # streaks of the far half of the rain, relative to the near half


def rain(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    density: float,
    length: float,
    angle: float,
    thickness: float,
    intensity: float,
) -> np.ndarray:
    """Bright streaks over the scene: y = (1 - a S) x + a S with the opacity map S of two layers.

    A layer is random drops smeared along their fall; a streak of a full-strength drop peaks at 1.
    Blending towards white keeps y within [0, 1], where the additive model x + S saturates.

    ``length`` and ``thickness`` are those of the near layer, the far one has half of both. Streaks
    of positive ``angle`` fall towards the left. ``intensity`` is the largest a.
    """
    height, width = image.shape[:2]
    clear = np.ones((height, width), np.float32)
    for scale in (1.0, _FAR_STREAK_LENGTH):
        psf = motion_psf(length * scale, 90.0 - angle, fade=True)  # angle 0 falls straight down
        thick = thickness * scale
        psf = cv2.filter2D(np.pad(psf, 2 * math.ceil(thick)), -1, gaussian_psf(thick / 2))
        margin = psf.shape[0] // 2  # streaks that start outside the picture reach into it
        shape = (height + 2 * margin, width + 2 * margin)
        drops = (rng.random(shape) < density / 2) * rng.uniform(0.4, 1.0, shape)
        layer = convolve(drops.astype(np.float32), psf / psf.max())
        layer = np.clip(layer[margin : margin + height, margin : margin + width], 0.0, 1.0)
        clear *= 1.0 - np.float32(intensity) * layer
    return 1.0 - clear[..., None] * (1.0 - image)


def random_depth(height: int, width: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth random scene depth, float32 H W that spans [0, 1] and tends to grow towards the top:
    two octaves of bicubically interpolated grids (``cells`` and twice as many a side) on a ramp.
    """
    depth = np.repeat(np.linspace(1.0, 0.0, height, dtype=np.float32)[:, None], width, axis=1)
    for octave, weight in ((1, 1.0), (2, 0.5)):
        grid = rng.random((cells * octave + 1, cells * octave + 1), dtype=np.float32)
        depth += np.float32(weight) * cv2.resize(
            grid, (width, height), interpolation=cv2.INTER_CUBIC
        )
    low, high = float(depth.min()), float(depth.max())
    if high == low:
        return np.zeros_like(depth)
    return (depth - low) / (high - low)


def haze(
    image: np.ndarray, rng: np.random.Generator, *, beta: float, airlight: float, depth_cells: int
) -> np.ndarray:
    """Atmospheric scattering y = x t + A (1 - t), t = exp(-beta d) (Koschmieder 1924), with a
    :func:`random_depth` d of ``depth_cells`` cells per side and the grey ``airlight`` A.
    """
    depth = random_depth(*image.shape[:2], int(depth_cells), rng)
    transmission = np.exp(-np.float32(beta) * depth)[..., None]
    return image * transmission + np.float32(airlight) * (1.0 - transmission)
