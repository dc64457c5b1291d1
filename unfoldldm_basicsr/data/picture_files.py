"""Reads and writes image files without losing bit depth, grey, alpha or the colour profile.

Arrays are (H, W) grey, (H, W, 2) grey with alpha, (H, W, 3) RGB or (H, W, 4) RGB with alpha, of
dtype uint8 (0 to 255) or uint16 (0 to 65535).
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from unfoldldm_basicsr.common.files import write_bytes_atomic

READABLE = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
LOSSLESS = ('.png', '.tif', '.tiff')  # and able to hold 16 bit and alpha
_ORIENTATION = 0x0112  # EXIF tag
# what PIL's decoders raise on damaged files (found by overwriting bytes)
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError,
           struct.error, zlib.error)  # fmt: skip


class ImageReadError(ValueError):
    """A file that is no readable image; the message names the file and the cause."""


@dataclass(frozen=True)
class Picture:
    """Pixels of an image file, upright, and the colour profile that gives them meaning."""

    pixels: np.ndarray
    icc_profile: bytes | None = None


def read_image(path: str | Path) -> Picture:
    """Reads a still image: 8 or 16 bit, grey or colour, with or without alpha.

    The orientation that a camera notes in EXIF is applied to the pixels. Palettes, CMYK and 1-bit
    images are converted to RGB or grey.

    Raises:
        ImageReadError: missing, truncated, animated, floating-point or no image at all.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageReadError(f'{path}: cannot be read ({error.strerror}).') from error
    if not data:
        raise ImageReadError(f'{path}: the file is empty.')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # PIL warns about odd metadata; pixels decide here
            image = Image.open(io.BytesIO(data))
            frames = 1 if image.format == 'MPO' else getattr(image, 'n_frames', 1)
            image.load()
            orientation = image.getexif().get(_ORIENTATION, 1)
    except UnidentifiedImageError as error:
        raise ImageReadError(f'{path}: no image, or a damaged one.') from error
    except Image.DecompressionBombError as error:
        raise ImageReadError(f'{path}: refused, {error}') from error
    except _DAMAGE as error:
        raise ImageReadError(f'{path}: the image is damaged ({error}).') from error
    if frames > 1:
        raise ImageReadError(f'{path}: holds {frames} frames; only still images can be restored.')

    pixels = _sixteen_bit(path, data, image)
    if pixels is None:
        pixels = np.asarray(_eight_bit(image))
    icc = image.info.get('icc_profile')
    return Picture(np.ascontiguousarray(_upright(pixels, orientation)), icc or None)


def write_image(path: str | Path, picture: Picture) -> None:
    """Writes losslessly in the format of the suffix; the file appears complete or not at all.

    Grey with alpha in 16 bit is stored as RGB with alpha (no encoder at hand writes it otherwise).
    The colour profile is kept in 8-bit files and in every PNG.

    Raises:
        ValueError: suffix or array that cannot be stored losslessly.
        OSError: the file cannot be written (disk full, no permission).
    """
    path = Path(path)
    suffix, pixels = path.suffix.lower(), picture.pixels
    if suffix not in LOSSLESS:
        raise ValueError(f'{path}: results are stored as {", ".join(LOSSLESS)}, not {suffix!r}.')
    if pixels.dtype == np.uint8:
        options = {'icc_profile': picture.icc_profile} if picture.icc_profile else {}
        if suffix in ('.tif', '.tiff'):
            options['compression'] = 'tiff_lzw'
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, Image.registered_extensions()[suffix], **options)
        data = buffer.getvalue()
    elif pixels.dtype == np.uint16:
        if pixels.ndim == 3:
            if pixels.shape[2] == 2:
                pixels = pixels[..., [0, 0, 0, 1]]
            order = cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
            pixels = cv2.cvtColor(pixels, order)
        done, encoded = cv2.imencode(suffix, pixels)
        if not done:
            raise OSError(f'{path}: OpenCV cannot encode this image as {suffix}.')
        data = encoded.tobytes()
        if suffix == '.png' and picture.icc_profile:
            data = _png_with_profile(data, picture.icc_profile)
    else:
        raise ValueError(f'{path}: {pixels.dtype} images are not stored, only uint8 and uint16.')
    write_bytes_atomic(path, data)


def _sixteen_bit(path: Path, data: bytes, image: Image.Image) -> np.ndarray | None:
    """Pixels of a 16-bit file (PIL would cut colour to 8 bit), or None for an 8-bit one."""
    if image.mode == 'F':
        raise ImageReadError(f'{path}: floating-point images are not supported; use 16-bit PNG.')
    if image.format == 'PNG':
        deep = data[24] == 16  # bit depth in the IHDR chunk
        grey_alpha = data[25] == 4  # colour type
    elif image.format in ('TIFF', 'PPM'):
        deep, grey_alpha = True, False  # only decoding tells
    else:
        return None
    if not deep:
        return None
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageReadError(f'{path}: the image is damaged ({error.err}).') from error
    if pixels is None:
        if image.mode.startswith('I'):
            raise ImageReadError(f'{path}: this kind of 16-bit image cannot be decoded.')
        return None
    if pixels.dtype == np.uint8:
        return None
    if pixels.dtype != np.uint16:
        raise ImageReadError(f'{path}: {pixels.dtype} pixels are not supported; use 8 or 16 bit.')
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        rgba = cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA)
        return rgba[..., [0, 3]] if grey_alpha else rgba
    return pixels


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode in ('L', 'LA', 'RGB', 'RGBA'):
        return image
    if image.mode == '1':
        return image.convert('L')
    if image.mode in ('La', 'RGBa', 'PA') or 'transparency' in image.info:
        return image.convert('RGBA')
    return image.convert('RGB')


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _png_with_profile(data: bytes, profile: bytes) -> bytes:
    """Inserts an iCCP chunk after IHDR, which always ends at byte 33 of a PNG file."""
    body = b'iCCP' + b'profile\0\0' + zlib.compress(profile)
    chunk = (len(body) - 4).to_bytes(4, 'big') + body + zlib.crc32(body).to_bytes(4, 'big')
    return data[:33] + chunk + data[33:]
