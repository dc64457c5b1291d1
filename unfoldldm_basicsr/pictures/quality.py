"""PSNR of one image, in the depth that it has."""

from __future__ import annotations

import math

import numpy as np

_PEAKS = {'uint8': 255, 'uint16': 65535, 'float32': 1, 'float64': 1}


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """PSNR in dB over all channels, no border cut off; infinite for equal images.

    8-bit images give the number of BasicSR's ``calculate_psnr``; others are not rounded to 8 bits.

    Args:
        image: (H, W) or (H, W, C); uint8, uint16, or float in [0, 1] (values outside are clipped).
        truth: same shape and dtype.

    Raises:
        ValueError: shapes or dtypes differ, or another dtype.
    """
    peak = _PEAKS.get(image.dtype.name)
    if image.shape != truth.shape or image.dtype != truth.dtype or peak is None:
        raise ValueError(
            f'Cannot compare {image.shape} {image.dtype} with {truth.shape} {truth.dtype}.'
        )
    first, second = (np.clip(a.astype(np.float64) / peak, 0, 1) for a in (image, truth))
    error = np.mean((first - second) ** 2)
    return math.inf if error == 0 else -10 * math.log10(error)
