"""Pictures of what VLU-Net did to an image: prompts per stage, gradient steps, CLIP's attention."""

from __future__ import annotations

import cv2
import numpy as np

from unfoldldm_basicsr.pictures.drawing import (
    ACCENT,
    GREY,
    INK,
    LABEL,
    RULE,
    SECOND,
    SMALL,
    TITLE,
    Page,
    fit,
    to_rgb8,
)
from unfoldldm_basicsr.restoring.traces import ClipAttention, StageSteps, VLUExplanation

MARGIN, GAP, CAPTION, LINE = 36, 14, 34, 27
PALE, DEEP = np.array((247, 249, 252)), np.array((24, 72, 140))  # of probabilities 0 and 1
TINY = 15


def prompt_picture(explanation: VLUExplanation, *, note: str = '') -> np.ndarray:
    """Draws the prompts' weights of every stage as a table of coloured cells.

    Above the table stands what CLIP makes of the image, where CLIP gives the degradation vector.

    Args:
        explanation: from ``restoring.explanation``.
        note: one line under the title, for example the names of image and weights.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    names = explanation.prompt_names
    row, side, photo = 46, 210, 260
    cell = max(70, min(150, 1050 // len(names)), (900 - 2 * MARGIN - side) // len(names))
    width = 2 * MARGIN + side + cell * len(names)
    text = (
        'Each row sums to 100 %: a = softmax of a linear layer of the degradation vector, one layer'
        ' per stage. The prompts are learned without labels, so a column is the prompt at the index'
        ' of its degradation, not a classifier for it.'
    )
    lines = _wrapped(text, width - 2 * MARGIN)
    top = MARGIN + 80 + photo + CAPTION + 90
    rows = len(explanation.stages)
    page = Page(width, top + rows * row + 24 + LINE * len(lines) + MARGIN)
    _title(page, 'Which prompts steer each stage', note)
    _photos(page, MARGIN + 80, photo, explanation)

    said = _verdict(explanation.attention)
    page.text(MARGIN, top - 58, said, _fitting(page, said, width - 2 * MARGIN), INK, 'lm')
    left = MARGIN + side
    for column, name in enumerate(names):
        middle = left + (column + 0.5) * cell
        page.text(middle, top - 22, name, _fitting(page, name, cell - 6), INK, 'mm')
    for number, stage in enumerate(explanation.stages):
        y = top + number * row
        page.text(MARGIN, y + row / 2, stage_title(number, stage), SMALL, INK, 'lm')
        _cells(page, left, y, cell, row, stage.weights)
    _paragraph(page, top + row * rows + 24, lines)
    return page.array()


def step_picture(explanation: VLUExplanation, *, note: str = '') -> np.ndarray:
    """Draws |Phi(x) - y| and |step| of every stage over the whole image, means over the channels.

    Every map has its own colour scale, from zero to its 99.5 % quantile, which stands under it: the
    steps are often ten times smaller than the residuals, and features have no common unit.

    Args:
        explanation: from ``restoring.explanation``.
        note: one line under the title.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    height, width = explanation.lq.shape[:2]
    scale = min(380 / width, 380 / height)
    cell, tall = max(200, round(width * scale)), max(1, round(height * scale))
    between, half = 3 * GAP, (len(explanation.stages) + 1) // 2
    page_width = 2 * MARGIN + 4 * cell + 2 * GAP + between
    text = (
        'Means of magnitudes over the channels; the gradient step subtracts'
        ' step = r Phi^T(Phi(x) - y) from x. Features have no unit, so every map has its own colour'
        ' scale from 0 (black) to the number under it (white), and colours compare places within'
        ' a map. Maps are enlarged to the image from the resolution given.'
    )
    lines = _wrapped(text, page_width - 2 * MARGIN)
    strip = 40 + tall + CAPTION + 20
    top = MARGIN + 80 + tall + CAPTION + 34
    page = Page(page_width, top + half * strip + LINE * len(lines) + MARGIN)
    _title(page, 'What the gradient steps remove', note)
    change = np.abs(explanation.output - explanation.lq).mean(2)
    limit = _limit(change)
    whole = (
        (to_rgb8(explanation.lq), 'input'),
        (to_rgb8(explanation.output), 'output'),
        (_heat(change, limit), f'|output - input|, mean {change.mean():.3g}, white {limit:.3g}'),
    )
    for column, (picture, name) in enumerate(whole):
        x = MARGIN + column * (cell + GAP) + (column > 1) * (between - GAP)
        _map(page, x, MARGIN + 80, cell, tall, picture, name)
    for number, stage in enumerate(explanation.stages):
        left = MARGIN + (number // half) * (2 * cell + GAP + between)
        y = top + (number % half) * strip
        _step_strip(page, left, y, cell, tall, number, stage, (height, width))
    _paragraph(page, top + half * strip, lines)
    return page.array()


def attention_picture(attention: ClipAttention, *, note: str = '') -> np.ndarray:
    """Draws CLIP's attention over its view of the image, and its scores before and after tuning.

    Args:
        attention: from ``restoring.clip_attention``.
        note: one line under the title.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    side, bars = 330, len(attention.texts) * 46
    asked, patches = attention.texts[attention.asked], attention.attention
    panels = [
        (to_rgb8(attention.view), 'what CLIP sees', 'centre square of the image'),
        (_overlay(attention.view, attention.attention, side),
         'attention of the class token', f'the same before and after, {_largest(patches)}'),
        (_overlay(attention.view, attention.before, side),
         'relevance before tuning', _largest(attention.before)),
        (_overlay(attention.view, attention.after, side),
         'relevance after tuning', _largest(attention.after)),
    ]  # fmt: skip
    width = 2 * MARGIN + 4 * side + 3 * GAP
    rows, columns = attention.attention.shape
    text = (
        f'Relevance for the text "{asked}": attention times the gradient of its score against the'
        f' mean of all texts, positive part, sum over heads; {rows} x {columns} patches that sum to'
        f' 100 %. Every map is brightest at its own largest patch.'
    )
    lines = _wrapped(text, width - 2 * MARGIN)
    top = MARGIN + 80
    table = top + side + 2 * CAPTION + 70
    page = Page(width, table + bars + 24 + LINE * len(lines) + MARGIN)
    _title(page, 'Where CLIP looks, before and after tuning', note)
    for column, (picture, head, below) in enumerate(panels):
        x = MARGIN + column * (side + GAP)
        page.photo(cv2.resize(picture, (side, side), interpolation=cv2.INTER_CUBIC), x, top)
        page.text(x + side / 2, top + side + 20, head, SMALL, INK, 'mm')
        page.text(x + side / 2, top + side + 46, below, TINY, GREY, 'mm')
    _score_bars(page, table, attention)
    _paragraph(page, table + bars + 24, lines)
    return page.array()


def stage_title(number: int, stage: StageSteps) -> str:
    """``encoder_level2`` as the second stage -> '2  encoder level 2'."""
    name = stage.name.replace('_level', ' level ').replace('_', ' ')
    return f'{number + 1}  {name}'


def enlarge(maps: np.ndarray, scale: int, size: tuple[int, int]) -> np.ndarray:
    """(h, w) values -> the image's (H, W), interpolated linearly; a map may reach over its edge."""
    height, width = (side * scale for side in maps.shape)
    large = cv2.resize(maps, (width, height), interpolation=cv2.INTER_LINEAR)
    return large[: size[0], : size[1]]


def _step_strip(
    page: Page,
    left: int,
    top: int,
    cell: int,
    tall: int,
    number: int,
    stage: StageSteps,
    size: tuple[int, int],
) -> None:
    rows, columns = stage.residual.shape
    page.text(left, top + 16, stage_title(number, stage), LABEL, INK, 'lm')
    about = f'{columns} x {rows} pixels, {stage.channels} channels'
    page.text(left + 2 * cell + GAP, top + 17, about, TINY, GREY, 'rm')
    for column, (maps, name) in enumerate(
        ((stage.residual, '|Phi(x) - y|'), (stage.step, '|step|'))
    ):
        limit = _limit(maps)
        heat = _heat(enlarge(maps, stage.scale, size), limit)
        caption = f'{name}, mean {maps.mean():.3g}, white {limit:.3g}'
        _map(page, left + column * (cell + GAP), top + 36, cell, tall, heat, caption)


def _map(page: Page, x: int, y: int, cell: int, tall: int, image: np.ndarray, name: str) -> None:
    """A picture in the middle of its cell, with a caption."""
    small = cv2.resize(image, _size_in(image.shape[:2], cell, tall), interpolation=cv2.INTER_AREA)
    page.photo(small, x + (cell - small.shape[1]) // 2, y)
    page.text(x + cell / 2, y + tall + 18, name, _fitting(page, name, cell), INK, 'mm')


def _limit(maps: np.ndarray) -> float:
    return float(np.quantile(maps, 0.995))


def _size_in(size: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """Columns and rows of an image of ``size`` (rows, columns) scaled into a cell."""
    factor = min(width / size[1], height / size[0])
    return max(1, round(size[1] * factor)), max(1, round(size[0] * factor))


def _title(page: Page, title: str, note: str) -> None:
    page.text(MARGIN, MARGIN - 6, title, TITLE)
    if note:
        page.text(MARGIN, MARGIN + 36, note, SMALL, GREY)


def _photos(page: Page, top: int, tall: int, explanation: VLUExplanation) -> None:
    """Input and output side by side from the left."""
    x = MARGIN
    for image, name in ((explanation.lq, 'input'), (explanation.output, 'output')):
        photo = fit(to_rgb8(image), 2 * tall, tall)
        page.photo(photo, x, top)
        page.text(x + photo.shape[1] / 2, top + tall + 20, name, SMALL, INK, 'mm')
        x += max(photo.shape[1], 80) + GAP


def _cells(page: Page, left: int, top: int, cell: int, row: int, values: np.ndarray) -> None:
    """Probabilities as coloured cells with numbers."""
    for column, value in enumerate(values):
        x = left + column * cell
        colour = tuple(int(c) for c in np.rint(PALE + (DEEP - PALE) * float(value)))
        page.draw.rectangle((x + 1, top + 1, x + cell - 2, top + row - 2), fill=colour)
        ink = (255, 255, 255) if value > 0.55 else INK
        page.text(x + cell / 2, top + row / 2, f'{100 * value:.1f} %', SMALL, ink, 'mm')


def _verdict(attention: ClipAttention | None) -> str:
    """The likeliest texts of CLIP in one line, or nothing."""
    if attention is None:
        return ''
    best = np.argsort(-attention.scores_after)[:3]
    found = (f'"{attention.texts[i]}" {100 * attention.scores_after[i]:.1f} %' for i in best)
    return f'CLIP after tuning: {", ".join(found)}'


def _score_bars(page: Page, top: int, attention: ClipAttention) -> None:
    """Per text two bars: probability before and after tuning."""
    label, length = 470, page.image.width - 2 * MARGIN - 470 - 90
    page.text(MARGIN, top - 26, 'probability of each text', SMALL, GREY, 'lm')
    x = MARGIN + label
    for name, colour in (('before tuning', SECOND), ('after tuning', ACCENT)):
        page.draw.rectangle((x, top - 34, x + 16, top - 18), fill=colour)
        page.text(x + 24, top - 26, name, SMALL, GREY, 'lm')
        x += 200
    for index, text in enumerate(attention.texts):
        y = top + index * 46
        bold = INK if index == attention.asked else GREY
        page.text(MARGIN, y + 20, text, _fitting(page, text, label - 12), bold, 'lm')
        for offset, values, colour in (
            (4, attention.scores_before, SECOND), (22, attention.scores_after, ACCENT)
        ):  # fmt: skip
            end = MARGIN + label + round(float(values[index]) * length)
            page.draw.rectangle((MARGIN + label, y + offset, end, y + offset + 14), fill=colour)
            page.text(end + 8, y + offset + 7, f'{100 * values[index]:.1f} %', TINY, GREY, 'lm')
        page.rule(MARGIN, y + 44, page.image.width - MARGIN, y + 44, RULE)


def _overlay(view: np.ndarray, patches: np.ndarray, side: int) -> np.ndarray:
    """Heat over the greyed photo; the largest patch is brightest."""
    limit = float(patches.max())
    grey = cv2.cvtColor(to_rgb8(view), cv2.COLOR_RGB2GRAY)
    grey = cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA)[..., None]
    smooth = cv2.resize(patches, (side, side), interpolation=cv2.INTER_CUBIC).clip(0)
    share = (smooth / limit if limit > 0 else smooth).clip(0, 1)[..., None]
    heat = _heat(share[..., 0], 1)
    opacity = 0.25 + 0.45 * share
    return np.rint(grey * (1 - opacity) + heat * opacity).astype(np.uint8)


def _largest(patches: np.ndarray) -> str:
    if not patches.any():
        return 'no patch speaks for the text'
    return f'largest patch {100 * patches.max():.1f} %'


def _heat(values: np.ndarray, limit: float) -> np.ndarray:
    """Values from 0 to ``limit``, from black over red to white."""
    levels = values / limit if limit > 0 else values
    levels = np.rint(np.clip(levels, 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def _fitting(page: Page, text: str, width: float) -> int:
    """The largest font up to ``SMALL`` in which ``text`` is no wider."""
    return next((s for s in range(SMALL, 9, -1) if page.text_width(text, s) <= width), 9)


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of small text no wider than ``width`` pixels."""
    ruler, lines = Page(1, 1), ['']
    for word in text.split():
        longer = f'{lines[-1]} {word}'.strip()
        if lines[-1] and ruler.text_width(longer, SMALL) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _paragraph(page: Page, top: int, lines: list[str]) -> None:
    for number, line in enumerate(lines):
        page.text(MARGIN, top + number * LINE, line, SMALL, GREY)
