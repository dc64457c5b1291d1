"""What happened inside an unfolding network, as one picture: input, every stage, output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from unfoldldm_basicsr.pictures import drawing
from unfoldldm_basicsr.restoring.traces import StageImages, Trace, levels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL = 240
GAINS = (1, 2, 4, 8, 16, 32, 64)


def trace_picture(trace: Trace, *, note: str = '') -> Figure:
    """Draws a trace.

    The upper half shows input and output. Below, every stage is one line: its two estimates and
    their difference, the prior as bars, how much the prior changes the stage's output against a run
    with the null prior, and that output, all magnified where the output has most detail.
    """
    rows, columns = trace.lq.shape[:2]
    box = drawing.detail_box(trace.output, max(8, min(round(min(rows, columns) * 0.35), 96)))
    title = 'From input to output, stage by stage'
    footer = (
        f'The stages show the marked {box[3]} x {box[2]} pixels. Numbers are mean absolute '
        'differences over the whole image in levels of 255; "moves by" is against the output of '
        'the stage before.'
    )
    hero = max(120, min(3 * CELL * rows / columns, 620))
    heights = [hero, *[CELL] * len(trace.stages)]
    fig, cells = drawing.new_page(heights, 6.4 * CELL, 6, title=title, note=note, footer=footer)
    for place, image, name in (
        (slice(0, 3), trace.lq, 'input y'),
        (slice(3, 6), trace.output, f'output, stage {len(trace.stages)}'),
    ):
        drawing.show(fig.add_subplot(cells[0, place]), image, name, box=box)

    estimates = _gain([(s.x_hat, s.x_tilde) for s in trace.stages], box)
    effect = _gain([(s.x, s.x_null) for s in trace.stages if s.x_null is not None], box)
    end = max(float(np.abs(s.prior).max(initial=0.1)) for s in trace.stages)
    heads = [r'$\hat{x}_k$ holistic step', r'$\tilde{x}_k$ decomposed step',
             f'their difference x {estimates}', 'prior', f'effect of the prior x {effect}',
             '$x_k$ stage output']  # fmt: skip
    before = trace.lq
    for number, stage in enumerate(trace.stages, start=1):
        line = [fig.add_subplot(cells[number, column]) for column in range(6)]
        for axes, image in ((line[0], stage.x_hat), (line[1], stage.x_tilde), (line[5], stage.x)):
            drawing.show(axes, drawing.crop(image, box), f'moves by {levels(image, before):.2f}')
        apart = f'apart by {levels(stage.x_hat, stage.x_tilde):.2f}'
        drawing.show(
            line[2], difference(stage.x_hat, stage.x_tilde, box), apart, limit=1 / estimates
        )
        _bars(line[3], stage.prior, end)
        _effect(line[4], stage, box, 1 / effect)
        line[0].set_ylabel(f'stage {number}', fontsize=drawing.TITLE, color=drawing.INK)
        for axes, head in zip(line, heads if number == 1 else [], strict=False):
            axes.set_title(head, fontsize=drawing.LABEL, color=drawing.INK)
        before = stage.x
    return fig


def difference(first: np.ndarray, second: np.ndarray, box: drawing.Box) -> np.ndarray:
    """Mean over the colours of |first - second| in the region."""
    return np.abs(drawing.crop(first, box) - drawing.crop(second, box)).mean(2)


def _effect(axes: Axes, stage: StageImages, box: drawing.Box, limit: float) -> None:
    if stage.x_null is None:
        axes.set_axis_off()
        axes.text(0.5, 0.5, 'no prior', ha='center', fontsize=drawing.SMALL, color=drawing.GREY)
        return
    shift = f'shifts output by {levels(stage.x, stage.x_null):.2f}'
    drawing.show(axes, difference(stage.x, stage.x_null, box), shift, limit=limit)


def _bars(axes: Axes, prior: np.ndarray, end: float) -> None:
    """The prior's values as bars around zero; ``end`` is at the ends of the frame."""
    axes.bar(range(len(prior)), prior, color=np.where(prior > 0, drawing.ACCENT, drawing.SECOND))
    axes.set(ylim=(-end, end), xticks=[], yticks=[], box_aspect=1)
    axes.axhline(0, color=drawing.RULE, linewidth=1)
    axes.spines[:].set_color(drawing.RULE)
    text = f'{prior.size} values, axis to {end:.1f}' if prior.size else 'none'
    axes.set_xlabel(text, fontsize=drawing.SMALL, color=drawing.INK)


def _gain(pairs: list[tuple[np.ndarray, np.ndarray]], box: drawing.Box) -> int:
    """The largest of :data:`GAINS` that leaves nearly all differences of all stages below one."""
    high = max((np.quantile(difference(*pair, box), 0.98) for pair in pairs), default=1.0)
    return max((gain for gain in GAINS if gain * high <= 1), default=GAINS[0])
