"""Pages of photos, maps and bars, laid out and rendered by matplotlib without a window."""

import io
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.patches import Rectangle
from PIL import Image

from unfoldldm_basicsr.common.files import write_bytes_atomic

INK, GREY, RULE, PAPER = '#181a1f', '#686e78', '#dadde2', '#ffffff'
ACCENT, SECOND = '#c84818', '#2b62a8'  # legible to colour-blind readers
MARK = '#ffde00'  # frame of a region, seen on any photo thanks to a dark outline
TITLE, LABEL, SMALL = 16, 12, 10  # font sizes in points
DPI, CAPTION = 100, 34  # CAPTION: pixels for a line of text below a cell

Box = tuple[int, int, int, int]  # top, left, height, width


def new_page(
    heights: Sequence[float],
    width: float,
    columns: int,
    *,
    title: str = '',
    note: str = '',
    footer: str = '',
) -> tuple[Figure, GridSpec]:
    """An empty page, and its cells with rows of these heights (pixels, without captions).

    ``title`` is a headline, ``note`` small under one, ``footer`` small below everything.
    """
    foot = textwrap.fill(printable(footer), round(width / 7.5))
    head = 44 * bool(title) + 24 * bool(note)
    height = sum(heights) + len(heights) * CAPTION + head + 22 * (foot.count('\n') + 1)
    fig = Figure((width / DPI, height / DPI), dpi=DPI, layout='constrained', facecolor=PAPER)
    left = 10 / width
    if title:  # the layout makes room for one text only
        fig.suptitle('\n' * bool(note) + ' ', fontsize=TITLE)
        fig.text(left, 1 - 6 / height, printable(title), fontsize=TITLE, color=INK, va='top')
        fig.text(left, 1 - 38 / height, printable(note), fontsize=SMALL, color=GREY, va='top')
    if foot:
        fig.supxlabel(foot, x=left, ha='left', fontsize=SMALL, color=GREY)
    return fig, fig.add_gridspec(len(heights), columns, height_ratios=heights)


def show(
    axes: Axes,
    image: np.ndarray,
    caption: str = '',
    *,
    title: str = '',
    box: Box | None = None,
    limit: float | None = None,
) -> None:
    """Fills a cell with a photo (see :func:`to_rgb8`), and marks the region ``box`` in it; with
    ``limit`` with a map of (H, W) values, which go from 0, black, over red to white.
    """
    if limit is None:
        axes.imshow(to_rgb8(image))
    else:
        axes.imshow(image, cmap='inferno', vmin=0, vmax=limit or 1)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(RULE)
    axes.set_xlabel(printable(caption), fontsize=SMALL, color=INK)
    axes.set_title(printable(title), fontsize=LABEL, color=INK)
    if box is not None:
        top, left, height, width = box
        for line, edge in ((5, INK), (2.5, MARK)):
            place = (left - 0.5, top - 0.5), width, height
            axes.add_patch(Rectangle(*place, fill=False, linewidth=line, edgecolor=edge))


def comparison_grid(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    captions: Sequence[Sequence[str]],
    *,
    cell_width: int = 300,
    footer: str = '',
) -> Figure:
    """A row for each photo, a column (``titles``) for each method; ``captions`` below every image.

    Images of a row have the same size; tall ones are limited to the height of a square.
    """
    sizes = [row[0].shape for row in rows]
    heights = [max(24, cell_width * min(1, high / wide)) for high, wide, *_ in sizes]
    fig, cells = new_page(heights, len(titles) * cell_width, len(titles), footer=footer)
    for number, line in enumerate(zip(rows, captions, strict=True)):
        for column, (image, caption) in enumerate(zip(*line, strict=True)):
            axes = fig.add_subplot(cells[number, column])
            show(axes, image, caption, title='' if number else titles[column])
    return fig


def table(
    axes: Axes,
    shares: np.ndarray,
    texts: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
) -> None:
    """Fills a cell with a table: a coloured field per share in [0, 1] with its text."""
    axes.imshow(shares, cmap='Blues', vmin=0, vmax=1, aspect='auto')
    axes.set_xticks(range(len(columns)), map(printable, columns), fontsize=SMALL, color=INK)
    axes.set_yticks(range(len(rows)), map(printable, rows), fontsize=SMALL, color=INK)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_color(RULE)
    for place, text in np.ndenumerate(np.array(texts)):
        ink = PAPER if shares[place] > 0.55 else INK
        axes.text(*place[::-1], text, ha='center', va='center', fontsize=SMALL, color=ink)


def printable(text: str) -> str:
    """``text`` without formulas, and without the bytes of a name that is not UTF-8."""
    return text.encode('utf-8', 'replace').decode().replace('$', r'\$')


def to_rgb8(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 from grey or RGB, with or without alpha, uint8, uint16 or float in [0, 1]."""
    image = np.atleast_3d(image)
    image = image[..., :1] if image.shape[2] < 3 else image[..., :3]
    if image.dtype == np.uint16:
        image = image / np.float32(65535)
    if np.issubdtype(image.dtype, np.floating):
        image = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return np.repeat(image, 3 // image.shape[2], axis=2)


def detail_box(image: np.ndarray, side: int) -> Box:
    """The square of ``side`` pixels with the most structure, for a magnified crop of the cleanest
    version of a photo; on a noisy one the noise would decide.
    """
    grey = cv2.cvtColor(to_rgb8(image), cv2.COLOR_RGB2GRAY).astype(np.float32)
    height, width = grey.shape
    side = min(side, height, width)
    smooth = cv2.GaussianBlur(grey, (0, 0), max(1.0, side / 40))  # shapes count, not film grain
    gradient = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    # many moderate edges before a single strong one
    gradient = np.minimum(gradient, max(np.quantile(gradient, 0.9), gradient.mean()))
    # a region at the rim of the photo explains little
    edge = min(side // 4, (height - side) // 2, (width - side) // 2)
    top, left, *_ = fullest_box(gradient[edge : height - edge, edge : width - edge], side)
    return top + edge, left + edge, side, side


def fullest_box(values: np.ndarray, side: int) -> Box:
    """The square of ``side`` pixels, cut to the size of the map, with the largest sum in (H, W)."""
    side = min(side, *values.shape)
    total = cv2.boxFilter(values, -1, (side, side), anchor=(0, 0), normalize=False)
    total = total[: values.shape[0] - side + 1, : values.shape[1] - side + 1]
    top, left = np.unravel_index(int(np.argmax(total)), total.shape)
    return int(top), int(left), side, side


def crop(image: np.ndarray, box: Box) -> np.ndarray:
    """The part of ``image`` inside ``box``."""
    top, left, height, width = box
    return image[top : top + height, left : left + width]


def save_picture(path: str | Path, picture: np.ndarray | Figure) -> None:
    """Saves a photo or page, whole: ``.png`` exactly, ``.jpg`` small. ValueError: other suffix."""
    path = Path(path)
    jpeg = {'format': 'JPEG', 'quality': 92, 'subsampling': 0}
    options = {'.png': {'format': 'PNG'}, '.jpg': jpeg}.get(path.suffix.lower())
    if options is None:
        raise ValueError(f'{path}: pictures are saved as .png or .jpg.')
    if not isinstance(picture, np.ndarray):
        canvas = FigureCanvasAgg(picture)
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'Glyph .* missing')  # of a file's name
            canvas.draw()
        picture = np.asarray(canvas.buffer_rgba())
    content = io.BytesIO()
    Image.fromarray(to_rgb8(picture)).save(content, **options)
    write_bytes_atomic(path, content.getbuffer())
