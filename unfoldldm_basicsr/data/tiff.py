"""TIFF files through tifffile, which knows their planes, bits and colour spaces."""

import io

import numpy as np
from PIL import Image

from unfoldldm_basicsr.data.metadata import Metadata
from unfoldldm_basicsr.data.pixels import ImageError, check_size, rgb_of_cmyk, scaled

STARTS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
_COLOURS = {'MINISWHITE': 1, 'MINISBLACK': 1, 'PALETTE': 1, 'RGB': 3, 'SEPARATED': 4}
_JPEG = (6, 7)  # compressions whose YCbCr is decoded to RGB
_ASSOCIATED, _UNASSOCIATED = 1, 2  # alpha: colours multiplied with it, or not
_XMP, _ORIENTATION = 700, 274  # tags


def decode_tiff(payload: bytes) -> tuple[np.ndarray, Metadata]:
    """Pixels and metadata of the only image in a file (thumbnails do not count).

    Raises ImageError: several images, samples that are no whole numbers of at most 16 bits, or a
    colour space without a rule.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(payload)) as file:
        pages = [page for page in file.pages if not page.is_reduced]
        if len(pages) != 1:
            raise ImageError(f'holds {len(pages)} images; only files with one are read.')
        page = pages[0]
        height, width, bits = page.imagelength, page.imagewidth, page.bitspersample
        check_size(height, width)
        if page.sampleformat != 1 or not 1 <= bits <= 16:
            kind = 'floating-point' if page.sampleformat == 3 else f'{bits}-bit or signed'
            raise ImageError(f'{kind} samples; convert it to a 16-bit PNG.')
        name = page.photometric.name
        name = 'RGB' if name == 'YCBCR' and page.compression in _JPEG else name
        if name not in _COLOURS or (name == 'SEPARATED' and bits != 8):
            raise ImageError(f'{bits}-bit {name} colours are not read; convert it to RGB.')
        spans = zip(page.dataoffsets, page.databytecounts, strict=True)
        if any(offset + count > len(payload) for offset, count in spans):
            raise EOFError('its end is missing')
        samples = page.asarray()
        place = page.axes.find('S')
        samples = samples[..., None] if place < 0 else np.moveaxis(samples, place, -1)
        if samples.shape[:2] != (height, width) or samples.ndim != 3:
            raise ImageError('a volume; only flat images are read.')
        xmp, icc = page.tags.valueof(_XMP), page.iccprofile
        metadata = Metadata(
            icc,
            None,
            bytes(xmp) if isinstance(xmp, bytes | tuple) else None,
            page.tags.valueof(_ORIENTATION, default=1),
        )
        count = _COLOURS[name]
        pixels, extra = samples[..., :count], samples[..., count:]
        if name == 'PALETTE':
            pixels = (page.colormap >> 8).astype(np.uint8).T[pixels[..., 0]]
        elif name == 'SEPARATED':
            image = Image.fromarray(np.ascontiguousarray(pixels), 'CMYK')
            pixels = rgb_of_cmyk(image, icc)
        else:
            pixels = scaled(pixels, 2**bits - 1)
        if name == 'MINISWHITE':
            pixels = np.iinfo(pixels.dtype).max - pixels
        for place, kind in enumerate(page.extrasamples):
            if kind in (_ASSOCIATED, _UNASSOCIATED):
                alpha = scaled(extra[..., place], 2**bits - 1)
                pixels = _with_alpha(pixels, alpha, premultiplied=kind == _ASSOCIATED)
                break
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels, metadata


def _with_alpha(pixels: np.ndarray, alpha: np.ndarray, *, premultiplied: bool) -> np.ndarray:
    if premultiplied:
        full = np.iinfo(pixels.dtype).max
        opacity = np.maximum(alpha, 1)[..., None].astype(np.int64)
        straight = (pixels.astype(np.int64) * full + opacity // 2) // opacity
        pixels = np.minimum(straight, full).astype(pixels.dtype)
    return np.dstack([pixels, alpha])


def encode_tiff(pixels: np.ndarray, icc_profile: bytes | None, xmp: bytes | None) -> bytes:
    """A losslessly compressed file of uint8 or uint16 pixels: H W, or H W 2, 3 or 4."""
    import tifffile

    stream = io.BytesIO()
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    tifffile.imwrite(
        stream,
        pixels,
        photometric='minisblack' if channels < 3 else 'rgb',
        planarconfig='contig' if channels > 1 else None,
        extrasamples=['unassalpha'] if channels in (2, 4) else None,
        compression='lzw',
        predictor=True,
        iccprofile=icc_profile,
        extratags=[(_XMP, 1, len(xmp), xmp, True)] if xmp else (),
        metadata=None,
    )
    return stream.getvalue()
