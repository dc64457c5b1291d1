"""What happened inside an unfolding network: the stages of UnfoldLDM from input to output;
prompts per stage, gradient steps and CLIP's attention of VLU-Net.
"""

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unfoldldm_basicsr.pictures import drawing
from unfoldldm_basicsr.restoring.explanation import ClipAttention, StageSteps, VLUExplanation
from unfoldldm_basicsr.restoring.restorer import Trace

TRACE_CELL, CELL = 240, 300  # pixels, of UnfoldLDM and of VLU-Net
GAINS = (1, 2, 4, 8, 16, 32, 64)


def trace_picture(trace: Trace, *, note: str = '') -> Figure:
    """Draws input and output, and a line for every stage, magnified where the output has most
    detail: both estimates, their difference, the prior, what it changes in the output (against a
    run with the null prior), and that output.
    """
    rows, columns = trace.lq.shape[:2]
    box = drawing.detail_box(trace.output, max(8, min(round(min(rows, columns) * 0.35), 96)))
    title = 'From input to output, stage by stage'
    footer = (
        f'The stages show the marked {box[3]} x {box[2]} pixels. Numbers are mean absolute '
        'differences over the whole image in levels of 255; "moves by" is against the output of '
        'the stage before.'
    )
    hero = max(120, min(3 * TRACE_CELL * rows / columns, 620))
    heights, texts = [hero, *[TRACE_CELL] * len(trace.stages)], {'title': title, 'note': note}
    fig, cells = drawing.new_page(heights, 6.4 * TRACE_CELL, 6, **texts, footer=footer)
    last = f'output, stage {len(trace.stages)}'
    drawing.show(fig.add_subplot(cells[0, :3]), trace.lq, 'input y', box=box)
    drawing.show(fig.add_subplot(cells[0, 3:]), trace.output, last, box=box)
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
        _apart(line[2], 'apart', (stage.x_hat, stage.x_tilde), box, estimates)
        _bars(line[3], stage.prior, end)
        _apart(line[4], 'shifts output', (stage.x, stage.x_null), box, effect)
        line[0].set_ylabel(f'stage {number}', fontsize=drawing.TITLE, color=drawing.INK)
        before = stage.x
    for axes, head in zip(fig.axes[2:8], heads, strict=True):
        axes.set_title(head, fontsize=drawing.LABEL, color=drawing.INK)
    return fig


