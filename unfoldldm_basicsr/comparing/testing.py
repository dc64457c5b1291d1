"""Tests of a comparison: every network gets the same degraded images, every image is a row."""

from __future__ import annotations

import hashlib
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unfoldldm_basicsr.comparing.runs import write_options
from unfoldldm_basicsr.comparing.tables import read_csv, write_csv
from unfoldldm_basicsr.options.read import read_option_file
from unfoldldm_basicsr.pictures.drawing import save_picture
from unfoldldm_basicsr.restoring import Restorer

DEGRADED = 'degraded'
TRUTH = 'truth'
KEYS = ('set', 'image', 'input')  # columns of a table of images before the metrics


def tested(options: Mapping[str, Any], weights: Path, folder: Path, pictures: bool) -> pd.DataFrame:
    """Tests one network, or takes what an earlier call found.

    Args:
        options: of a test, as BasicSR reads them; ``val.metrics`` says what is measured.
        weights: file that it tests, for whether the earlier result is of these weights.
        folder: of the report.
        pictures: save the restored images.

    Returns:
        A row for each image: ``set``, ``image``, ``input`` (hash of the degraded image), metrics.
    """
    table = folder / 'images' / f'{options["name"]}.csv'
    file = folder / 'options' / f'test_{options["name"]}.yml'
    fresh = table.exists() and table.stat().st_mtime > weights.stat().st_mtime
    if not (fresh and file.exists() and read_option_file(file) == options):
        write_options(file, options)
        place = folder / 'restored' / options['name'] if pictures else None
        write_csv(pd.DataFrame(_test(file, place, folder / 'restored')), table)
    return read_csv(table)


def _test(file: Path, place: Path | None, shared: Path) -> Iterator[dict[str, Any]]:
    from basicsr.models import build_model
    from basicsr.utils.options import parse_options

    sys.argv[1:] = ['-opt', str(file)]
    with _quiet():
        opt, _ = parse_options(str(shared.parent / 'unused'), is_train=False)
        model = build_model(opt)

        def restore(data: Dataset, index: int, batch: dict) -> Tensor:
            if hasattr(model, 'validation_extras'):  # BasicSR's own models have none
                batch |= model.validation_extras(data, index, batch)
            model.feed_data(batch)
            model.test()
            return model.output

        yield from _measured(restore, opt['datasets'], metrics_of(opt), place, shared)


def tested_plainly(
    source: Path | str,
    sets: Mapping[str, Mapping],
    metrics: Mapping[str, Mapping],
    folder: Path,
    name: str,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Tests what has no option file.

    Args:
        source: a weight file, or the name of a classical method.
        sets: sections of ``datasets`` to test on.
        metrics: as ``val.metrics``.
        folder: of the report.
        name: of the side.

    Returns:
        The rows of :func:`tested`, and ``network_g`` ({} for a classical method).
    """
    network, restorer = {}, None
    if isinstance(source, Path):
        restorer = Restorer(source)
        network = {'type': restorer.meta['type'], **restorer.meta['kwargs']}
    sets = {key: {'phase': 'test', 'scale': 1, 'name': key, **v} for key, v in sets.items()}

    def restore(_data: Dataset, _index: int, batch: dict) -> Tensor:
        return restorer.restore_tensor(batch['lq']) if restorer else non_local_means(batch['lq'])

    shared = folder / 'restored'
    table = folder / 'images' / f'{name}.csv'
    write_csv(pd.DataFrame(_measured(restore, sets, metrics, shared / name, shared)), table)
    return read_csv(table), network


def non_local_means(lq: Tensor) -> Tensor:
    """Non-local means of (1, 3, H, W) in [0, 1]; the noise level is estimated from the image.

    Noise: mean absolute response to a mask that lines and planes do not excite (Immerkaer, 1996).
    """
    from skimage.restoration import denoise_nl_means

    image = lq[0].permute(1, 2, 0).numpy()
    response = cv2.filter2D(image, -1, np.outer((1, -2, 1), (1, -2, 1)).astype(np.float32))
    sigma = math.sqrt(math.pi / 2) * float(np.abs(response).mean()) / 6
    restored = denoise_nl_means(
        image, patch_size=5, patch_distance=7, h=0.8 * sigma, sigma=sigma, channel_axis=2
    )
    return torch.from_numpy(restored).permute(2, 0, 1)[None]


def _measured(
    restore: Callable[[Dataset, int, dict], Tensor],
    sets: Mapping[str, Mapping],
    metrics: Mapping[str, Mapping],
    place: Path | None,
    shared: Path,
) -> Iterator[dict[str, Any]]:
    """Restores and scores every image of the sets; saves the pictures where there is a place."""
    from basicsr.data import build_dataloader, build_dataset

    for section in sets.values():
        data = build_dataset(dict(section))
        loader = build_dataloader(data, section)
        for index in range(len(data)):
            item = data[index]
            with torch.no_grad():
                output = restore(data, index, loader.collate_fn([item]))
            truth, degraded = to_8bit(item['gt']), to_8bit(item['lq'])
            image = to_8bit(output)
            name = f'{index:04d}_{Path(item["lq_path"]).stem}'
            if place is not None:
                kinds = {shared / DEGRADED: degraded, shared / TRUTH: truth, place: image}
                for folder, picture in kinds.items():
                    save_picture(folder / section['name'] / f'{name}.png', picture)
            before = scores(degraded, truth, metrics)
            yield {
                'set': section['name'], 'image': name, 'input': hash_of(item['lq']),
                **scores(image, truth, metrics),
                **{f'{DEGRADED} {key}': value for key, value in before.items()},
            }  # fmt: skip


def metrics_of(options: Mapping[str, Any]) -> dict[str, dict]:
    """The metrics of ``val.metrics``, with LPIPS where its package is installed."""
    metrics = dict((options.get('val') or {}).get('metrics') or {})
    if find_spec('lpips') is not None:
        metrics.setdefault('lpips', {'type': 'calculate_lpips', 'better': 'lower'})
    return metrics


def scores(image: np.ndarray, truth: np.ndarray, metrics: Mapping[str, Mapping]) -> dict:
    """Every metric of an 8-bit RGB image."""
    from basicsr.metrics import calculate_metric

    pair = {'img': image[..., ::-1], 'img2': truth[..., ::-1]}  # BasicSR takes BGR
    return {
        name: float(calculate_metric(pair, {k: v for k, v in metric.items() if k != 'better'}))
        for name, metric in metrics.items()
    }


def to_8bit(image: Tensor) -> np.ndarray:
    """([1,] 3, H, W) in [0, 1] -> (H, W, 3) uint8."""
    image = image.detach().cpu().float().reshape(-1, *image.shape[-2:])
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def hash_of(image: Tensor) -> str:
    """The same for the same pixels."""
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()[:12]


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger('basicsr')
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
