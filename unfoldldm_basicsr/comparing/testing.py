"""Tests of a comparison: every network gets the same degraded images, every image is a row."""

import hashlib
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.metrics import calculate_metric
from basicsr.models import build_model
from basicsr.utils import tensor2img
from basicsr.utils.options import parse_options
from torch import Tensor
from torch.utils.data import Dataset

from unfoldldm_basicsr import __version__
from unfoldldm_basicsr.comparing.measuring import code_of
from unfoldldm_basicsr.comparing.tables import made_once
from unfoldldm_basicsr.comparing.workspace import Workspace
from unfoldldm_basicsr.data.listing import find_images
from unfoldldm_basicsr.data.loading import ItemReader
from unfoldldm_basicsr.metrics.perceptual import lacking
from unfoldldm_basicsr.options.run import flatten
from unfoldldm_basicsr.pictures.drawing import save_picture
from unfoldldm_basicsr.restoring import Restorer

DEGRADED = 'degraded'
TRUTH = 'truth'
LPIPS = {'type': 'calculate_lpips', 'better': 'lower'}
KEYS = ['set', 'image', 'input']  # columns of a table of images before the metrics


def tested(options: Mapping[str, Any], place: Workspace, pictures: bool) -> pd.DataFrame:
    """Tests one network, or takes what this version has found for the same options and files.

    ``options`` are those of a test, as BasicSR reads them. Instead of ``model_type`` and
    ``network_g``: ``classical: NAME`` for a method without weights, or nothing, where the weights
    (of ``path``) say their network. ``pictures``: save the images of the first set.

    Returns a row for each image: ``set``, ``image``, ``input`` (hash of the degraded image),
    metrics, and those of the degraded image.
    """
    name = options['name']
    table = place.folder / 'images' / f'{name}.csv'
    shown = place.folder / 'restored' if pictures else None
    if shown and not (shown / name).is_dir():
        table.unlink(missing_ok=True)

    def test() -> pd.DataFrame:
        file = place.write_options(f'test_{name}', options)
        return pd.DataFrame(_rows(options, file, shown))

    made_with = [options, metrics_of(options), _files(options), __version__]
    return made_once(table, made_with + code_of(options.get('network_g') or {}), test)


def _files(options: Mapping[str, Any]) -> str:
    """Digest of all weights, and of names, sizes and times of the files of the data."""
    digest = hashlib.sha256()
    if weights := options['path']['pretrain_network_g']:
        digest.update(Path(weights).read_bytes())
    for file in data_files(options['datasets']):
        facts = file.stat()
        digest.update(f'{file} {facts.st_size} {facts.st_mtime_ns}'.encode())
    return digest.hexdigest()


def data_files(sections: Mapping[str, Any]) -> Iterator[Path]:
    """Images, LMDBs and lists that data sets name."""
    for key, root in flatten(sections, '').items():
        if root and key.rpartition('.')[2].startswith(('dataroot', 'meta_info')):
            files = find_images(root)[0] if Path(root).is_dir() else []
            yield from filter(Path.is_file, (Path(root, n) for n in ('', 'data.mdb', *files)))


def _rows(options: Mapping[str, Any], file: Path, shown: Path | None) -> Iterator[dict[str, Any]]:
    """Restores and scores every image, under one name each time that it is repeated; saves those of
    the first set, degraded as for the first time.
    """
    restore, metrics = restoring(options, file), metrics_of(options)
    for number, (key, section) in enumerate(options['datasets'].items()):
        scale = options.get('scale') or 1
        section = {'phase': 'test', 'scale': scale, 'name': key, **section}
        data = build_dataset(dict(section))
        loader, reader = build_dataloader(data, section), ItemReader(data, section)
        first_draw_of = getattr(data, 'first_draw_of', int)
        for index in range(len(data)):
            item = reader.read(index)
            with torch.no_grad():
                output = restore(data, index, loader.collate_fn([item]))
            pixels = item['lq'].contiguous().numpy().tobytes()  # tensor2img clamps it in place
            first, digest = first_draw_of(index), hashlib.sha256(pixels)
            name, view = f'{first:04d}_{Path(item["lq_path"]).stem}', item['lq'][: len(item['gt'])]
            kinds = {TRUTH: item['gt'], DEGRADED: view, options['name']: output}
            kinds = {kind: tensor2img(image, rgb2bgr=False) for kind, image in kinds.items()}
            for kind, picture in kinds.items() if shown and number == 0 and first == index else ():
                save_picture(shown / kind / section['name'] / f'{name}.png', picture)
            truth, degraded, image = kinds.values()
            row = {'set': section['name'], 'image': name, 'input': digest.hexdigest()[:12]}
            own = degraded if degraded.shape == truth.shape else None  # none of a smaller one
            before = {} if own is None else scores(own, truth, metrics)
            before = {f'{DEGRADED} {k}': v for k, v in before.items()}
            yield row | scores(image, truth, metrics) | before


def restoring(
    options: Mapping[str, Any], file: Path
) -> Callable[[Dataset, int, dict[str, Any]], Tensor]:
    """What restores the batch of one image, (data set, index, batch) -> (1, 3, H, W)."""
    if 'model_type' not in options:
        weights, method = options['path']['pretrain_network_g'], options.get('classical')
        call = CLASSICAL[method] if method else Restorer(weights).restore_tensor
        return lambda _data, _index, batch: call(batch['lq'])
    sys.argv[1:] = ['-opt', str(file)]
    opt, _ = parse_options(str(file.parent.parent / 'unused'), is_train=False)
    model = build_model(opt)
    extras = getattr(model, 'validation_extras', lambda *_: {})  # BasicSR's own models have none

    def restore(data: Dataset, index: int, batch: dict) -> Tensor:
        model.feed_data(batch | extras(data, index, batch))
        model.test()
        return model.output

    return restore


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


def non_local_means_gamma(lq: Tensor) -> Tensor:
    """Non-local means, then the power that brings the mean of the image to 0.45."""
    image = non_local_means(lq).clamp(1e-4, 1)
    return image ** (math.log(0.45) / math.log(float(image.mean().clamp(max=0.99))))


CLASSICAL = {method.__name__: method for method in (non_local_means, non_local_means_gamma)}


def metrics_of(options: Mapping[str, Any]) -> dict[str, dict]:
    """The metrics of ``val.metrics``, with LPIPS where it can be measured; ValueError for none."""
    metrics = dict((options.get('val') or {}).get('metrics') or {})
    if not metrics:
        raise ValueError('val.metrics of the test sets is empty: there is nothing to compare by.')
    if lpips_works():
        metrics.setdefault('lpips', LPIPS)
    return metrics


@lru_cache(maxsize=1)
def lpips_works() -> bool:
    """Whether the package ``lpips`` is there, and its weights are or can be fetched."""
    if lacking(LPIPS['type']):
        return False
    image = np.zeros((64, 64, 3), np.uint8)
    try:
        scores(image, image, {'lpips': LPIPS})
    except OSError as error:  # URLError
        logging.getLogger('basicsr').warning('LPIPS is left out, no weights for it: %s', error)
        return False
    return True


def scores(image: np.ndarray, truth: np.ndarray, metrics: Mapping[str, Mapping]) -> dict:
    """Every metric of an 8-bit RGB image."""
    pair = {'img': image[..., ::-1], 'img2': truth[..., ::-1]}  # BasicSR takes BGR
    return {name: float(calculate_metric(pair, dict(metric))) for name, metric in metrics.items()}
