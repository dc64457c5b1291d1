"""JPEG compression artefacts."""

from __future__ import annotations

import cv2
import numpy as np


def jpeg(image: np.ndarray, rng: np.random.Generator, *, quality: int) -> np.ndarray:
    """Encodes to 8-bit JPEG (4:2:0) and decodes again; deterministic, ``rng`` is not used.

    Args:
        image: float32 H W 3, RGB; clipped to [0, 1] and rounded to 8 bits, as a camera would.
        quality: libjpeg quality, an integer in 1..100.

    Returns:
        float32 H W 3, RGB, [0, 1].
    """
    pixels = np.round(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)
    done, stream = cv2.imencode(
        '.jpg',
        cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR),
        [cv2.IMWRITE_JPEG_QUALITY, int(quality)],
    )
    assert done, 'JPEG encoder failed on a valid 8-bit image'
    decoded = cv2.imdecode(stream, cv2.IMREAD_COLOR)
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB).astype(np.float32) / 255.0
