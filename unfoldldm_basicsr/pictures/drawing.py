"""A page to lay out photos and text on, with PIL only; shared by all pictures of this package."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unfoldldm_basicsr.common.files import atomic_file

INK, GREY, RULE, PAPER = (24, 26, 31), (104, 110, 120), (218, 221, 226), (255, 255, 255)
ACCENT, SECOND = (200, 72, 24), (43, 98, 168)  # legible to colour-blind readers
MARK = (255, 222, 0)  # frame of a region, seen on any photo thanks to a dark outline
TITLE, LABEL, SMALL = 30, 22, 19  # font sizes in pixels

Box = tuple[int, int, int, int]  # top, left, height, width


def font(size: int) -> ImageFont.FreeTypeFont:
    """The typeface that Pillow ships.

    Raises:
        ImportError: a Pillow too old to have it.
    """
    try:
        return ImageFont.load_default(size)
    except TypeError as error:
        raise ImportError(
            'Pictures with text need Pillow 10.1 or newer: pip install -U pillow'
        ) from error


def printable(text: str) -> str:
    """``text`` without characters that the typeface lacks."""
    plain = unicodedata.normalize('NFKD', text.replace('×', 'x'))
    return ''.join(c if ' ' <= c <= '~' else '' if unicodedata.combining(c) else '?' for c in plain)


def to_rgb8(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 from grey or RGB, with or without alpha, uint8, uint16 or float in [0, 1].

    Raises:
        ValueError: another shape or dtype.
    """
    image = np.asarray(image)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] > 4) or 0 in image.shape:
        raise ValueError(f'Not an image: shape {image.shape}; expected (H, W) or (H, W, 1 to 4).')
    if image.ndim == 3:
        image = image[..., :1] if image.shape[2] < 3 else image[..., :3]
    else:
        image = image[..., None]
    if image.dtype == np.uint16:
        image = image / np.float32(65535)
    if np.issubdtype(image.dtype, np.floating):
        image = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ValueError(f'Images must be uint8, uint16 or float, got {image.dtype}.')
    return np.repeat(image, 3 // image.shape[2], axis=2)


def fit(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scales ``image`` into ``width`` x ``height`` pixels, keeping its proportions.

    Pixels enlarged twice or more stay visible as squares, so that nothing is smoothed away.
    """
    rows, columns = image.shape[:2]
    factor = min(width / columns, height / rows)
    size = (max(1, round(columns * factor)), max(1, round(rows * factor)))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC if factor < 2 else cv2.INTER_NEAREST
    return cv2.resize(image, size, interpolation=how)


def detail_box(image: np.ndarray, side: int) -> Box:
    """The square of ``side`` pixels with the most structure, for a magnified crop.

    Args:
        image: the cleanest version of the photo; on a noisy one the noise would decide.
        side: side in pixels, cut to the size of the image.
    """
    grey = cv2.cvtColor(to_rgb8(image), cv2.COLOR_RGB2GRAY).astype(np.float32)
    height, width = grey.shape
    side = min(side, height, width)
    smooth = cv2.GaussianBlur(grey, (0, 0), max(1.0, side / 40))  # shapes count, not film grain
    gradient = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    # many moderate edges before a single strong one
    gradient = np.minimum(gradient, max(np.quantile(gradient, 0.9), gradient.mean()))
    total = cv2.boxFilter(gradient, -1, (side, side), anchor=(0, 0), normalize=False)
    total = total[: height - side + 1, : width - side + 1]
    edge = min(side // 4, (total.shape[0] - 1) // 2, (total.shape[1] - 1) // 2)
    # a region at the rim of the photo explains little
    total = total[edge : total.shape[0] - edge, edge : total.shape[1] - edge]
    top, left = np.unravel_index(int(np.argmax(total)), total.shape)
    return int(top) + edge, int(left) + edge, side, side


def crop(image: np.ndarray, box: Box) -> np.ndarray:
    """The part of ``image`` inside ``box``."""
    top, left, height, width = box
    return image[top : top + height, left : left + width]


class Page:
    """White paper with a cursor-free set of drawing steps; coordinates are x, y in pixels."""

    def __init__(self, width: int, height: int):
        self.image = Image.new('RGB', (width, height), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def photo(self, image: np.ndarray, x: int, y: int, box: Box | None = None, scale: float = 1):
        """Pastes an image that has its final size; ``box`` marks a region of the unscaled photo."""
        self.image.paste(Image.fromarray(image), (x, y))
        height, width = image.shape[:2]
        self.draw.rectangle((x - 1, y - 1, x + width, y + height), outline=RULE)
        if box is not None:
            top, left, box_height, box_width = (value * scale for value in box)
            corner = (x + left, y + top, x + left + box_width - 1, y + top + box_height - 1)
            for grow, colour in ((2, INK), (1, MARK), (0, MARK), (-1, INK)):
                frame = [c + d * grow for c, d in zip(corner, (-1, -1, 1, 1), strict=True)]
                self.draw.rectangle(frame, outline=colour)

    def text(self, x, y, text: str, size: int = LABEL, colour=INK, anchor: str = 'la'):
        """Writes one line; ``anchor`` as in Pillow: first letter l, m or r, second a, m, s or d."""
        self.draw.text((x, y), printable(text), fill=colour, font=font(size), anchor=anchor)

    def text_width(self, text: str, size: int = LABEL) -> int:
        """Width of a line in pixels."""
        return round(self.draw.textlength(printable(text), font=font(size)))

    def symbol(self, x, y, letter: str, index: str = '', mark: str = '', size: int = LABEL) -> int:
        """Writes a letter with an index and a 'hat' or 'tilde' above; returns its width.

        ``y`` is the baseline. Drawn by hand, because the typeface has no combining characters.
        """
        face = font(size)
        self.draw.text((x, y), letter, fill=INK, font=face, anchor='ls')
        width = self.draw.textlength(letter, font=face)
        left, top, right, _ = self.draw.textbbox((x, y), letter, font=face, anchor='ls')
        middle, up, half = (left + right) / 2, top - size * 0.16, (right - left) * 0.36
        stroke = max(2, round(size / 12))
        if mark == 'hat':
            points = [(middle - half, up), (middle, up - size * 0.17), (middle + half, up)]
            self.draw.line(points, fill=INK, width=stroke, joint='curve')
        elif mark == 'tilde':
            t = np.linspace(-1, 1, 17)
            wave = up - size * 0.07 - np.sin(-t * np.pi) * size * 0.07
            self.draw.line(
                list(zip(middle + t * half * 1.15, wave, strict=True)), fill=INK, width=stroke
            )
        if index:
            small = font(round(size * 0.68))
            self.draw.text((x + width, y + size * 0.2), index, fill=INK, font=small, anchor='ls')
            width += self.draw.textlength(index, font=small)
        return round(width)

    def rule(self, x0, y0, x1, y1, colour=RULE, width: int = 1):
        """A straight line."""
        self.draw.line((x0, y0, x1, y1), fill=colour, width=width)

    def array(self) -> np.ndarray:
        """The finished page, (H, W, 3) uint8 RGB."""
        return np.asarray(self.image).copy()


def save_picture(path: str | Path, image: np.ndarray) -> None:
    """Saves a page: ``.png`` exactly, ``.jpg`` small enough for a README; complete or not at all.

    Raises:
        ValueError: another suffix.
        OSError: it cannot be written.
    """
    path = Path(path)
    options = {'.png': {}, '.jpg': {'quality': 92, 'subsampling': 0}}
    if path.suffix.lower() not in options:
        raise ValueError(f'{path}: pictures are saved as .png or .jpg.')
    kind = Image.registered_extensions()[path.suffix.lower()]
    with atomic_file(path) as file:
        Image.fromarray(to_rgb8(image)).save(file, kind, **options[path.suffix.lower()])
