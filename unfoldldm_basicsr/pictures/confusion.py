"""Confusion matrices of a classifier: counted, drawn and written as a table.

Row i, column j: the number of items of class i that were taken for class j.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from unfoldldm_basicsr.pictures.drawing import (
    GREY,
    INK,
    LABEL,
    PAPER,
    RULE,
    SECOND,
    SMALL,
    TITLE,
    Page,
)

CELL, MARGIN, GAP, LINE = 72, 28, 12, 34  # smallest cell and spaces in pixels


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
) -> np.ndarray:
    """Draws a confusion matrix: a cell per pair with its count and share of the row, dark = many.

    Args:
        counts: from :func:`confusion_matrix`.
        names: of the classes.
        title: first line.
        footer: last line, small.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: another number of names than rows.
    """
    counts = _checked(counts, names)
    ruler = Page(1, 1)
    widest = max(ruler.text_width(name, SMALL) for name in names)
    cell = max(CELL, widest + 2 * GAP)
    left, top = MARGIN + LINE + widest + GAP, MARGIN + 3 * LINE + GAP
    side = cell * len(names)
    texts = ruler.text_width(title, TITLE), ruler.text_width(footer, SMALL)
    width = max(left + side, MARGIN + max(texts)) + MARGIN
    page = Page(width, top + side + GAP + (LINE if footer else 0) + MARGIN)

    page.text(MARGIN, MARGIN, title, TITLE)
    page.text(left + side / 2, MARGIN + 1.9 * LINE, 'predicted', LABEL, GREY, 'mm')
    _upright(page, MARGIN, top + side / 2, 'true')
    for index, name in enumerate(names):
        middle = (index + 0.5) * cell
        page.text(left + middle, top - GAP, name, SMALL, INK, 'ms')
        page.text(left - GAP, top + middle, name, SMALL, INK, 'rm')
    for row in range(len(names)):
        items = max(1, int(counts[row].sum()))
        for column in range(len(names)):
            place = left + column * cell, top + row * cell
            _draw_cell(page, *place, cell, int(counts[row, column]), counts[row, column] / items)
    if footer:
        page.text(MARGIN, page.image.height - MARGIN, footer, SMALL, GREY, 'ls')
    return page.array()


def _draw_cell(page: Page, x: int, y: int, cell: int, count: int, share: float) -> None:
    fill = tuple(round(p + (s - p) * share) for p, s in zip(PAPER, SECOND, strict=True))
    page.draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=fill, outline=RULE)
    if count == 0:
        return
    colour = PAPER if share > 0.5 else INK
    page.text(x + cell / 2, y + 0.4 * cell, str(count), LABEL, colour, 'mm')
    page.text(x + cell / 2, y + 0.72 * cell, f'{100 * share:.0f} %', SMALL - 3, colour, 'mm')


def _upright(page: Page, x: int, y: float, text: str) -> None:
    """Writes grey text from bottom to top, centred at height ``y``."""
    length = page.text_width(text, LABEL)
    strip = Page(length, LINE)
    strip.text(0, LINE / 2, text, LABEL, GREY, 'lm')
    page.image.paste(strip.image.rotate(90, expand=True), (x, round(y - length / 2)))


def _checked(counts: np.ndarray, names: Sequence[str]) -> np.ndarray:
    counts = np.asarray(counts)
    if not names or counts.shape != (len(names), len(names)):
        raise ValueError(
            f'A confusion matrix of shape {counts.shape} does not go with {len(names)} names.'
        )
    return counts
