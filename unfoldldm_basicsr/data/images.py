"""The codec of image files: one rule for datasets, LMDBs, ``restore`` and every other command.

A file is read right or refused, whatever its ending says:

* 8 and 16 bits keep their depth; samples of another depth or maximum are scaled to the next of the
  two. Floating-point, signed and 32-bit samples are refused, and so are animations.
* Grey stays grey and transparency is kept, be it a channel or one colour that counts as
  transparent. Palettes become RGB; CMYK becomes RGB through its profile where it has one.
* Orientations (EXIF, TIFF) are applied to the pixels, and the metadata say so.

PNG and JPEG go through libpng and libjpeg-turbo (imagecodecs), TIFF through tifffile, the rest
through Pillow, which reads colours of JPEG 2000 and AVIF at 8 bits. Plain BMP is its own pixels.
"""

import io
import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image, UnidentifiedImageError

from unfoldldm_basicsr.common.files import write_bytes_atomic
from unfoldldm_basicsr.data import metadata
from unfoldldm_basicsr.data.metadata import Metadata
from unfoldldm_basicsr.data.pixels import ImageError, check_size, rgb_of_cmyk, scaled, upright
from unfoldldm_basicsr.data.tiff import STARTS, decode_tiff, encode_tiff

EXTENSIONS = (
    '.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.bmp', '.dib', '.tif', '.tiff', '.webp', '.ppm',
    '.pgm', '.pbm', '.pnm', '.jp2', '.j2k', '.avif', '.gif', '.tga',
)  # fmt: skip
"""Endings of files that are read."""
LOSSLESS = ('.png', '.tif', '.tiff')
"""Endings of files that are written: they hold 16 bits and transparency."""

_PILLOW = ('BMP', 'DIB', 'WEBP', 'PPM', 'JPEG2000', 'AVIF', 'GIF', 'TGA')
_NETPBM = re.compile(rb'P([2356])' + rb'(?:\s|#[^\n]*\n)+(\d+)' * 3 + rb'\s')
_NO_IMAGE = {
    b'version https://git-lfs': 'a pointer of Git LFS; "git lfs pull" fetches the image itself',
    b'<!doctype': 'an HTML page: the download went wrong',
    b'<html': 'an HTML page: the download went wrong',
    b'\0\5\x16\7': 'a resource fork of macOS, which holds no image',
    b'ftyphei': 'HEIC, to be converted to JPEG, PNG or TIFF',
}
# What the decoders raise on damaged files (found by overwriting bytes).
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError,
           RuntimeError, AttributeError, MemoryError, struct.error, zlib.error)  # fmt: skip


@dataclass
class Picture:
    """An upright image and what its file says about it.

    Attributes:
        pixels: uint8 or uint16; H W grey, H W 2 grey with alpha, H W 3 RGB, H W 4 RGB with alpha.
        icc_profile: of the colours of ``pixels``; one that does not fit them is dropped.
        exif: a TIFF structure whose orientation is normal.
        xmp: an XML packet whose orientation is normal.
    """

    pixels: np.ndarray
    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None

    def __post_init__(self) -> None:
        if self.icc_profile and self.icc_profile[16:20] != (b'GRAY' if self.is_grey else b'RGB '):
            self.icc_profile = None

    @property
    def is_grey(self) -> bool:
        return self.pixels.ndim == 2 or self.pixels.shape[2] == 2

    @property
    def alpha(self) -> np.ndarray | None:
        """H W, None for an opaque image."""
        has_one = self.pixels.ndim == 3 and self.pixels.shape[2] in (2, 4)
        return self.pixels[..., -1] if has_one else None

    @property
    def opaque(self) -> np.ndarray:
        """H W or H W 3: without alpha, the colour under transparent pixels as it is stored."""
        if self.alpha is None:
            return self.pixels
        return self.pixels[..., 0] if self.is_grey else self.pixels[..., :3]


