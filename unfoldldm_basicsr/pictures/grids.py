"""Comparison pictures: a row per photo, a column per method, scores below, details magnified."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unfoldldm_basicsr.pictures.drawing import (
    ACCENT,
    GREY,
    INK,
    LABEL,
    SMALL,
    Box,
    Page,
    crop,
    detail_box,
    fit,
    to_rgb8,
)
from unfoldldm_basicsr.pictures.quality import measure

MARGIN, GAP, CAPTION, HEAD, BETWEEN = 28, 8, 36, 44, 20


def psnr_captions(row: Sequence[np.ndarray], truth: np.ndarray) -> list[str]:
    """'24.31 dB' for every image of a row, 'ground truth' for the truth itself."""
    scores = [None if image is truth else measure(image, truth).psnr for image in row]
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
) -> np.ndarray:
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
        footer: one line below everything: what is shown.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: lengths or image sizes that do not match.
    """
    _check(rows, titles, captions, crops)
    layouts = []
    for index, row in enumerate(rows):
        height, width = row[0].shape[:2]
        # tall photos are limited to the height of a square
        scale = min(cell_width / width, cell_width / height)
        photo_height = max(1, round(height * scale))
        crop_height = 0
        if crops is not None:
            _, _, box_height, box_width = crops[index]
            crop_height = min(cell_width, round(cell_width * box_height / box_width))
        layouts.append((scale, photo_height, crop_height))

    below = CAPTION if captions is not None else 0
    row_heights = [photo + (GAP + detail if detail else 0) for _, photo, detail in layouts]
    page_width = 2 * MARGIN + len(titles) * cell_width + (len(titles) - 1) * GAP
    page_height = (
        MARGIN + HEAD + sum(row_heights) + len(rows) * (below + BETWEEN) + MARGIN - BETWEEN
    )
    page = Page(page_width, page_height + (CAPTION if footer else 0))

    lefts = [MARGIN + column * (cell_width + GAP) for column in range(len(titles))]
    for column, (title, left) in enumerate(zip(titles, lefts, strict=True)):
        size = LABEL
        while size > 12 and page.text_width(title, size) > cell_width:
            size -= 1
        colour = ACCENT if column in highlight else INK
        page.text(left + cell_width / 2, MARGIN + 12, title, size, colour, 'mm')

    top = MARGIN + HEAD
    for index, (row, (scale, photo_height, crop_height)) in enumerate(
        zip(rows, layouts, strict=True)
    ):
        for column, left in enumerate(lefts):
            image = to_rgb8(row[column])
            box = None if crops is None else crops[index]
            small = fit(image, cell_width, photo_height)
            page.photo(small, left + (cell_width - small.shape[1]) // 2, top, box, scale)
            bottom = top + photo_height
            if box is not None:
                detail = fit(crop(image, box), cell_width, crop_height)
                page.photo(detail, left + (cell_width - detail.shape[1]) // 2, bottom + GAP)
                bottom += GAP + crop_height
            if captions is not None:
                colour = ACCENT if column in highlight else INK
                place = (left + cell_width / 2, bottom + CAPTION / 2 + 2)
                page.text(*place, captions[index][column], SMALL, colour, 'mm')
        top += row_heights[index] + below + BETWEEN
    if footer:
        page.text(MARGIN, page.image.height - MARGIN, footer, SMALL, GREY, 'ls')
    return page.array()


def _check(rows, titles, captions, crops) -> None:
    if not rows or not titles:
        raise ValueError('A grid needs at least one row and one column.')
    for number, row in enumerate(rows):
        if len(row) != len(titles):
            raise ValueError(f'Row {number} has {len(row)} images for {len(titles)} titles.')
        sizes = {image.shape[:2] for image in row}
        if len(sizes) > 1:
            raise ValueError(f'Row {number} has images of different sizes: {sorted(sizes)}.')
    if captions is not None and [len(c) for c in captions] != [len(row) for row in rows]:
        raise ValueError('captions must have one text for every image of every row.')
    if crops is not None and len(crops) != len(rows):
        raise ValueError(f'{len(crops)} crops for {len(rows)} rows.')
