"""Validation of a model on one data set, split over ranks and reduced exactly.

Every rank restores the images ``rank, rank + world_size, ...``; the values of the single images
are gathered and averaged in the order of the data set, so the mean on any number of ranks is the
mean on one, to the last bit. Images are taken from the data set by index, one at a time (BasicSR's
loaders do the same), which draws nothing from the global random generators.
"""

from __future__ import annotations

import csv
import inspect
import math
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from basicsr.utils import get_root_logger, tensor2img
from basicsr.utils.registry import METRIC_REGISTRY
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from unfoldldm_basicsr.common.errors import writing
from unfoldldm_basicsr.common.ranks import together
from unfoldldm_basicsr.data.items import ItemReader
from unfoldldm_basicsr.metrics.calculate import calculate_metric
from unfoldldm_basicsr.training.interruption import stop_request
from unfoldldm_basicsr.training.rng import preserved_rng
from unfoldldm_basicsr.training.saved_images import SavedImages, image_name, write_image

STAGE_COLUMNS = ('iteration', 'image', 'degradation', 'stage', 'psnr_hat', 'psnr_tilde', 'psnr')


@dataclass
class ImageResult:
    """What validation found for one image."""

    index: int
    name: str
    degradation: str | None
    metrics: dict[str, float] = field(default_factory=dict)
    stages: list[tuple[float, float, float]] = field(default_factory=list)
    predicted: str | None = None  # degradation that a classifier takes it for


def evaluate(model, dataloader: DataLoader, label: str, save_img: bool) -> list[ImageResult]:
    """Restores and measures a data set; every rank returns the results of all images in order.

    Args:
        model: a ``RestorationModel``.
        dataloader: validation loader; its data set and collate function are used.
        label: iteration or experiment name, for the file names of saved images.
        save_img: write the restored images.

    Returns:
        What was measured, of all ranks; of fewer images when a signal asks a training to stop.

    Raises:
        DataFault: an image cannot be read, or takes longer than the ``timeout`` of its section.
        OutputWriteError: a restored image cannot be written.
        SharedFailure: the same on several ranks, met by any of them.
    """
    parts = together(model.opt, lambda: _evaluate_share(model, dataloader, label, save_img))
    results = [result for part in parts for result in part]
    return sorted(results, key=lambda result: result.index)


def _evaluate_share(model, dataloader: DataLoader, label: str, save_img: bool) -> list[ImageResult]:
    """The images of this rank."""
    dataset, rank = dataloader.dataset, model.opt['rank']
    indices = range(rank, len(dataset), model.opt['world_size'])
    bar = tqdm(indices, unit='image', disable=rank != 0 or not model.val_opt.get('pbar', False))
    reader = ItemReader(dataset, {'phase': 'val', **getattr(dataset, 'opt', {})})
    files = SavedImages(model.opt, dataset, label) if save_img else None
    results = []
    with preserved_rng(), model.evaluating():
        for index in bar:
            if model.is_train and stop_request.signum:
                break
            data = dataloader.collate_fn([reader.read(index)])
            model.prepare_item(dataloader, index, data)
            model.feed_data(data)
            model.test()
            result = _describe(index, data, dataset)
            bar.set_description(f'Test {result.name}')
            model.measure(result)
            if files is not None:
                path = files.path(index, result.name, result.degradation)
                write_image(_image(model.output), path)
            results.append(result)
    return results


def _describe(index: int, data: Mapping[str, Any], dataset: Dataset) -> ImageResult:
    degradation = data.get('degradation_name')
    if isinstance(degradation, list | tuple):
        degradation = degradation[0]
    name = image_name(data['lq_path'][0], getattr(dataset, 'opt', {}))
    return ImageResult(index, name, degradation)


def _image(batch: Tensor):
    """(1, c, H, W) in [0, 1] -> uint8 HWC, BGR."""
    return tensor2img([batch.detach().cpu()])


