"""Samples of images: scaling, channels, turning. Arrays are uint8 or uint16, H W or H W C."""

import io

import numpy as np
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


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns an image as ``orientation`` (1 to 8, as in EXIF) says (a view)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
