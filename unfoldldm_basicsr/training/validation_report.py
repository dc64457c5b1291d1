"""What a validation leaves behind: means, a table of the degradations, CSV files, images."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from unfoldldm_basicsr.common.errors import writing
from unfoldldm_basicsr.common.files import write_bytes_atomic

AVERAGE = 'average'  # name of the row with the means of the other rows

Rows = dict[str, tuple[int, Mapping[str, float]]]  # name: number of images, mean of each metric


@dataclass
class ImageResult:
    """What validation found for one image."""

    index: int
    name: str
    degradation: str | None
    metrics: dict[str, float] = field(default_factory=dict)
    stages: list[tuple[float, float, float]] = field(default_factory=list)
    predicted: str | None = None  # degradation that a classifier takes it for


def averages(results: Sequence[ImageResult]) -> dict[str, float]:
    """Mean of every metric over the images that have it.

    A value that is not a number (the output is not finite, or the metric is undefined for the
    image) makes the mean NaN. Infinite values (PSNR of an identical image) are left out.
    """
    means = {}
    for name in dict.fromkeys(name for result in results for name in result.metrics):
        values = [r.metrics[name] for r in results if name in r.metrics]
        finite = [value for value in values if not math.isinf(value)]
        means[name] = sum(finite) / len(finite) if finite else math.nan
    return means


def unusual_values(results: Sequence[ImageResult]) -> list[str]:
    """A sentence for each metric that is not finite for some images, with their names."""
    sentences = []
    for name in dict.fromkeys(name for result in results for name in result.metrics):
        images = [r.name for r in results if not math.isfinite(r.metrics.get(name, 0.0))]
        if images:
            sentences.append(
                f'Validation: {name} is infinite (left out of the mean) or undefined (so is the '
                f'mean) for {len(images)} of {len(results)} images: {", ".join(images[:5])}'
                f'{" ..." if len(images) > 5 else ""}.'
            )
    return sentences


def degradation_rows(results: Sequence[ImageResult]) -> Rows:
    """One row per degradation and their average; empty when fewer than two are named.

    The average gives every degradation the same weight, however many images it has: the figure
    that all-in-one tables print last. A table that counts only one of several strengths (noise of
    sigma 25 in those of five tasks) is averaged over other rows.
    """
    groups: dict[str, list[ImageResult]] = {}
    for result in results:
        if result.degradation is not None:
            groups.setdefault(result.degradation, []).append(result)
    if len(groups) < 2:
        return {}
    rows = {name: (len(group), averages(group)) for name, group in groups.items()}
    metrics = dict.fromkeys(name for _, means in rows.values() for name in means)
    average = {m: fmean(means[m] for _, means in rows.values() if m in means) for m in metrics}
    return {**rows, AVERAGE: (sum(map(len, groups.values())), average)}


def table_lines(rows: Rows) -> list[str]:
    """The rows as aligned text, with a heading; none for no rows."""
    if not rows:
        return []
    from tabulate import tabulate  # half a hundredth of the time to import this package

    metrics = list(rows[AVERAGE][1])
    cells = [[n, count, *map(means.get, metrics)] for n, (count, means) in rows.items()]
    looks = {'floatfmt': '.4f', 'missingval': '-', 'numalign': 'right', 'disable_numparse': [0]}
    return tabulate(cells, ['degradation', 'images', *metrics], 'plain', **looks).splitlines()


def write_validation_csv(results: Sequence[ImageResult], path: Path, label: str) -> None:
    """Adds :func:`degradation_rows` to a CSV file, or one row 'all' where there are none.

    ``label`` is the iteration, or the name of the test. Without metrics nothing is written.
    """
    rows = degradation_rows(results) or {'all': (len(results), averages(results))}
    table = [
        {'iteration': label, 'degradation': name, 'images': count, **_rounded(means)}
        for name, (count, means) in rows.items()
    ]
    if any(means for _, means in rows.values()):
        append_rows(path, table)


def write_stage_psnr(results: list[ImageResult], path: Path, label: str) -> list[list[float]]:
    """Adds one row per image and stage to a CSV file: PSNR of x_hat, of x_tilde and of x.

    Returns for each stage the means of the three.
    """
    traced = [r for r in results if r.stages]
    if not traced:
        return []
    rows = [
        {'iteration': label, 'image': r.name, 'degradation': r.degradation, 'stage': k}
        | _rounded(dict(zip(('psnr_hat', 'psnr_tilde', 'psnr'), values, strict=True)))
        for r in traced
        for k, values in enumerate(r.stages, start=1)
    ]
    append_rows(path, rows)
    return np.mean([r.stages for r in traced], axis=0).tolist()


def _rounded(values: Mapping[str, float]) -> dict[str, str]:
    return {name: f'{value:.4f}' for name, value in values.items()}


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds rows, column -> value, to a CSV file, all or none (OutputWriteError).

    New columns are empty in the rows before; names of files in another encoding stay the bytes
    that they are on the disk.
    """
    with writing(path):
        before = path.read_bytes().decode('utf-8', 'surrogateescape') if path.exists() else ''
        lines, table = [*csv.DictReader(io.StringIO(before)), *rows], io.StringIO()
        writer = csv.DictWriter(table, dict.fromkeys(key for line in lines for key in line))
        writer.writeheader()
        writer.writerows(lines)
        write_bytes_atomic(path, table.getvalue().encode('utf-8', 'surrogateescape'))