def measure_image(model, result: ImageResult) -> None:
    """Scores the restored image ``model.output`` with the metrics of the option file."""
    gt = getattr(model, 'gt', None)
    finite = bool(torch.isfinite(model.output).all())
    if not finite:
        get_root_logger().error(f'Validation: the output for {result.name} is not finite.')
    metrics = model.val_opt.get('metrics') or {}
    if metrics:
        images = {'img': _image(model.output)}
        if gt is not None:
            images['img2'] = _image(gt)
        for name, options in metrics.items():
            if gt is None and _needs_gt(options['type']):
                continue
            options = {key: value for key, value in options.items() if key != 'better'}
            value = float(calculate_metric(images, options)) if finite else math.nan
            result.metrics[model.metric_prefix + name] = value
    if model.trace is not None and gt is not None:
        for stage in model.trace.stages:
            images = stage.x_hat, stage.x_tilde, stage.x
            result.stages.append(tuple(_float_psnr(image[: len(gt)], gt) for image in images))


def _needs_gt(metric: str) -> bool:
    parameter = inspect.signature(METRIC_REGISTRY.get(metric)).parameters.get('img2')
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _float_psnr(image: Tensor, gt: Tensor) -> float:
    """PSNR in dB of RGB in [0, 1], clamped, not rounded to 8 bits, no border cut."""
    mse = (image.clamp(0, 1).double() - gt.double()).square().mean().item()
    return math.inf if mse == 0 else -10 * math.log10(mse)


def averages(results: list[ImageResult]) -> OrderedDict[str, float]:
    """Mean of every metric over the images that have it.

    A value that is not a number (the output is not finite, or the metric is undefined for the
    image) makes the mean NaN. Infinite values (PSNR of an identical image) are left out. Both are
    reported with the names of the images.
    """
    means = OrderedDict()
    for name in dict.fromkeys(name for result in results for name in result.metrics):
        found = [(r.name, r.metrics[name]) for r in results if name in r.metrics]
        infinite = [image for image, value in found if math.isinf(value)]
        undefined = [image for image, value in found if math.isnan(value)]
        values = [value for _, value in found if not math.isinf(value)]
        means[name] = sum(values) / len(values) if values else math.nan
        for what, images in (
            ('is infinite (left out of the mean)', infinite),
            ('is undefined (so is the mean)', undefined),
        ):
            if images:
                get_root_logger().warning(
                    f'Validation: {name} {what} for {len(images)} of {len(found)} images: '
                    f'{", ".join(images[:5])}{" ..." if len(images) > 5 else ""}.'
                )
    return means


def averages_by_degradation(results: list[ImageResult]) -> dict[str, OrderedDict[str, float]]:
    """Means for each degradation in order of appearance; empty when fewer than two are named."""
    names = dict.fromkeys(r.degradation for r in results if r.degradation is not None)
    if len(names) < 2:
        return {}
    return {name: averages([r for r in results if r.degradation == name]) for name in names}


def append_rows(path: Path, heading: Sequence[str], rows: Sequence[Sequence]) -> None:
    """Appends rows to a CSV file, all or none; a new file gets the heading first.

    Raises:
        OutputWriteError: it cannot be written.
    """
    with writing(path):
        size = path.stat().st_size if path.exists() else 0
        try:
            with open(path, 'a', newline='', encoding='utf-8') as file:
                csv.writer(file).writerows(rows if size else [heading, *rows])
        except OSError:
            with suppress(OSError):  # what keeps it from being written may keep it from this too
                os.truncate(path, size)
            raise


def write_stage_psnr(results: list[ImageResult], path: Path, label: str) -> list[tuple]:
    """Appends one row per image and stage to a CSV file (columns ``STAGE_COLUMNS``).

    Returns:
        For each stage the mean PSNR of x_hat, of x_tilde and of x.

    Raises:
        OutputWriteError: it cannot be written.
    """
    traced = [r for r in results if r.stages]
    if not traced:
        return []
    rows = [
        [label, r.name, r.degradation or '', k, *(f'{value:.4f}' for value in values)]
        for r in traced
        for k, values in enumerate(r.stages, start=1)
    ]
    append_rows(path, STAGE_COLUMNS, rows)
    return [
        tuple(sum(column) / len(column) for column in zip(*stage, strict=True))
        for stage in zip(*(r.stages for r in traced), strict=True)
    ]
