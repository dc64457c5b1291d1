"""Noise, under-exposure, JPEG. Images are float32 H W C, RGB or one channel, [0, 1].

Units and limits of the parameters: :mod:`.catalogue`.
"""

import cv2
import numpy as np


def gaussian_noise(
    image: np.ndarray, rng: np.random.Generator, *, sigma: float, gray: bool = False
) -> np.ndarray:
    """Additive white Gaussian noise, independent per pixel and channel: y = x + n, not clipped;
    ``sigma`` in 8-bit units (0..255), as denoising papers state it. ``gray``: the same in all
    channels.
    """
    shape = (*image.shape[:2], 1) if gray else image.shape
    noise = rng.standard_normal(shape, dtype=np.float32)
    return image + noise * np.float32(sigma / 255.0)


def poisson_noise(image: np.ndarray, rng: np.random.Generator, *, peak: float) -> np.ndarray:
    """Photon shot noise: y = Poisson(peak * x) / peak, so that Var(y) = x / peak; ``peak`` photons
    are expected at intensity 1.
    """
    photons = rng.poisson(np.maximum(image, 0.0).astype(np.float64) * peak)
    return (photons / peak).astype(np.float32)


def low_light(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    gamma: float,
    gain: float,
    shot_noise: float,
    read_noise: float,
) -> np.ndarray:
    """Dark image d = gain * x^gamma with signal-dependent and constant noise, not clipped.

    y = d + n with Var(n) = shot_noise * d + (read_noise / 255)^2: the Poisson-Gaussian sensor
    model of Foi et al. (IEEE TIP 2008). The tone curve is the one of LLNet (Lore et al. 2017);
    gamma above 1 darkens shadows more than highlights. shot_noise: 1 / (photons at intensity 1).
    """
    dark = gain * np.maximum(image, 0.0).astype(np.float64) ** gamma
    if shot_noise > 1e-12:  # numpy draws no counts above 1e18, and there is nothing to see
        dark = rng.poisson(dark / shot_noise) * shot_noise
    if read_noise > 0:
        dark = dark + rng.standard_normal(dark.shape) * (read_noise / 255.0)
    return dark.astype(np.float32)


def jpeg(image: np.ndarray, rng: np.random.Generator, *, quality: int) -> np.ndarray:
    """Encodes to 8-bit JPEG (4:2:0, quality 1..100) and decodes again; ``rng`` is not used.

    Values are clipped to [0, 1] and rounded to 8 bits before, as in a camera.
    """
    pixels = np.round(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)
    _, stream = cv2.imencode(
        '.jpg',
        np.ascontiguousarray(pixels[..., ::-1]),  # RGB <-> BGR
        [cv2.IMWRITE_JPEG_QUALITY, int(quality)],
    )
    decoded = cv2.imdecode(stream, cv2.IMREAD_ANYCOLOR).reshape(image.shape)
    return decoded[..., ::-1].astype(np.float32) / 255.0