def read_picture(path: str | Path) -> Picture:
    """An image file. Raises ImageError: missing, damaged, animated, of odd samples, or no image."""
    try:
        with open(path, 'rb', buffering=0) as file:  # a third faster than read_bytes()
            payload = file.read()
    except OSError as error:
        raise ImageError(f'{path}: cannot be read: {error.strerror or error}.') from error
    return decode(payload, str(path))


def decode(payload: bytes, origin: str) -> Picture:
    """The content of an image file, called ``origin`` in errors; see :func:`read_picture`."""
    if not payload:
        raise ImageError(f'{origin}: the file is empty. Replace or remove it.')
    try:
        pixels, about = _decode(payload)
    except ImageError as error:
        raise ImageError(f'{origin}: {error}') from error
    except UnidentifiedImageError as error:
        start = payload[:64].lstrip().lower()
        kinds = (text for mark, text in _NO_IMAGE.items() if mark in start)
        kind = next(kinds, 'no image, or a damaged one')
        raise ImageError(f'{origin}: cannot be decoded: {kind}. Replace or remove it.') from error
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        cause = str(error).strip() or type(error).__name__
        raise ImageError(
            f'{origin}: cannot be decoded: truncated or damaged ({cause}). Replace or remove it.'
        ) from error
    about = about.turned()
    return Picture(upright(pixels, about.orientation), about.icc_profile, about.exif, about.xmp)


def size_in_header(path: str | Path) -> tuple[int, int] | None:
    """(height, width) of the upright image by its header; None where it must be decoded."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # large images count as well
    try:
        with Image.open(path) as image:
            exif = image.info.get('exif', b'').removeprefix(b'Exif\0\0')
            check_size(*image.size)  # a size that nothing reads is no news of the image
            turned = 5 <= Metadata(exif=exif).turned().orientation <= 8  # Pillow itself turns TIFF
            return image.size if turned else image.size[::-1]
    except _DAMAGE:
        return None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _decode(payload: bytes) -> tuple[np.ndarray, Metadata]:
    """Pixels as they are stored."""
    if payload.startswith(metadata.PNG):
        check_size(*struct.unpack_from('>II', payload, 16))
        return imagecodecs.png_decode(payload), metadata.of_png(payload)
    if payload.startswith(b'\xff\xd8'):
        about, (bits, height, width, channels) = metadata.of_jpeg(payload)
        out = None
        if (bits, channels) == (8, 3):
            # libjpeg-turbo writes rows that start at multiples of 32 bytes around the cache, which
            # costs small images a third of their time: these never do.
            out = np.empty(3 * height * width + 1, np.uint8)[1:].reshape(height, width, 3)
        pixels = imagecodecs.jpeg8_decode(payload, out=out)
        if pixels.shape[2:] != (4,):
            return (pixels if bits == 8 else scaled(pixels, 2**bits - 1)), about
        with Image.open(io.BytesIO(payload), formats=('JPEG',)) as image:
            return rgb_of_cmyk(image, about.icc_profile), about
    if payload.startswith(STARTS):
        return decode_tiff(payload)
    if payload.startswith(b'BM') and payload[14] >= 40 and payload[28:34] == b'\x18\0\0\0\0\0':
        return _plain_bmp(payload), Metadata()
    if header := _NETPBM.match(payload):
        return _decode_netpbm(payload, header), Metadata()
    return _decode_pillow(payload)


def _plain_bmp(payload: bytes) -> np.ndarray:
    """24 bits without compression: the pixels where they lie in the file, nothing is copied."""
    start, width, height = struct.unpack_from('<I4xii', payload, 10)
    if width <= 0 or height == 0:
        raise ValueError(f'{width}x{height} pixels')
    check_size(abs(height), width)
    stride = (3 * width + 3) // 4 * 4
    rows = np.frombuffer(payload, np.uint8, abs(height) * stride, start).reshape(-1, stride)
    pixels = rows[:, : 3 * width].reshape(-1, width, 3)[..., ::-1]  # stored as BGR
    return pixels[::-1] if height > 0 else pixels  # usually from the bottom up


def _decode_netpbm(payload: bytes, header: re.Match) -> np.ndarray:
    kind, width, height, maximum = map(int, header.groups())
    check_size(height, width)
    shape = (height, width, 3) if kind in (3, 6) else (height, width)
    count = int(np.prod(shape))
    if not 0 < maximum < 2**16:
        raise ValueError(f'a maximum of {maximum}')
    if kind < 5:  # text
        samples = np.array(payload[header.end() :].split(None, count)[:count], np.int64)
    else:
        samples = np.frombuffer(payload, '>u2' if maximum > 255 else 'u1', count, header.end())
    samples = samples.reshape(shape)
    if samples.size and not 0 <= samples.min() <= samples.max() <= maximum:
        raise ValueError(f'samples beyond the maximum of {maximum}')
    return scaled(samples, maximum)


def _decode_pillow(payload: bytes) -> tuple[np.ndarray, Metadata]:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Pillow warns about odd metadata; pixels decide here
        Image.init()  # registers the formats that this Pillow knows
        image = Image.open(io.BytesIO(payload), formats=[f for f in _PILLOW if f in Image.OPEN])
        if getattr(image, 'n_frames', 1) > 1:
            raise ImageError(f'holds {image.n_frames} frames; only still images are read.')
        image.load()
    place = payload.find(b'\xff\x4f\xff\x51') + 42  # bits of the first channel
    if image.format == 'JPEG2000' and payload[place] not in range(7, 16):
        raise ImageError('samples of fewer than 8 bits, or signed; convert it to a 16-bit PNG.')
    icc, exif, xmp = (image.info.get(key) for key in ('icc_profile', 'exif', 'xmp'))
    about = Metadata(icc, exif and exif.removeprefix(b'Exif\0\0'), xmp)
    if image.mode.startswith('I;16'):
        return np.asarray(image).astype(np.uint16), about
    if image.mode in ('I', 'F', 'LAB', 'HSV'):
        raise ImageError(f'samples of the kind {image.mode}; convert it to a 16-bit PNG.')
    if image.mode == 'CMYK':
        return rgb_of_cmyk(image, icc), about
    grey = image.mode in ('1', 'L', 'LA', 'La')
    transparent = image.mode in ('LA', 'La', 'PA', 'RGBA', 'RGBa') or 'transparency' in image.info
    mode = ('L' if grey else 'RGB') + ('A' if transparent else '')
    return np.asarray(image.convert(mode)), about


def write_picture(path: str | Path, picture: Picture) -> None:
    """Writes losslessly in the format of the ending; PNG keeps all metadata, TIFF profile and XMP.

    Raises:
        ValueError: an ending or array that cannot be stored losslessly.
        OSError: the file cannot be written (disk full, no permission).
    """
    path, pixels = Path(path), picture.pixels
    suffix = path.suffix.lower()
    if suffix not in LOSSLESS:
        raise ValueError(f'{path}: results are stored as {", ".join(LOSSLESS)}, not {suffix!r}.')
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f'{path}: {pixels.dtype} images are not stored, only uint8 and uint16.')
    if suffix == '.png':
        data = encode_png(picture)
    else:
        data = encode_tiff(pixels, picture.icc_profile, picture.xmp)
    write_bytes_atomic(path, data)


def encode_png(picture: Picture) -> bytes:
    """A PNG file; run lengths instead of zlib's search take a third of the time on photos."""
    strategy = imagecodecs.PNG.STRATEGY.RLE
    pixels = np.ascontiguousarray(picture.pixels)
    room = 2 * pixels.nbytes + 2**12 if pixels.shape[1] < 8 else None  # for a byte of each row
    data = imagecodecs.png_encode(pixels, level=1, strategy=strategy, out=room)
    return metadata.into_png(bytes(data), picture.icc_profile, picture.exif, picture.xmp)


def encode_bmp(pixels: np.ndarray) -> bytes:
    """A BMP file of uint8 H W or H W 3 (RGB): large, and decoded in no time."""
    if pixels.dtype != np.uint8:
        raise ValueError('BMP holds 8 bits per channel only; use PNG for 16-bit images.')
    return imagecodecs.bmp_encode(np.ascontiguousarray(pixels))
