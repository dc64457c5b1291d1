"""What a validation leaves behind: means, a table of the degradations, CSV files."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

from unfoldldm_basicsr.common.errors import writing
from unfoldldm_basicsr.common.files import write_bytes_atomic

AVERAGE = 'average'  # name of the row with the means of the other rows
CSV_COLUMNS = ('iteration', 'degradation', 'images')
STAGE_COLUMNS = ('iteration', 'image', 'degradation', 'stage', 'psnr_hat', 'psnr_tilde', 'psnr')

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
    """A sentence for each metric that is infinite or undefined for images, with their names."""
    sentences = []
    kinds = {
        'infinite (left out of the mean)': math.isinf,
        'undefined (so is the mean)': math.isnan,
    }
    for name in dict.fromkeys(name for result in results for name in result.metrics):
        for what, is_so in kinds.items():
            images = [r.name for r in results if is_so(r.metrics.get(name, 0.0))]
            if images:
                sentences.append(
                    f'Validation: {name} is {what} for {len(images)} of {len(results)} images: '
                    f'{", ".join(images[:5])}{" ..." if len(images) > 5 else ""}.'
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
    average = {}
    for metric in dict.fromkeys(name for _, means in rows.values() for name in means):
        values = [means[metric] for _, means in rows.values() if metric in means]
        average[metric] = math.fsum(values) / len(values)
    return {**rows, AVERAGE: (sum(map(len, groups.values())), average)}


def table_lines(rows: Rows) -> list[str]:
    """The rows as aligned text, with a heading; none for no rows."""
    if not rows:
        return []
    metrics = list(rows[AVERAGE][1])
    cells = [
        [name, str(count), *(f'{means[m]:.4f}' if m in means else '-' for m in metrics)]
        for name, (count, means) in rows.items()
    ]
    head, sides = ['degradation', 'images', *metrics], ['left', *['right'] * (len(metrics) + 1)]
    return tabulate(cells, head, 'plain', colalign=sides, disable_numparse=True).splitlines()


def write_validation_csv(results: Sequence[ImageResult], path: Path, label: str) -> Path | None:
    """Appends :func:`degradation_rows` to a CSV file, or one row 'all' where there are none.

    A file with other columns (the metrics of the option file were changed) is left as it is and
    the next free name is used. ``label`` is the iteration, or the name of the test. Returns the
    file, None where nothing was measured.
    """
    rows = degradation_rows(results) or {'all': (len(results), averages(results))}
    metrics = list(dict.fromkeys(m for _, means in rows.values() for m in means))
    if not metrics:
        return None
    columns, original, number = [*CSV_COLUMNS, *metrics], path, 1
    with writing(path):
        while next(csv.reader(_text(path).splitlines()), columns) != columns:
            number += 1
            path = original.with_stem(f'{original.stem}_{number}')
    lines = [
        [label, name, count, *(f'{means[m]:.4f}' if m in means else '' for m in metrics)]
        for name, (count, means) in rows.items()
    ]
    append_rows(path, columns, lines)
    return path


def write_stage_psnr(results: list[ImageResult], path: Path, label: str) -> list[tuple]:
    """Appends one row per image and stage to a CSV file (columns ``STAGE_COLUMNS``).

    Returns for each stage the mean PSNR of x_hat, of x_tilde and of x.
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


def append_rows(path: Path, heading: Sequence[str], rows: Sequence[Sequence]) -> None:
    """Appends rows to a CSV file, all or none (OutputWriteError); a new one gets a heading."""
    with writing(path):
        before, new = _text(path), io.StringIO()
        csv.writer(new).writerows(rows if before else [heading, *rows])
        write_bytes_atomic(path, (before + new.getvalue()).encode('utf-8', 'surrogateescape'))


def _text(path: Path) -> str:
    """A table; names of files in another encoding stay the bytes that they are on the disk."""
    return path.read_bytes().decode('utf-8', 'surrogateescape') if path.exists() else ''
