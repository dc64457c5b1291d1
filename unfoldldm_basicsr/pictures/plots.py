"""Plots of results with matplotlib: marker and line style tell the sides apart, not only colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from unfoldldm_basicsr.common.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, distinct for colour-blind readers, in an order of falling darkness
_COLOURS = ('#000000', '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
_MARKERS, _LINES = 'osD^vPX*<>', ('-', '--', '-.', ':')
_CROWD = 6  # labels beside points up to here, a legend above


class Series(NamedTuple):
    """Points of one side.

    Attributes:
        x: positions.
        y: values.
        spread: half the length of an error bar for each point; empty for none.
        hollow: points that are no plain results (oracle), drawn with empty markers.
    """

    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()
    hollow: Sequence[bool] = ()


def curves(series: Mapping[str, Series], x_label: str, y_label: str, note: str = '') -> Figure:
    """Lines over a common axis, labelled at their ends.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure, axes = new_figure(x_label, y_label, note)
    ends = []
    for index, (label, line) in enumerate(series.items()):
        style = {'color': _COLOURS[index % len(_COLOURS)], 'linestyle': _LINES[index % len(_LINES)]}
        axes.plot(line.x, line.y, linewidth=1.6, **style)
        hollow = line.hollow or [False] * len(line.x)
        for x, y, empty in zip(line.x, line.y, hollow, strict=True):
            face = 'white' if empty else style['color']
            axes.plot(x, y, _MARKERS[index % len(_MARKERS)], color=style['color'],
                      markerfacecolor=face, markersize=6)  # fmt: skip
        if line.x:
            ends.append((line.x[-1], line.y[-1], label, style['color']))
    _label_ends(axes, ends)
    return figure


def points(series: Mapping[str, Series], x_label: str, y_label: str, note: str = '') -> Figure:
    """Single points with error bars on a logarithmic axis, a name beside each.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure, axes = new_figure(x_label, y_label, note)
    for index, (label, side) in enumerate(series.items()):
        axes.errorbar(
            side.x, side.y, yerr=side.spread or None, fmt=_MARKERS[index % len(_MARKERS)],
            color=_COLOURS[index % len(_COLOURS)], markersize=8, capsize=4, label=label,
        )  # fmt: skip
        if len(series) <= _CROWD:
            place = {'textcoords': 'offset points', 'xytext': (9, 5), 'fontsize': 9}
            axes.annotate(label, (side.x[0], side.y[0]), **place)
    axes.set_xscale('log')
    axes.margins(x=0.3, y=0.25)
    if len(series) > _CROWD:
        axes.legend(fontsize=7, loc='center left', bbox_to_anchor=(1, 0.5))
    return figure


def scatter(series: Mapping[str, Series], x_label: str, y_label: str, note: str = '') -> Figure:
    """One marker for each image and side, with a line at zero.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure, axes = new_figure(x_label, y_label, note)
    axes.axhline(0, color='#000000', linewidth=1)
    for index, (label, side) in enumerate(series.items()):
        axes.plot(
            side.x, side.y, _MARKERS[index % len(_MARKERS)], markersize=5, markerfacecolor='none',
            color=_COLOURS[(index + 1) % len(_COLOURS)], label=label,
        )  # fmt: skip
    axes.legend(fontsize=8, loc='center left', bbox_to_anchor=(1, 0.5))
    return figure


def new_figure(x_label: str, y_label: str, note: str = '') -> tuple[Figure, Axes]:
    """An empty figure with one panel.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install matplotlib') from error
    figure = Figure(figsize=(6.6, 4.2), layout='constrained')
    axes = figure.add_subplot()
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(color='#dddddd', linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    if note:
        axes.set_title(note, fontsize=9, loc='left', color='#555555')
    return figure, axes


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a PNG, whole or not at all, the same bytes every time."""
    with atomic_file(path) as file:
        figure.savefig(file, format='png', dpi=130, metadata={'Software': None})


def _label_ends(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Names at the ends of lines, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    gap, last = 0.055 * (high - low), None
    for x, y, label, colour in sorted(ends, key=lambda end: end[1]):
        height = y if last is None else max(y, last + gap)
        last = height
        axes.annotate(
            label, (x, y), xytext=(1.02, (height - low) / (high - low)),
            textcoords='axes fraction', fontsize=9, color=colour, va='center',
            arrowprops={'arrowstyle': '-', 'color': colour, 'linewidth': 0.5},
        )  # fmt: skip
    axes.set_ylim(low, high)
