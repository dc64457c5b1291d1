"""JPEG compression artefacts."""

from __future__ import annotations

import cv2
import numpy as np


def jpeg(image: np.ndarray, rng: np.random.Generator, *, quality: int) -> np.ndarray:
    """Encodes to 8-bit JPEG (4:2:0) and decodes again; deterministic, ``rng`` is not used.

    Args:
        image: float32 H W C, RGB or grey; clipped to [0, 1] and rounded to 8 bits, as in a camera.
        quality: libjpeg quality, an integer in 1..100.

    Returns:
        float32 H W C, [0, 1].
    """
    pixels = np.round(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)
    done, stream = cv2.imencode(
        '.jpg',
        np.ascontiguousarray(pixels[..., ::-1]),  # RGB <-> BGR
        [cv2.IMWRITE_JPEG_QUALITY, int(quality)],
    )
    assert done, 'JPEG encoder failed on a valid 8-bit image'
    decoded = cv2.imdecode(stream, cv2.IMREAD_ANYCOLOR).reshape(image.shape)
    return decoded[..., ::-1].astype(np.float32) / 255.0
