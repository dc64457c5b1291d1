"""PSNR and SSIM after the brightness of the output was matched to the truth ("GT mean").

The protocol of KinD and LLFlow on LOL, followed by many tables. It uses the clean image, so that
its values are not comparable with plain PSNR and SSIM: rows of tables say which one they are.
"""

import numpy as np
from basicsr.metrics import calculate_psnr, calculate_ssim
from basicsr.utils.registry import METRIC_REGISTRY

_BGR_TO_GREY = np.array([0.114, 0.587, 0.299])


def match_mean(img: np.ndarray, img2: np.ndarray) -> np.ndarray:
    """``img`` times the ratio of the mean luminances (BT.601), clipped to 0..255, not rounded.

    Output and clean image are (H, W), (H, W, 1) or (H, W, 3) BGR in 0..255.
    """
    means = [(x @ _BGR_TO_GREY if x.shape[2:] == (3,) else x).mean() for x in (img, img2)]
    return np.clip(img * (means[1] / means[0]) if means[0] else img.astype(float), 0, 255)


@METRIC_REGISTRY.register()
def calculate_psnr_gt_mean(
    img: np.ndarray, img2: np.ndarray, crop_border: int = 0, test_y_channel: bool = False
) -> float:
    """PSNR in dB of the output at the truth's mean luminance; not comparable with plain PSNR.

    Args:
        img, img2: see :func:`match_mean`.
        crop_border: pixels left out at every side.
        test_y_channel: compares the luma only.
    """
    return calculate_psnr(match_mean(img, img2), img2, crop_border, test_y_channel=test_y_channel)


@METRIC_REGISTRY.register()
def calculate_ssim_gt_mean(
    img: np.ndarray, img2: np.ndarray, crop_border: int = 0, test_y_channel: bool = False
) -> float:
    """SSIM of the output at the truth's mean luminance; not comparable with plain SSIM.

    Args:
        img, img2: see :func:`match_mean`.
        crop_border: pixels left out at every side.
        test_y_channel: compares the luma only.
    """
    return calculate_ssim(match_mean(img, img2), img2, crop_border, test_y_channel=test_y_channel)
