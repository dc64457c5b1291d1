"""PSNR and SSIM of one image, with the numeric domain they were computed in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SSIM_WINDOW = 11


class Quality(NamedTuple):
    """Scores of one image against the truth.

    Attributes:
        psnr: dB, infinite for equal images.
        ssim: in [-1, 1]; NaN for images smaller than its 11 x 11 window.
        domain: '8-bit', '16-bit' or 'float': what the images were when they were compared.
    """

    psnr: float
    ssim: float
    domain: str


def measure(image: np.ndarray, truth: np.ndarray) -> Quality:
    """PSNR and SSIM over RGB (or grey), no border cut off.

    8-bit images give the numbers of BasicSR's ``calculate_psnr`` and ``calculate_ssim``; 16-bit and
    float images are compared without rounding to 8 bit.

    Args:
        image: (H, W) or (H, W, 3); uint8, uint16, or float in [0, 1] (values outside are clipped).
        truth: same shape and dtype.

    Raises:
        ValueError: shapes or dtypes differ or are not supported.
    """
    if image.shape != truth.shape or image.dtype != truth.dtype:
        raise ValueError(
            f'Cannot compare {image.shape} {image.dtype} with {truth.shape} {truth.dtype}.'
        )
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise ValueError(f'Cannot compare images of shape {image.shape}: grey or RGB only.')
    too_small = min(image.shape[:2]) < SSIM_WINDOW
    if image.dtype == np.uint8:
        from basicsr.metrics import calculate_psnr, calculate_ssim

        psnr = calculate_psnr(image, truth, crop_border=0)
        ssim = float('nan') if too_small else calculate_ssim(image, truth, crop_border=0)
        return Quality(float(psnr), float(ssim), '8-bit')

    if image.dtype == np.uint16:
        domain, peak = '16-bit', 65535
    elif np.issubdtype(image.dtype, np.floating):
        domain, peak = 'float', 1
    else:
        raise ValueError(f'Cannot compare {image.dtype} images: uint8, uint16 or float only.')
    first, second = (np.clip(a.astype(np.float64) / peak, 0, 1) for a in (image, truth))
    error = np.mean((first - second) ** 2)
    psnr = float('inf') if error == 0 else -10 * np.log10(error)
    return Quality(float(psnr), float('nan') if too_small else _ssim(first, second), domain)


def _ssim(first: np.ndarray, second: np.ndarray) -> float:
    """SSIM of images in [0, 1] with BasicSR's settings: Gaussian window of sigma 1.5."""
    from skimage.metrics import structural_similarity

    return float(
        structural_similarity(
            first,
            second,
            data_range=1,
            channel_axis=2 if first.ndim == 3 else None,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )
