"""Decoding and encoding of image files: one rule for folders, LMDBs and the LMDB writer.

Rules, whatever the container:

* 8- and 16-bit integer images are read at their own depth; :func:`to_float` scales each by its own
  maximum, so 16-bit images lose nothing. Any other depth (float TIFF, EXR) is refused.
* Grey images become three equal channels.
* Alpha is dropped; the colour stored under transparent pixels is used as it is.
* An EXIF orientation is applied.
"""

from __future__ import annotations

import cv2
import numpy as np

_DEPTHS = (np.uint8, np.uint16)


def decode_image(payload: bytes, origin: str, *, keep_grey: bool = False) -> np.ndarray:
    """Decodes the content of an image file.

    Args:
        payload: PNG, JPEG, BMP, TIFF, WebP or PNM bytes; the format is sniffed.
        origin: what to call the image in errors.
        keep_grey: return a grey image as H W instead of three equal channels.

    Returns:
        uint8 or uint16, H W 3 (RGB).

    Raises:
        ValueError: damaged, not an image, or of a depth other than 8 or 16 bits.
    """
    flags = cv2.IMREAD_ANYDEPTH | (cv2.IMREAD_ANYCOLOR if keep_grey else cv2.IMREAD_COLOR)
    if len(payload) == 0:
        raise ValueError(f'{origin}: the file is empty. Replace or remove it.')
    try:
        image = cv2.imdecode(np.frombuffer(payload, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f'{origin}: cannot be decoded: {error}. Replace or remove it.') from error
    if image is None:
        raise ValueError(
            f'{origin}: cannot be decoded: truncated, damaged, or not an image. '
            f'Replace or remove it.'
        )
    if image.dtype not in _DEPTHS:
        raise ValueError(
            f'{origin}: holds {image.dtype} values; only 8- and 16-bit integer images are '
            f'supported. Convert it to a 16-bit PNG.'
        )
    return image if image.ndim == 2 else image[:, :, ::-1]


def encode_image(image: np.ndarray, extension: str) -> bytes:
    """Encodes uint8 or uint16 H W or H W 3 (RGB) losslessly as ``.png`` or ``.bmp`` (8 bits)."""
    if extension == '.bmp' and image.dtype != np.uint8:
        raise ValueError('BMP holds 8 bits per channel only; use PNG for 16-bit images.')
    pixels = image if image.ndim == 2 else image[:, :, ::-1]
    done, stream = cv2.imencode(extension, np.ascontiguousarray(pixels))
    assert done, f'{extension} encoder failed on a {image.dtype} image of shape {image.shape}'
    return stream.tobytes()


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 or uint16 to float32 in [0, 1]."""
    return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
