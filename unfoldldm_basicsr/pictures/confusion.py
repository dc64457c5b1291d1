"""Confusion matrices of a classifier: counted, drawn and written as a table.

Row i, column j: the number of items of class i that were taken for class j.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unfoldldm_basicsr.pictures.drawing import new_page, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def confusion_matrix(pairs: Iterable[tuple[int, int]], num_classes: int) -> np.ndarray:
    """Counts pairs (true class, predicted class).

    Returns:
        int64 (num_classes, num_classes); rows: true class, columns: predicted class.

    Raises:
        ValueError: a class outside 0 ... num_classes - 1.
    """
    counts = np.zeros((num_classes, num_classes), np.int64)
    for true, predicted in pairs:
        if not (0 <= true < num_classes and 0 <= predicted < num_classes):
            raise ValueError(f'({true}, {predicted}) is no pair of classes 0 to {num_classes - 1}.')
        counts[true, predicted] += 1
    return counts


def write_confusion_csv(counts: np.ndarray, names: Sequence[str], path: str | Path) -> None:
    """Writes a line per true class: its counts, the number of its items and their accuracy.

    Args:
        counts: from :func:`confusion_matrix`.
        names: of the classes.
        path: the file; its folder is made.
    """
    counts = _checked(counts, names)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(['true class', *names, 'items', 'accuracy'])
        for index, name in enumerate(names):
            items = int(counts[index].sum())
            share = f'{counts[index, index] / items:.4f}' if items else ''
            writer.writerow([name, *counts[index].tolist(), items, share])


def confusion_picture(
    counts: np.ndarray, names: Sequence[str], title: str, footer: str = ''
) -> Figure:
    """Draws a confusion matrix: a cell per pair with its count and share of the row, dark = many.

    Args:
        counts: from :func:`confusion_matrix`.
        names: of the classes.
        title: first line.
        footer: last line, small.

    Raises:
        ValueError: another number of names than rows.
    """
    counts = _checked(counts, names)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    pairs = zip(counts.ravel(), shares.ravel(), strict=True)
    texts = [f'{n}\n{100 * share:.0f} %' if n else '' for n, share in pairs]
    side = max(420, (70 + 9 * max(map(len, names))) * len(names))
    fig, cells = new_page([side], side + 140, 1, title=title, footer=footer)
    axes = fig.add_subplot(cells[0, 0])
    table(axes, shares, np.reshape(texts, counts.shape), names, names)
    axes.set_ylabel('true')
    axes.set_xlabel('predicted')
    axes.xaxis.set_label_position('top')
    return fig


def _checked(counts: np.ndarray, names: Sequence[str]) -> np.ndarray:
    counts = np.asarray(counts)
    if not names or counts.shape != (len(names), len(names)):
        raise ValueError(
            f'A confusion matrix of shape {counts.shape} does not go with {len(names)} names.'
        )
    return counts
