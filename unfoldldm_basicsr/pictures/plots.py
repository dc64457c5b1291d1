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
        style: number of the side, the same in all plots of a report.
    """

    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()
    hollow: Sequence[bool] = ()
    style: int = 0


def curves(series: Mapping[str, Series], x_label: str, y_label: str, note: str = '') -> Figure:
    """Lines over a common axis, with their names at their ends.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure, axes = new_figure(x_label, y_label, note)
    for line in series.values():
        look = _look(line)
        axes.plot(line.x, line.y, **(look | {'marker': ''}), linewidth=1.6)
        hollow = line.hollow if len(line.hollow) else [False] * len(line.x)
        for x, y, empty in zip(line.x, line.y, hollow, strict=True):
            face = {'markerfacecolor': 'white'} if empty else {}
            axes.plot(x, y, **look, **face, markersize=6)
    low, high = axes.get_ylim()
    last = None
    ends = [(list(s.y)[-1], list(s.x)[-1], name, s) for name, s in series.items() if len(s.x)]
    for y, x, name, line in sorted(ends, key=lambda end: end[:3]):
        last = y if last is None else max(y, last + 0.05 * (high - low))  # names never overlap
        colour = _look(line)['color']
        axes.annotate(name, (x, last), xytext=(7, 0), textcoords='offset points', fontsize=9,
                      color=colour, va='center')  # fmt: skip
    axes.margins(x=0.12)
    return figure


def points(series: Mapping[str, Series], x_label: str, y_label: str, note: str = '') -> Figure:
    """Single points with error bars on a logarithmic axis, a name beside each.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure, axes = new_figure(x_label, y_label, note)
    for name, side in series.items():
        look = _look(side) | {'linestyle': ''}
        axes.errorbar(
            side.x, side.y, yerr=side.spread or None, **look, markersize=8, capsize=4, label=name
        )
        if len(series) <= _CROWD:
            axes.annotate(name, (side.x[0], side.y[0]), textcoords='offset points', xytext=(9, 5),
                          fontsize=9)  # fmt: skip
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    axes.set_xscale('log')
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter('{x:g}'))
    axes.xaxis.set_minor_locator(LogLocator(subs=()))
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
    for name, side in series.items():
        look = _look(side) | {'linestyle': '', 'markerfacecolor': 'none'}
        axes.plot(side.x, side.y, **look, markersize=5, label=name)
    axes.legend(fontsize=8, loc='center left', bbox_to_anchor=(1, 0.5))
    return figure


def _look(side: Series) -> dict[str, str]:
    return {
        'color': _COLOURS[side.style % len(_COLOURS)],
        'marker': _MARKERS[side.style % len(_MARKERS)],
        'linestyle': _LINES[side.style % len(_LINES)],
    }


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
