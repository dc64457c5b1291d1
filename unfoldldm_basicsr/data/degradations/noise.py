"""Noise models. Images are float32 H W C, RGB or one channel, [0, 1]; results are not clipped."""

from __future__ import annotations

import numpy as np


def gaussian_noise(image: np.ndarray, rng: np.random.Generator, *, sigma: float) -> np.ndarray:
    """Additive white Gaussian noise, independent per pixel and channel: y = x + n.

    Args:
        sigma: standard deviation in 8-bit units (0..255), as denoising papers state it.
    """
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    return image + noise * np.float32(sigma / 255.0)


def poisson_noise(image: np.ndarray, rng: np.random.Generator, *, peak: float) -> np.ndarray:
    """Photon shot noise: y = Poisson(peak * x) / peak, so that Var(y) = x / peak.

    Args:
        peak: expected number of photons at intensity 1; fewer photons, more noise.
    """
    photons = rng.poisson(np.maximum(image, 0.0).astype(np.float64) * peak)
    return (photons / peak).astype(np.float32)
