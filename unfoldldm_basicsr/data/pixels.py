"""Arrays of images, H W or H W C: their samples, channels and geometry, and the way to tensors."""

import io

import numpy as np
import torch
from basicsr.utils.color_util import rgb2ycbcr
from PIL import Image, ImageCms

_MAX_PIXELS = 2**30
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


class ImageError(ValueError):
    """A file that is no readable image; the message names the file and the cause."""


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 or uint16 to float32 in [0, 1]."""
    return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)


def with_three_channels(pixels: np.ndarray) -> np.ndarray:
    """Grey H W as three equal channels H W 3 (a read-only view); colours as they are."""
    return np.broadcast_to(pixels[..., None], (*pixels.shape, 3)) if pixels.ndim == 2 else pixels


def one_channel(image: np.ndarray, kind: str) -> np.ndarray:
    """H W 1 of float32 H W C (RGB or one channel), [0, 1]: the luminance of ITU-R BT.601 over the
    whole range (``grey``), or its luma from 16 to 235 as :func:`rgb2ycbcr` has it (``y``).
    """
    if image.shape[-1] == 1:
        return image
    if kind == 'y':
        return rgb2ycbcr(image, y_only=True)[..., None].astype(np.float32)
    return (image @ _LUMINANCE)[..., None]


def scaled(samples: np.ndarray, maximum: int) -> np.ndarray:
    """Whole numbers in [0, maximum] as uint8 or uint16 over their whole range."""
    kind = np.uint8 if maximum < 2**8 else np.uint16
    full = np.iinfo(kind).max
    if maximum == full:
        return samples.astype(kind)
    return ((samples.astype(np.int64) * full + maximum // 2) // maximum).astype(kind)


def check_size(height: int, width: int) -> None:
    """Raises ImageError for more than 2^30 pixels, which only damaged files name."""
    if height * width > _MAX_PIXELS:
        raise ImageError(f'{width}x{height} pixels, more than the {_MAX_PIXELS} that are read.')


def rgb_of_cmyk(image: Image.Image, icc: bytes | None) -> np.ndarray:
    """sRGB, through the profile of the file where there is a sound one."""
    if icc is not None and icc[16:20] == b'CMYK':
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            target = ImageCms.createProfile('sRGB')
            image = ImageCms.profileToProfile(image, source, target, outputMode='RGB')
        except (ImageCms.PyCMSError, OSError):
            image = image.convert('RGB')
    return np.asarray(image.convert('RGB'))


def flipped(image: np.ndarray, horizontal: bool, vertical: bool, transpose: bool) -> np.ndarray:
    """One of the eight flips and turns by 90 degrees: mirrors, turns over, transposes (a view)."""
    if horizontal:
        image = image[:, ::-1]
    if vertical:
        image = image[::-1]
    return image.swapaxes(0, 1) if transpose else image


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns an image as ``orientation`` (1 to 8, as in EXIF) says (a view)."""
    horizontal, vertical = orientation in (2, 3, 7, 8), orientation in (3, 4, 6, 7)
    return flipped(pixels, horizontal, vertical, transpose=orientation in (5, 6, 7, 8))


def pad_to_size(image: np.ndarray, size: int) -> np.ndarray:
    """Reflect-pads sides of H W C shorter than ``size`` to ``size``, at the bottom and right."""
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
