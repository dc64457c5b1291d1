"""Cropping, padding and flipping of H W C arrays of any dtype, and the way to tensors."""

from typing import NamedTuple

import numpy as np
import torch


class Window(NamedTuple):
    """A rectangle of an image, with the margins around it that are cut along with it."""

    top: int
    left: int
    height: int
    width: int
    margin_top: int = 0
    margin_left: int = 0
    margin_bottom: int = 0
    margin_right: int = 0

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The rectangle with its margins (a view)."""
        return image[
            self.top - self.margin_top : self.top + self.height + self.margin_bottom,
            self.left - self.margin_left : self.left + self.width + self.margin_right,
        ]

    def trim(self, patch: np.ndarray) -> np.ndarray:
        """Removes the margins from a result of :meth:`cut` (a view)."""
        return patch[
            self.margin_top : self.margin_top + self.height,
            self.margin_left : self.margin_left + self.width,
        ]


class Flips(NamedTuple):
    """One of the eight flips and rotations by 90 degrees: mirror, turn over, then transpose."""

    horizontal: bool
    vertical: bool
    transpose: bool

    def apply(self, image: np.ndarray) -> np.ndarray:
        """A view of ``image``."""
        if self.horizontal:
            image = image[:, ::-1]
        if self.vertical:
            image = image[::-1]
        return image.swapaxes(0, 1) if self.transpose else image

    def apply_to_margins(self, window: Window) -> Window:
        """The window that trims a flipped patch."""
        _, _, height, width, top, left, bottom, right = window
        if self.horizontal:
            left, right = right, left
        if self.vertical:
            top, bottom = bottom, top
        if self.transpose:
            height, width, top, left, bottom, right = width, height, left, top, right, bottom
        return Window(window.top, window.left, height, width, top, left, bottom, right)


def random_window(
    height: int, width: int, size: int, rng: np.random.Generator, margin: int = 0
) -> Window:
    """A random ``size`` x ``size`` window of an image at least that large, with ``margin`` pixels
    on each side as far as the image reaches.
    """
    top = int(rng.integers(height - size, endpoint=True))
    left = int(rng.integers(width - size, endpoint=True))
    return Window(
        top,
        left,
        size,
        size,
        min(margin, top),
        min(margin, left),
        min(margin, height - size - top),
        min(margin, width - size - left),
    )


def random_flips(rng: np.random.Generator, *, hflip: bool, rot: bool) -> Flips:
    """BasicSR's augmentation: ``use_hflip`` mirrors, ``use_rot`` turns over and transposes."""
    horizontal, vertical, transpose = (bool(v) for v in rng.random(3) < 0.5)
    return Flips(hflip and horizontal, rot and vertical, rot and transpose)


def pad_to_size(image: np.ndarray, size: int) -> np.ndarray:
    """Reflect-pads the sides shorter than ``size`` to ``size``, at the bottom and right."""
    missing = [max(0, size - side) for side in image.shape[:2]]
    if not any(missing):
        return image
    return np.pad(image, [(0, missing[0]), (0, missing[1]), (0, 0)], mode='reflect')


def center_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The central part of at most ``height`` x ``width`` (a view)."""
    top = max(0, image.shape[0] - height) // 2
    left = max(0, image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """float32 H W C to a contiguous C H W tensor."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32))
