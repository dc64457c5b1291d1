"""Learned and no-reference metrics of the packages ``lpips`` and ``pyiqa`` for BasicSR."""

from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import Literal

import numpy as np
import torch
from basicsr.utils.registry import METRIC_REGISTRY

from unfoldldm_basicsr.common.suggest import check_choice
from unfoldldm_basicsr.compat.imports import is_installed
from unfoldldm_basicsr.metrics.calculate import rgb_inside

EXTRAS = {'calculate_lpips': ('lpips', 'metrics'), 'calculate_pyiqa': ('pyiqa', 'pyiqa')}


def lacking(metric: object) -> str:
    """Which package a metric needs that is not installed, in a sentence; '' for none."""
    package, extra = EXTRAS.get(str(metric), ('', ''))
    if not package or is_installed(package):
        return ''
    return f'{metric} needs the package {package}: pip install unfoldldm_basicsr[{extra}].'


def _package(metric: str) -> ModuleType:
    if text := lacking(metric):
        raise ImportError(text)
    return import_module(EXTRAS[metric][0])


@lru_cache(maxsize=3)
def _lpips(net: str) -> torch.nn.Module:
    return _package('calculate_lpips').LPIPS(net=net, verbose=False).eval()


@lru_cache(maxsize=8)
def _pyiqa(metric: str) -> torch.nn.Module:
    pyiqa = _package('calculate_pyiqa')
    check_choice('pyiqa', metric, pyiqa.list_models())
    if 'fid' in metric or metric == 'inception_score':
        raise ValueError(
            f"'{metric}' compares sets of images, not one image: save them (val.save_img: true) "
            f'and run pyiqa {metric} --target RESTORED --ref CLEAN on the two folders.'
        )
    return pyiqa.create_metric(metric, device='cpu')


@METRIC_REGISTRY.register()
def calculate_lpips(
    img: np.ndarray,
    img2: np.ndarray,
    crop_border: int = 0,
    net: Literal['alex', 'vgg', 'squeeze'] = 'alex',
) -> float:
    """Perceptual distance (Zhang et al., CVPR 2018), lower is better: ``better: lower``.

    The first use downloads the features of torchvision's ``net``.

    Args:
        img, img2: (H, W, 3), BGR as BasicSR's validation gives them: uint8, or floats in 0..255
            (``val.use_image: false``; ``calculate_metric`` with ``rounded=False``).
        crop_border: pixels left out at every side.
        net: 'alex' (as usually reported), 'vgg' or 'squeeze'.

    Returns:
        The distance as a float.

    Raises ImportError: without the package lpips.
    """
    pair = (2 * _rgb(image, crop_border) - 1 for image in (img, img2))
    with torch.inference_mode():
        return float(_lpips(net)(*pair))


@METRIC_REGISTRY.register()
def calculate_pyiqa(
    img: np.ndarray, img2: np.ndarray | None = None, *, metric: str, crop_border: int = 0
) -> float:
    """Any metric of one image, or of a pair, that the package ``pyiqa`` has, under its name there.

    Such as ``brisque``, ``ilniqe``, ``piqe``, ``musiq`` or ``dists``; many download weights when
    first used. Set ``better: lower`` where lower is better.

    Args:
        img, img2: as :func:`calculate_lpips`; ``img2`` is left out by metrics without a reference.
        metric: the name, as ``pyiqa -ls`` lists it.
        crop_border: pixels left out at every side.

    Raises:
        ImportError: without the package pyiqa.
        ValueError: an unknown ``metric``, one of sets of images, or a reference is missing.
    """
    scorer = _pyiqa(metric)
    images = [img, img2] if scorer.metric_mode == 'FR' else [img]
    if any(image is None for image in images):
        raise ValueError(f"calculate_pyiqa: '{metric}' compares with a clean image; there is none.")
    return float(scorer(*(_rgb(image, crop_border) for image in images)))


def _rgb(image: np.ndarray, crop_border: int) -> torch.Tensor:
    """BGR in 0..255, (H, W, 3) -> RGB in [0, 1], (1, 3, h, w)."""
    rgb = rgb_inside(image, crop_border).astype(np.float32)
    return torch.from_numpy(rgb).permute(2, 0, 1)[None] / 255
