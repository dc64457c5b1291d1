"""LPIPS (Zhang et al., CVPR 2018) as a metric of BasicSR, on the package ``lpips``."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from basicsr.utils.registry import METRIC_REGISTRY

from unfoldldm_basicsr.common.registration import register

NETWORKS = ('alex', 'vgg', 'squeeze')


@lru_cache(maxsize=3)
def _network(name: str) -> torch.nn.Module:
    try:
        import lpips
    except ImportError as error:
        raise ImportError(
            'calculate_lpips needs the package lpips: pip install unfoldldm_basicsr[metrics].'
        ) from error
    return lpips.LPIPS(net=name, verbose=False).eval()


@register(METRIC_REGISTRY)
def calculate_lpips(img: np.ndarray, img2: np.ndarray, crop_border: int = 0, net: str = 'alex'):
    """Perceptual distance, lower is better; ``better: lower`` in the option file.

    The first use downloads the features of torchvision's ``net``.

    Args:
        img, img2: (H, W, 3) uint8, BGR as BasicSR's validation gives them.
        crop_border: pixels left out at every side.
        net: 'alex' (as usually reported), 'vgg' or 'squeeze'.

    Returns:
        The distance as a float.

    Raises:
        ImportError: without the package lpips.
        ValueError: shapes differ, other images than described, or an unknown ``net``.
    """
    if net not in NETWORKS:
        raise ValueError(f"calculate_lpips net: unknown value '{net}'. Known: {NETWORKS}.")
    for image in (img, img2):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape != (*img2.shape[:2], 3):
            raise ValueError(
                f'calculate_lpips compares uint8 colour images of one size, got {img.shape} '
                f'{img.dtype} and {img2.shape} {img2.dtype}.'
            )
    tensors = []
    for image in (img, img2):
        inside = image[crop_border:-crop_border, crop_border:-crop_border] if crop_border else image
        rgb = np.ascontiguousarray(inside[..., ::-1], dtype=np.float32)
        tensors.append(torch.from_numpy(rgb).permute(2, 0, 1)[None] / 127.5 - 1)
    with torch.inference_mode():
        return float(_network(net)(*tensors))
