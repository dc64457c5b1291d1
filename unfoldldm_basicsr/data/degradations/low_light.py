"""Under-exposed photos: darker tone curve, then sensor noise."""

from __future__ import annotations

import numpy as np


def low_light(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    gamma: float,
    gain: float,
    shot_noise: float,
    read_noise: float,
) -> np.ndarray:
    """Dark image d = gain * x^gamma with signal-dependent and constant noise.

    y = d + n with Var(n) = shot_noise * d + (read_noise / 255)^2: the Poisson-Gaussian sensor
    model of Foi et al. (IEEE TIP 2008). The tone curve is the one of LLNet (Lore et al. 2017).

    Args:
        image: float32 H W C, RGB or one channel, [0, 1].
        gamma: exponent of the tone curve; above 1 darkens shadows more than highlights.
        gain: exposure factor in (0, 1].
        shot_noise: variance per unit intensity, 1 / (photons at intensity 1); 0: none.
        read_noise: standard deviation of the constant part in 8-bit units (0..255); 0: none.

    Returns:
        float32 H W C, not clipped.
    """
    dark = gain * np.maximum(image, 0.0).astype(np.float64) ** gamma
    if shot_noise > 0:
        dark = rng.poisson(dark / shot_noise) * shot_noise
    if read_noise > 0:
        dark = dark + rng.standard_normal(dark.shape) * (read_noise / 255.0)
    return dark.astype(np.float32)
