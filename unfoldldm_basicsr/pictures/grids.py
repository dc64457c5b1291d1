"""Comparison pictures: a row per photo, a column per method, scores below, details magnified."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from unfoldldm_basicsr.pictures.drawing import (
    ACCENT,
    INK,
    Box,
    crop,
    detail_box,
    new_page,
    show,
    to_rgb8,
)
from unfoldldm_basicsr.pictures.quality import psnr

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def psnr_captions(row: Sequence[np.ndarray], truth: np.ndarray) -> list[str]:
    """'24.31 dB' for every image of a row, 'ground truth' for the truth itself."""
    scores = [None if image is truth else psnr(image, truth) for image in row]
    return ['ground truth' if score is None else f'{score:.2f} dB' for score in scores]


def detail_boxes(rows: Sequence[Sequence[np.ndarray]], fraction: float = 0.28) -> list[Box]:
    """For every row the square with the most structure in its last image (the truth).

    Args:
        rows: images as for :func:`comparison_grid`.
        fraction: side of the square relative to the photo's shorter side.
    """
    return [detail_box(row[-1], max(8, round(min(row[-1].shape[:2]) * fraction))) for row in rows]


def comparison_grid(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
    *,
    crops: Sequence[Box] | None = None,
    highlight: Sequence[int] = (),
    cell_width: int = 300,
    footer: str = '',
) -> Figure:
    """Lays out photos side by side for a README or a log.

    Args:
        rows: one sequence of images per photo, all rows equally long; images of one row have the
            same size. uint8, uint16 or float in [0, 1]; grey or RGB.
        titles: one per column.
        captions: text below every image, for example from :func:`psnr_captions`.
        crops: one region (top, left, height, width) per row, marked in the photos and shown
            magnified under them, for example from :func:`detail_boxes`.
        highlight: columns whose title and captions are set in colour.
        cell_width: width of a photo on the page in pixels.
        footer: below everything: what is shown.
    """
    heights = []
    for number, row in enumerate(rows):
        height, width = row[0].shape[:2]
        # tall photos are limited to the height of a square
        heights.append(max(24, min(cell_width, cell_width * height / width)))
        if crops is not None:
            _, _, high, wide = crops[number]
            heights.append(max(24, min(cell_width, cell_width * high / wide)))
    fig, cells = new_page(heights, len(titles) * cell_width, len(titles), footer=footer)
    for number, row in enumerate(rows):
        for column, image in enumerate(row):
            colour = ACCENT if column in highlight else INK
            caption = '' if captions is None else captions[number][column]
            box, line = (None, number) if crops is None else (crops[number], 2 * number)
            head = '' if number else titles[column]
            photo = fig.add_subplot(cells[line, column])
            show(photo, image, caption, title=head, box=box, colour=colour)
            if box is not None:
                detail = fig.add_subplot(cells[line + 1, column])
                show(detail, crop(to_rgb8(image), box))
    return fig