# ---- saved images -------------------------------------------------------------------------------


class SavedImages:
    """Where the restored images of one validation go, no two to the same file.

    As in BasicSR, ``visualization/IMAGE/IMAGE_ITERATION.png`` in a training and
    ``visualization/DATASET/IMAGE_SUFFIX.png`` in a test. A training with several validation sets
    puts a folder of the set in between: ``visualization/DATASET/IMAGE/IMAGE_ITERATION.png``.
    IMAGE ends with the degradation where the set names one; in a set with two images of one name
    (``a.png`` and ``a.jpg``) all get their place in it behind that. ``label`` is the iteration of
    a training.
    """

    def __init__(self, opt: Mapping[str, Any], dataset: Dataset, label: str):
        folder, name = Path(opt['path']['visualization']), dataset.opt['name']
        self.training = bool(opt.get('is_train'))
        several = len(validation_sets(opt)) > 1
        self.folder = folder / name if several or not self.training else folder
        suffix = (opt.get('val') or {}).get('suffix') or opt['name']
        self.ending = label if self.training else suffix
        names = listed_names(dataset)
        self.numbered = len(set(names)) < len(names) == len(dataset)

    def path(self, index: int, name: str, degradation: str | None) -> Path:
        """File of the image at a place of the set, called ``name`` by :func:`image_name`."""
        parts = (name, degradation, str(index) if self.numbered else None)
        name = '_'.join(part for part in parts if part is not None)
        file = f'{name}_{self.ending}.png'
        return self.folder / name / file if self.training else self.folder / file


def validation_sets(opt: Mapping[str, Any]) -> list[str]:
    """Sections of ``datasets`` that a training validates on."""
    return [phase for phase in opt.get('datasets') or () if str(phase).split('_')[0] == 'val']


def image_name(path: str, options: Mapping[str, Any]) -> str:
    """Name of an image in reports and saved files, without extension.

    Images in folders inside the data root keep the names of these folders, since frames of
    different scenes are often called alike: ``GOPRO/test/S1/blur/1.png`` is ``S1_blur_1``.

    Args:
        path: of the image, or its key in an LMDB.
        options: of the data set; the roots of a mixture are those of its ``sets``.
    """
    image, sets = Path(path), (options, *options.get('sets', ()))
    roots = [part.get(key) for part in sets for key in ('dataroot_lq', 'dataroot_gt')]
    folders = [Path(root).expanduser() for root in roots if isinstance(root, str)]
    for folder in folders:
        if image.is_relative_to(folder):
            return '_'.join(image.relative_to(folder).with_suffix('').parts)
    if any(folder.suffix == '.lmdb' for folder in folders) and not image.is_absolute():
        return '_'.join(image.parts)
    return image.stem


def listed_names(dataset: Dataset) -> list[str]:
    """Names of all images without reading them, as far as the class of the set tells them."""
    options, parts = getattr(dataset, 'opt', {}), getattr(dataset, 'sets', [dataset])
    if all(hasattr(part, 'sources') for part in parts):
        return [
            f'{image_name(source.path(name), options)}_{part.degradation_name}'
            for part in parts
            for source, names in part.sources()[-1:]
            for name in names * part.options.repeat
        ]
    entries = getattr(dataset, 'paths', [])
    paths = [entry.get('lq_path') if isinstance(entry, Mapping) else entry for entry in entries]
    return [image_name(path, options) for path in paths if isinstance(path, str)]
