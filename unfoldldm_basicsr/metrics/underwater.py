"""UCIQE and UIQM: quality of underwater images without a reference.

Public implementations disagree in scales, windows and logarithms, so that values of one are not
comparable with tables made by another. The docstrings say what is computed here.
"""

import numpy as np
from basicsr.utils.registry import METRIC_REGISTRY
from scipy import ndimage

from unfoldldm_basicsr.metrics.calculate import rgb_inside

_BLOCK = 10


@METRIC_REGISTRY.register()
def calculate_uciqe(img: np.ndarray, crop_border: int = 0) -> float:
    """UCIQE = 0.4680 sigma_c + 0.2745 con_l + 0.2576 mu_s (Yang and Sowmya, TIP 2015).

    Higher is better.
    In CIE L*a*b* (sRGB, D65), all three channels divided by 100, so that L* is in [0, 1]; the
    released MATLAB code works on 8-bit Lab, whose a and b carry an offset. sigma_c: standard
    deviation of the chroma C; con_l: 99th minus 1st percentile of L*; mu_s: mean of the saturation
    C / sqrt(C^2 + L*^2), 0 for black.

    Args:
        img: (H, W, 3) BGR in 0..255.
        crop_border: pixels left out at every side.
    """
    from skimage.color import rgb2lab

    lab = rgb2lab(rgb_inside(img, crop_border) / 255) / 100
    lightness, chroma = lab[..., 0], np.hypot(lab[..., 1], lab[..., 2])
    length = np.hypot(chroma, lightness)
    saturation = np.divide(chroma, length, out=np.zeros_like(chroma), where=length > 0)
    low, high = np.percentile(lightness, [1, 99])
    return float(0.4680 * chroma.std() + 0.2745 * (high - low) + 0.2576 * saturation.mean())


@METRIC_REGISTRY.register()
def calculate_uiqm(img: np.ndarray, crop_border: int = 0) -> float:
    """UIQM = 0.0282 UICM + 0.2953 UISM + 3.5753 UIConM (Panetta et al., JOE 2016).

    Higher is better.
    UICM: of R - G and (R + G) / 2 - B the means without the lowest and highest tenth, and the
    variances around them. UISM: EME of each channel times its Sobel magnitude (scaled to 255),
    weighted 0.299, 0.587, 0.114. UIConM: -mean of m ln m, m = (max - min) / (max + min) over all
    three channels, with ordinary instead of PLIP arithmetic, as the implementation most used for
    tables (that of FUnIE-GAN) does. Both take blocks of 10 x 10 pixels; a rest at the right and at
    the bottom is left out, blocks where a logarithm is undefined count as 0.

    Args:
        img: (H, W, 3) BGR in 0..255, at least 10 x 10 pixels.
        crop_border: pixels left out at every side.
    """
    from scipy.stats import trim_mean  # loads for long

    rgb = rgb_inside(img, crop_border)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    opponents = red - green, (red + green) / 2 - blue
    means = [trim_mean(x, 0.1, axis=None) for x in opponents]
    variances = [np.mean((x - mean) ** 2) for x, mean in zip(opponents, means, strict=True)]
    uicm = -0.0268 * np.hypot(*means) + 0.1586 * np.sqrt(sum(variances))
    weights = zip((0.299, 0.587, 0.114), (red, green, blue), strict=True)
    uism = sum(weight * _eme(channel * _sobel(channel)) for weight, channel in weights)
    low, high = _extremes(rgb)
    contrast = np.divide(high - low, high + low, out=np.zeros_like(low), where=high > low)
    uiconm = -np.mean(contrast * np.log(np.where(contrast > 0, contrast, 1)))
    return float(0.0282 * uicm + 0.2953 * uism + 3.5753 * uiconm)


def _sobel(channel: np.ndarray) -> np.ndarray:
    magnitude = np.hypot(ndimage.sobel(channel, 0), ndimage.sobel(channel, 1))
    return magnitude * (255 / magnitude.max()) if magnitude.max() else magnitude


def _extremes(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minimum and maximum of every block of (H, W) or (H, W, c)."""
    rows, columns = (side // _BLOCK for side in image.shape[:2])
    whole = image[: rows * _BLOCK, : columns * _BLOCK]
    blocks = whole.reshape(rows, _BLOCK, columns, _BLOCK, -1)
    return blocks.min(axis=(1, 3, 4)), blocks.max(axis=(1, 3, 4))


def _eme(image: np.ndarray) -> float:
    """Measure of enhancement: mean of 2 ln(max / min) over the blocks."""
    low, high = _extremes(image)
    return 2 * np.mean(np.log(np.divide(high, low, out=np.ones_like(low), where=low > 0)))
