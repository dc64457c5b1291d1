"""What happened inside an unfolding network, as one picture: input, every stage, output."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from unfoldldm_basicsr.pictures.drawing import (
    ACCENT,
    GREY,
    INK,
    RULE,
    SECOND,
    SMALL,
    TITLE,
    Box,
    Page,
    crop,
    detail_box,
    fit,
    to_rgb8,
)
from unfoldldm_basicsr.pictures.quality import measure
from unfoldldm_basicsr.restoring.traces import StageImages, Trace, levels

MARGIN, GAP, CELL, SIDE, CAPTION = 36, 14, 236, 120, 34
GAINS = (1, 2, 4, 8, 16, 32, 64)


class _Scales(NamedTuple):
    """Common to all stages, so that they can be compared: gains of the maps, end of the bars."""

    estimates: int
    effect: int
    prior: float


def trace_picture(
    trace: Trace,
    *,
    title: str = 'From input to output, stage by stage',
    note: str = '',
    truth: np.ndarray | None = None,
    box: Box | None = None,
) -> np.ndarray:
    """Draws a trace.

    The upper half shows input and output. Below, every stage is one line: its two estimates and
    their difference, the prior as bars, how much the prior changes the stage's output against a run
    with the null prior, and that output, all magnified in one marked region.

    Args:
        trace: from ``Restorer.trace``.
        title: headline.
        note: one line under it, for example the names of image and weights.
        truth: (H, W, 3) float in [0, 1]; with it captions give PSNR of the whole image.
        box: region (top, left, height, width) to magnify; default where the output has most detail.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    if box is None:
        shorter = min(trace.lq.shape[:2])
        box = detail_box(trace.output, max(8, min(round(shorter * 0.35), 96)))
    page_width = 2 * MARGIN + SIDE + 6 * CELL + 5 * GAP
    hero_width = (page_width - 2 * MARGIN - GAP) // 2
    rows, columns = trace.lq.shape[:2]
    scale = min(hero_width / columns, 620 / rows)
    hero_height = max(1, round(rows * scale))
    head = MARGIN + 46 + (34 if note else 0)
    stages_top = head + hero_height + CAPTION + 76
    line = CELL + CAPTION + GAP
    page = Page(page_width, stages_top + len(trace.stages) * line + CAPTION + MARGIN)

    page.text(MARGIN, MARGIN - 6, title, TITLE)
    if note:
        page.text(MARGIN, MARGIN + 36, note, SMALL, GREY)
    for x, image, name in (
        (MARGIN, trace.lq, 'input y'),
        (MARGIN + hero_width + GAP, trace.output, f'output, stage {len(trace.stages)}'),
    ):
        photo = fit(to_rgb8(image), hero_width, hero_height)
        page.photo(photo, x + (hero_width - photo.shape[1]) // 2, head, box, scale)
        _caption(page, x + hero_width / 2, head + hero_height, name, _score(image, truth))

    pairs = [(s.x_hat, s.x_tilde) for s in trace.stages]
    shifts = [(s.x, s.x_null) for s in trace.stages if s.x_null is not None]
    limit = max(float(np.abs(s.prior).max(initial=0.1)) for s in trace.stages)
    scales = _Scales(_gain(pairs, box), _gain(shifts, box), limit)
    _heads(page, stages_top, scales)
    before = trace.lq
    for number, stage in enumerate(trace.stages, start=1):
        _stage(page, stages_top + (number - 1) * line, number, stage, before, truth, box, scales)
        before = stage.x
    explanation = (
        f'The stages show the marked {box[3]} x {box[2]} pixels. Numbers are mean absolute '
        'differences over the whole image in levels of 255'
    )
    if truth is None:
        explanation += '; "moves by" is against the output of the stage before.'
    else:
        explanation += ', and PSNR of the whole image.'
    page.text(MARGIN, page.image.height - MARGIN, explanation, SMALL, GREY, 'ls')
    return page.array()


def _heads(page: Page, top: float, scales: _Scales) -> None:
    y = top - 20
    page.rule(MARGIN, y - 40, page.image.width - MARGIN, y - 40)
    heads = [
        [('x', 'k', 'hat'), 'holistic step'],
        [('x', 'k', 'tilde'), 'decomposed step'],
        [f'their difference x {scales.estimates}'],
        ['prior'],
        [f'effect of the prior x {scales.effect}'],
        [('x', 'k', ''), 'stage output'],
    ]
    for column, parts in enumerate(heads):
        x = _left(column)
        for part in parts:
            if isinstance(part, tuple):
                x += page.symbol(x, y, *part, size=26) + 10
            else:
                page.text(x, y, part, SMALL, INK, 'ls')


def _stage(
    page: Page,
    top: int,
    number: int,
    stage: StageImages,
    before: np.ndarray,
    truth: np.ndarray | None,
    box: Box,
    scales: _Scales,
) -> None:
    page.text(MARGIN, top + CELL / 2 - 14, 'stage', SMALL, GREY, 'lm')
    page.text(MARGIN, top + CELL / 2 + 16, str(number), TITLE, INK, 'lm')
    for column, image in ((0, stage.x_hat), (1, stage.x_tilde), (5, stage.x)):
        _cell(page, column, top, crop(to_rgb8(image), box))
        score = _score(image, truth)
        moved = f'moves by {levels(image, before):.2f}'
        _caption(page, _left(column) + CELL / 2, top + CELL, score or moved)
    _cell(page, 2, top, _heat(stage.x_hat, stage.x_tilde, box, scales.estimates))
    apart = f'{levels(stage.x_hat, stage.x_tilde):.2f}'
    _caption(page, _left(2) + CELL / 2, top + CELL, f'apart by {apart}')
    _bars(page, _left(3), top, stage.prior, scales.prior)
    if stage.x_null is None:
        _caption(page, _left(4) + CELL / 2, top + CELL / 2, 'no prior')
        return
    _cell(page, 4, top, _heat(stage.x, stage.x_null, box, scales.effect))
    shift = f'shifts output by {levels(stage.x, stage.x_null):.2f}'
    _caption(page, _left(4) + CELL / 2, top + CELL, shift)


def _left(column: int) -> int:
    return MARGIN + SIDE + column * (CELL + GAP)


def _cell(page: Page, column: int, top: int, image: np.ndarray) -> None:
    photo = fit(image, CELL, CELL)
    height, width = photo.shape[:2]
    page.photo(photo, _left(column) + (CELL - width) // 2, top + (CELL - height) // 2)


def _caption(page: Page, middle: float, top: float, text: str, extra: str | None = None) -> None:
    page.text(
        middle, top + CAPTION / 2 + 2, f'{text}, {extra}' if extra else text, SMALL, INK, 'mm'
    )


def _bars(page: Page, left: int, top: int, prior: np.ndarray, limit: float) -> None:
    """The prior's values as bars around zero; ``limit`` is at the ends of the frame."""
    page.draw.rectangle((left - 1, top - 1, left + CELL, top + CELL), outline=RULE)
    middle = top + CELL / 2
    page.rule(left, middle, left + CELL - 1, middle)
    if not prior.size:
        _caption(page, left + CELL / 2, top + CELL, 'none')
        return
    step = (CELL - 16) / prior.size
    for index, value in enumerate(prior):
        x0 = left + 8 + index * step
        x1 = max(x0 + 1, x0 + step - 1)
        end = middle - value / limit * (CELL / 2 - 8)
        page.draw.rectangle(
            (x0, min(end, middle), x1, max(end, middle)), fill=ACCENT if value > 0 else SECOND
        )
    _caption(page, left + CELL / 2, top + CELL, f'{prior.size} values, axis to {limit:.1f}')


def _difference(first: np.ndarray, second: np.ndarray, box: Box) -> np.ndarray:
    return np.abs(crop(first, box) - crop(second, box)).mean(2)


def _gain(pairs: list[tuple[np.ndarray, np.ndarray]], box: Box) -> int:
    """The largest of :data:`GAINS` that leaves nearly all differences of all stages below one."""
    high = max((np.quantile(_difference(*pair, box), 0.98) for pair in pairs), default=1.0)
    return max((gain for gain in GAINS if gain * high <= 1), default=GAINS[0])


def _heat(first: np.ndarray, second: np.ndarray, box: Box, gain: int) -> np.ndarray:
    """|first - second| in the region, amplified, from black over red to white."""
    levels = np.rint(np.clip(_difference(first, second, box) * gain, 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def _score(image: np.ndarray, truth: np.ndarray | None) -> str | None:
    return None if truth is None else f'{measure(image, truth).psnr:.2f} dB'
