"""What a validation leaves behind per degradation: a table in the log and a CSV file."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from unfoldldm_basicsr.common.errors import writing
from unfoldldm_basicsr.training.validation import (
    ImageResult,
    append_rows,
    averages,
    averages_by_degradation,
)

AVERAGE = 'average'  # name of the row with the means of the other rows
CSV_COLUMNS = ('iteration', 'degradation', 'images')

Rows = dict[str, tuple[int, Mapping[str, float]]]  # name: number of images, mean of each metric


def degradation_rows(results: Sequence[ImageResult]) -> Rows:
    """One row per degradation and their average; empty when fewer than two are named.

    The average gives every degradation the same weight, however many images it has: the figure
    that all-in-one tables print last. A table that counts only one of several strengths (noise of
    sigma 25 in those of five tasks) is averaged over other rows.
    """
    means = averages_by_degradation(list(results))
    if not means:
        return {}
    counts = {name: sum(r.degradation == name for r in results) for name in means}
    metrics = dict.fromkeys(name for row in means.values() for name in row)
    average = {}
    for metric in metrics:
        values = [row[metric] for row in means.values() if metric in row]
        average[metric] = math.fsum(values) / len(values)
    rows = {name: (counts[name], row) for name, row in means.items()}
    return {**rows, AVERAGE: (sum(counts.values()), average)}


def table_lines(rows: Rows) -> list[str]:
    """The rows as aligned text, with a heading; none for no rows."""
    if not rows:
        return []
    metrics = list(rows[AVERAGE][1])
    cells = [['degradation', 'images', *metrics]]
    for name, (count, means) in rows.items():
        figures = [f'{means[m]:.4f}' if m in means else '-' for m in metrics]
        cells.append([name, str(count), *figures])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return [
        '  '.join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in cells
    ]


def write_validation_csv(
    results: Sequence[ImageResult], rows: Rows, path: Path, label: str
) -> Path | None:
    """Appends the rows of a validation to a CSV file, or one row 'all' where there are none.

    A file with other columns (the metrics of the option file were changed) is left as it is and
    the next free name is used.

    Args:
        results: of all images.
        rows: from :func:`degradation_rows`.
        path: the file.
        label: iteration or name of the test.

    Returns:
        The file, None where nothing was measured.

    Raises:
        OutputWriteError: it cannot be written.
    """
    rows = rows or {'all': (len(results), averages(list(results)))}
    metrics = list(dict.fromkeys(m for _, means in rows.values() for m in means))
    if not metrics:
        return None
    columns, original, number = [*CSV_COLUMNS, *metrics], path, 1
    while path.exists() and _heading(path) != columns:
        number += 1
        path = original.with_stem(f'{original.stem}_{number}')
    lines = [
        [label, name, count, *(f'{means[m]:.4f}' if m in means else '' for m in metrics)]
        for name, (count, means) in rows.items()
    ]
    append_rows(path, columns, lines)
    return path


def _heading(path: Path) -> list[str]:
    with writing(path), open(path, newline='', encoding='utf-8') as file:
        return next(csv.reader(file), [])
