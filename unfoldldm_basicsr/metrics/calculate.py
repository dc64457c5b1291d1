"""BasicSR's metrics on images they cannot measure: a sentence, or a value marked as undefined."""

import inspect
import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from unfoldldm_basicsr.common.registration import KNOWN, registered, whose
from unfoldldm_basicsr.common.suggest import did_you_mean

# Metrics of arrays, and the smallest image side that each is defined for.
_SMALLEST_SIDE = {
    'calculate_psnr': 1, 'calculate_psnr_gt_mean': 1, 'calculate_ssim': 11,
    'calculate_ssim_gt_mean': 11, 'calculate_niqe': 1, 'calculate_uciqe': 1, 'calculate_uiqm': 10,
    'calculate_lpips': 1, 'calculate_pyiqa': 1,
}  # fmt: skip
_WITH_ORDER = ('calculate_psnr', 'calculate_ssim', 'calculate_niqe')  # take input_order
_COLOUR_ONLY = ('calculate_uciqe', 'calculate_uiqm', 'calculate_lpips', 'calculate_pyiqa')
_NIQE_BLOCK = 96  # NIQE needs statistics over at least two such blocks


def calculate_metric(
    data: Mapping[str, np.ndarray], opt: Mapping[str, Any], *, rounded: bool = True
) -> float:
    """Replaces ``basicsr.metrics.calculate_metric``.

    BasicSR's PSNR and SSIM take any array for an 8-bit image, transpose a grey one when told that
    the channels come first; images smaller than the window give NaN without a word, and NIQE ends
    the training on them.

    Args:
        data: ``img`` and, for metrics with a reference, ``img2``, in 0..255: (H, W), (H, W, C), or
            (C, H, W) with ``input_order: CHW``; colours are BGR.
        opt: ``type`` and arguments of the metric; ``better`` is for reports.
        rounded: false for floats in 0..255 that may lie outside, or be nearly black.

    Returns:
        The value; NaN, with a warning that says why, where the metric is undefined. KeyError: no
        such metric; ValueError: images or a border that it is not made for.
    """
    from basicsr.utils.registry import METRIC_REGISTRY

    arguments = dict(opt)
    name = arguments.pop('type')
    metric = registered(METRIC_REGISTRY, name)
    if metric is None:
        hint = did_you_mean(name, [known for known, _ in METRIC_REGISTRY])
        raise KeyError(f"no metric '{name}' is registered.{hint}")
    if 'better' in arguments and 'better' not in inspect.signature(metric).parameters:
        del arguments['better']
    # that of a project may have the name of one of these
    if whose(metric) not in KNOWN or name not in _SMALLEST_SIDE:
        return metric(**data, **arguments)
    order = arguments.get('input_order', 'HWC')
    # BasicSR's models keep the truth of another set where this one has none
    taken = inspect.signature(metric).parameters
    data = {k: image for k, image in data.items() if image is not None and k in taken}
    if 'crop_border' in arguments:
        border = arguments['crop_border']
        if not isinstance(border, int | float) or border < 0 or not float(border).is_integer():
            raise ValueError(f'{name}: crop_border must be at least 0 and whole, got {border!r}.')
        arguments['crop_border'] = int(border)  # 4.0
    for image in data.values():
        _check_image(name, image, order, any_range=not rounded)
    if data['img'].ndim == 2 and name in _WITH_ORDER:  # a grey image has no order of channels
        arguments['input_order'] = 'HW' if name == 'calculate_niqe' else 'HWC'
    if 'img2' in data and data['img'].shape != data['img2'].shape:
        raise ValueError(
            f'{name}: the images differ in size: {data["img"].shape} and {data["img2"].shape}.'
        )
    reason = _undefined(name, data['img'], arguments)
    if not reason:
        try:
            return float(metric(**data, **arguments))
        except np.linalg.LinAlgError:  # NIQE of a flat image
            reason = 'the image has no structure'
    logging.getLogger('basicsr').warning('%s is undefined: %s.', name, reason)
    return math.nan


def _check_image(name: str, image: object, order: str, *, any_range: bool) -> None:
    array = isinstance(image, np.ndarray)
    peak = image.max(initial=0) if array and image.dtype != np.uint8 and not any_range else 0
    deep = array and image.dtype == np.uint16  # however dark
    if not array or deep or 0 < peak <= 1 or peak > 255:
        found = f'{image.dtype} up to {peak:g}' if array else type(image).__name__
        found = '16 bit' if deep else found
        raise ValueError(
            f'{name}: takes images in 0..255, got {found}; other ranges would give a wrong '
            'value without an error. Convert first, for example with basicsr.utils.tensor2img.'
        )
    ends = (image.shape[0], image.shape[-1]) if image.ndim == 3 else (1, 1)
    channels, other = ends if order == 'CHW' else reversed(ends)
    if image.ndim not in (2, 3) or (channels not in (1, 3) and other in (1, 3)):
        raise ValueError(
            f'{name}: an array of shape {image.shape} is no image in the order {order} '
            '(H, W; or with channels). Correct input_order.'
        )


def _undefined(name: str, image: np.ndarray, arguments: Mapping[str, Any]) -> str:
    """Why the metric has no value for an image of this size, '' if it has one."""
    if name in _COLOUR_ONLY and image.shape[2:] in ((), (1,)):
        return 'it is made for colour images'
    shape = image.shape[-2:] if arguments.get('input_order') == 'CHW' else image.shape[:2]
    height, width = (side - 2 * arguments.get('crop_border', 0) for side in shape)
    smallest = _SMALLEST_SIDE[name]
    if min(height, width) < smallest:
        return (
            f'{max(width, 0)} x {max(height, 0)} pixels are left inside crop_border, '
            f'at least {smallest} x {smallest} are needed'
        )
    if name == 'calculate_niqe' and (height // _NIQE_BLOCK) * (width // _NIQE_BLOCK) < 2:
        return f'{width} x {height} pixels hold less than two squares of {_NIQE_BLOCK} pixels'
    return ''


def rgb_inside(image: np.ndarray, border: int) -> np.ndarray:
    """(H, W, 3) BGR -> RGB in float64, clipped to 0..255, without ``border`` pixels at a side."""
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f'this metric is made for colour images, got {image.shape}.')
    rows, columns = (slice(border, side - border) for side in image.shape[:2])
    return image[rows, columns, ::-1].astype(np.float64).clip(0, 255)
