"""Plots of results with matplotlib: marker and line style tell the sides apart, not only colour.

Tables have a column ``side``; ``style`` says how each one looks, see :func:`looks`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from pandas import DataFrame

from unfoldldm_basicsr.pictures.drawing import save_picture

# Okabe and Ito's colours, distinct for colour-blind readers, in an order of falling darkness
_COLOURS = ('#000000', '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
_MARKERS, _LINES = 'osD^vPX*<>', ('-', '--', '-.', ':')


def looks(sides: Iterable[str]) -> dict[str, dict[str, str]]:
    """Colour, marker and line of each side, for all plots of a report."""
    styles = zip(sides, cycle(_COLOURS), cycle(_MARKERS), cycle(_LINES), strict=False)
    return {side: {'color': c, 'marker': m, 'linestyle': line} for side, c, m, line in styles}


@contextmanager
def figure(path: Path, x: str, y: str, note: str = '') -> Iterator[Axes]:
    """An empty plot, which gets a legend and is written as a PNG, the same bytes every time."""
    page = Figure(figsize=(6.6, 4.2), dpi=130, layout='constrained')
    axes = page.add_subplot()
    axes.set(xlabel=x, ylabel=y)
    axes.grid(color='#dddddd', linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_title(note, fontsize=9, loc='left', color='#555555')
    yield axes
    axes.legend(fontsize=8, loc='center left', bbox_to_anchor=(1, 0.5))
    save_picture(path, page)


def curves(axes: Axes, table: DataFrame, x: str, style: Mapping[str, dict]) -> None:
    """A line per side of ``value`` over ``x``; ``hollow`` points (oracle) have empty markers."""
    for name, own in table.groupby('side', sort=False):
        axes.plot(own[x], own['value'], **style[name], label=name)
        empty = own[own.get('hollow', own[x].isna())]
        look = style[name] | {'linestyle': '', 'markerfacecolor': 'white'}
        axes.plot(empty[x], empty['value'], **look)


def points(axes: Axes, table: DataFrame, x: str, style: Mapping[str, dict]) -> None:
    """A point for each side on a logarithmic axis, with bars of column ``spread``."""
    for _, own in table.iterrows():
        look = style[own['side']] | {'linestyle': '', 'markersize': 8}
        bars = own['spread'] if own['spread'] >= 0 else None  # NaN of one seed
        axes.errorbar(own[x], own['value'], bars, **look, capsize=4, label=own['side'])
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter('{x:g}'))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.3, y=0.25)


def scatter(axes: Axes, table: DataFrame, base: str, style: Mapping[str, dict]) -> None:
    """A marker for each image (row) and side (column): its distance from ``base``."""
    axes.axhline(0, color='#000000', linewidth=1)
    for name in table.columns.drop(base):
        look = style[name] | {'linestyle': '', 'markerfacecolor': 'none', 'markersize': 5}
        axes.plot(table[base], table[name] - table[base], **look, label=name)