def levels(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference of two images in [0, 1], in levels of 255."""
    return float(np.abs(first - second).mean() * 255)


def difference(first: np.ndarray, second: np.ndarray, box: drawing.Box) -> np.ndarray:
    """Mean over the colours of |first - second| in the region."""
    return np.abs(drawing.crop(first, box) - drawing.crop(second, box)).mean(2)


def _apart(axes: Axes, words: str, pair: tuple, box: drawing.Box, gain: int) -> None:
    if pair[1] is None:
        axes.set_axis_off()
        axes.text(0.5, 0.5, 'no prior', ha='center', fontsize=drawing.SMALL, color=drawing.GREY)
        return
    caption = f'{words} by {levels(*pair):.2f}'
    drawing.show(axes, difference(*pair, box), caption, limit=1 / gain)


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


# ---- VLU-Net ----------------------------------------------------------------------------------


def prompt_picture(explanation: VLUExplanation, *, note: str = '') -> Figure:
    """Draws the prompts' weights of every stage as a table of coloured cells.

    Above the table stands what CLIP makes of the image, where CLIP gives the degradation vector.
    """
    footer = (
        'Each row sums to 100 %: a = softmax of a linear layer of the degradation vector, one layer'
        ' per stage. The prompts are learned without labels, so a column is the prompt at the index'
        ' of its degradation, not a classifier for it.'
    )
    names, stages = explanation.prompts, explanation.stages
    title = 'Which prompts steer each stage'
    heights, width = [CELL, 50 * len(stages)], max(3 * CELL, 240 + 110 * len(names))
    fig, cells = drawing.new_page(heights, width, 2, title=title, note=note, footer=footer)
    drawing.show(fig.add_subplot(cells[0, 0]), explanation.lq, 'input')
    drawing.show(fig.add_subplot(cells[0, 1]), explanation.output, 'output')
    weights = np.stack([stage.weights for stage in stages])
    texts = [[f'{100 * value:.1f} %' for value in row] for row in weights]
    axes, rows = fig.add_subplot(cells[1, :]), [stage_title(*each) for each in enumerate(stages)]
    drawing.table(axes, weights, texts, rows, names)
    if explanation.attention is not None:
        words, scores = explanation.attention.texts, explanation.attention.scores_after
        best = (f'"{words[i]}" {100 * scores[i]:.1f} %' for i in np.argsort(-scores)[:3])
        verdict = drawing.printable(f'CLIP after tuning:\n{", ".join(best)}')
        axes.set_title(verdict, fontsize=drawing.SMALL, color=drawing.INK)
    return fig


def step_picture(explanation: VLUExplanation, *, note: str = '') -> Figure:
    """Draws |Phi(x) - y| and |step| of every stage over the whole image, means over the channels.

    Every map has its own colour scale, from zero to its 99.5 % quantile, which stands under it: the
    steps are often ten times smaller than the residuals, and features have no common unit.
    """
    footer = (
        'Means of magnitudes over the channels; the gradient step subtracts'
        ' step = r Phi^T(Phi(x) - y) from x. Features have no unit, so every map has its own colour'
        ' scale from 0 (black) to the number under it (white), and colours compare places within'
        ' a map. Maps are enlarged to the image from the resolution given.'
    )
    size, stages = explanation.lq.shape[:2], explanation.stages
    half = (len(stages) + 1) // 2
    tall = max(80, min(CELL * size[0] / size[1], CELL))
    title = 'What the gradient steps remove'
    heights = [tall + 22] * (half + 1)  # 22 for the titles of the stages
    fig, cells = drawing.new_page(heights, 4.2 * CELL, 4, title=title, note=note, footer=footer)
    drawing.show(fig.add_subplot(cells[0, 0]), explanation.lq, 'input')
    drawing.show(fig.add_subplot(cells[0, 1]), explanation.output, 'output')
    change = np.abs(explanation.output - explanation.lq).mean(2)
    _show_map(fig.add_subplot(cells[0, 2]), change, change, '|output - input|')
    for number, stage in enumerate(stages):
        row, left = 1 + number % half, 2 * (number // half)
        about = f'{stage.residual.shape[1]} x {stage.residual.shape[0]}, {stage.channels} channels'
        for column, maps, name, head in (
            (left, stage.residual, '|Phi(x) - y|', stage_title(number, stage)),
            (left + 1, stage.step, '|step|', about),
        ):
            axes, large = fig.add_subplot(cells[row, column]), enlarge(maps, stage.scale, size)
            _show_map(axes, large, maps, name, head)
    return fig


def attention_picture(attention: ClipAttention, *, note: str = '') -> Figure:
    """Draws CLIP's attention over its view of the image, and its scores before and after tuning."""
    rows, columns = attention.attention.shape
    footer = (
        f'Relevance for the text "{attention.texts[attention.asked]}": attention times the gradient'
        f' of its score against the mean of all texts, positive part, sum over heads;'
        f' {rows} x {columns} patches that sum to 100 %. Every map is brightest at its own largest'
        f' patch.'
    )
    title = 'Where CLIP looks, before and after tuning'
    heights = [CELL, 60 + 44 * len(attention.texts)]
    fig, cells = drawing.new_page(heights, 4.2 * CELL, 4, title=title, note=note, footer=footer)
    seen, grey = attention.view, cv2.cvtColor(drawing.to_rgb8(attention.view), cv2.COLOR_RGB2GRAY)
    caption, head = 'centre square of the image', 'what CLIP sees'
    drawing.show(fig.add_subplot(cells[0, 0]), seen, caption, title=head)
    for column, patches, head in (
        (1, attention.attention, 'attention of the class token'),
        (2, attention.before, 'relevance before tuning'),
        (3, attention.after, 'relevance after tuning'),
    ):
        axes = fig.add_subplot(cells[0, column])
        caption, share = 'no patch speaks for the text', patches
        if patches.any():
            caption = f'largest patch {100 * patches.max():.1f} %'
            share = patches / patches.max()
        drawing.show(axes, grey, caption, title=head)
        smooth = cv2.resize(share, seen.shape[1::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)
        axes.imshow(smooth, cmap='inferno', vmin=0, vmax=1, alpha=0.25 + 0.45 * smooth)
    axes, places = fig.add_subplot(cells[1, :]), np.arange(len(attention.texts))
    for shift, scores, label, colour in (
        (-0.2, attention.scores_before, 'before tuning', drawing.SECOND),
        (0.2, attention.scores_after, 'after tuning', drawing.ACCENT),
    ):
        bars = axes.barh(places + shift, scores, 0.36, label=label, color=colour)
        axes.bar_label(
            bars, [f'{100 * s:.1f} %' for s in scores], fontsize=drawing.SMALL, color=drawing.GREY
        )
    axes.set_yticks(places, map(drawing.printable, attention.texts), fontsize=drawing.SMALL)
    axes.set(xlim=(0, 1.1), xticks=[])
    axes.invert_yaxis()
    axes.spines[:].set_color(drawing.RULE)
    axes.set_title('probability of each text', fontsize=drawing.LABEL, color=drawing.INK)
    axes.legend(loc='lower right', fontsize=drawing.SMALL)
    return fig


def stage_title(number: int, stage: StageSteps) -> str:
    """``encoder_level2`` as the second stage -> '2  encoder level 2'."""
    name = stage.name.replace('_level', ' level ').replace('_', ' ')
    return f'{number + 1}  {name}'


def enlarge(maps: np.ndarray, scale: int, size: tuple[int, int]) -> np.ndarray:
    """(h, w) values -> the image's (H, W), interpolated linearly; a map may reach over its edge."""
    height, width = (side * scale for side in maps.shape)
    large = cv2.resize(maps, (width, height), interpolation=cv2.INTER_LINEAR)
    return large[: size[0], : size[1]]


def _show_map(axes: Axes, large: np.ndarray, maps: np.ndarray, name: str, head: str = '') -> None:
    """Fills a cell with ``maps``, enlarged to ``large``, on a scale of their own."""
    limit = float(np.quantile(maps, 0.995))
    caption = f'{name}, mean {maps.mean():.3g}, white {limit:.3g}'
    drawing.show(axes, large, caption, title=head, limit=limit)
