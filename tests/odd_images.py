"""Image files as people have them, and what a correct reader gives for each."""

import io

import cv2
import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from unfoldldm_basicsr.data.pixels import to_float

_y, _x = np.mgrid[:24, :36]
# a different gradient in each channel
DEEP = np.dstack([_x * 1700, _y * 2600, 20000 + 500 * (_x + _y)]).astype(np.uint16)
PLAIN = (DEEP >> 8).astype(np.uint8)
GREY = DEEP[..., 0]
ALPHA = np.dstack([PLAIN, PLAIN[::-1, ::-1, 0]])
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
TURNED = Image.Exif()
TURNED[0x0112] = 6


def pillow(pixels: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, kind, **options)
    return stream.getvalue()


def tiff(pixels: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


def netpbm(kind: str, samples: np.ndarray, maximum: int) -> bytes:
    order = '>u2' if maximum > 255 else 'u1'
    head = f'{kind}\n# a comment\n{samples.shape[1]} {samples.shape[0]}\n{maximum}\n'
    return head.encode() + samples.astype(order).tobytes()


def _long_text() -> bytes:
    info = PngInfo()
    info.add_text('workflow', 'x' * (2 << 20))
    return pillow(PLAIN, 'PNG', pnginfo=info)


def _key_colour() -> tuple[bytes, np.ndarray]:
    """One colour counts as transparent."""
    pixels = PLAIN.copy()
    pixels[:6, :6] = (0, 0, 78)
    alpha = np.where((pixels == (0, 0, 78)).all(2), 0, 255)
    return pillow(pixels, 'PNG', transparency=(0, 0, 78)), np.dstack([pixels, alpha]) / 255


def _premultiplied() -> tuple[bytes, np.ndarray]:
    alpha = np.full(PLAIN.shape[:2], 128, np.uint8)
    dimmed = np.round(PLAIN * (128 / 255)).astype(np.uint8)
    content = tiff(np.dstack([dimmed, alpha]), photometric='rgb', extrasamples=['assocalpha'])
    return content, np.dstack([PLAIN, alpha]) / 255


def _as_pillow_reads(pixels: np.ndarray | Image.Image, kind: str) -> tuple[bytes, np.ndarray]:
    content = pillow(pixels, kind, quality=98)
    return content, np.asarray(Image.open(io.BytesIO(content)).convert('RGB')) / 255


def _deep_jpeg(samples: np.ndarray) -> tuple[bytes, np.ndarray]:
    """12 bits per sample."""
    content = imagecodecs.jpeg8_encode(samples >> 4, level=100, bitspersample=12, subsampling='444')
    return content, (samples >> 4) / 4095


_inks = Image.fromarray(PLAIN).convert('CMYK')
_palette = Image.fromarray(PLAIN).quantize(16)
_colours = np.asarray(_palette.convert('RGB')) / 255

# name -> content, values in [0, 1] (H W grey, H W 3, H W 4), tolerance
READ: dict[str, tuple[bytes, np.ndarray, float]] = {
    'planes.tif': (tiff(DEEP.transpose(2, 0, 1), photometric='rgb', planarconfig='separate'),
                   DEEP / 65535, 1e-5),
    'deep.tif': (tiff(DEEP, photometric='rgb', compression='lzw', predictor=True), DEEP / 65535,
                 1e-5),
    'white_is_zero.tif': (tiff(GREY, photometric='miniswhite'), 1 - GREY / 65535, 1e-5),
    'white_is_zero_8.tiff': (tiff(PLAIN[..., 0], photometric='miniswhite'),
                             1 - PLAIN[..., 0] / 255, 0.001),
    'premultiplied.tif': (*_premultiplied(), 2 / 255),
    'palette.tif': (pillow(_palette, 'TIFF'), _colours, 0.001),
    'cmyk.tif': (*_as_pillow_reads(_inks, 'TIFF'), 0.001),
    'cmyk.jpg': (*_as_pillow_reads(_inks, 'JPEG'), 3 / 255),
    'max_4095.pgm': (netpbm('P5', GREY >> 4, 4095), (GREY >> 4) / 4095, 1e-5),
    'max_1023.ppm': (netpbm('P6', DEEP >> 6, 1023), (DEEP >> 6) / 1023, 1e-5),
    'max_100.pnm': (netpbm('P5', GREY // 656, 100), (GREY // 656) / 100, 0.5 / 255),
    'text.ppm': (b'P3 2 1 15  0 15 3\n 1 2 4\n', np.array([[[0, 15, 3], [1, 2, 4]]]) / 15, 1e-5),
    'bits.pbm': (pillow(Image.fromarray(PLAIN).convert('1'), 'PPM'),
                 np.asarray(Image.fromarray(PLAIN).convert('1')), 0),
    'key_colour.png': (*_key_colour(), 0.001),
    'palette.png': (pillow(_palette, 'PNG'), _colours, 0.001),
    'long_text.png': (_long_text(), PLAIN / 255, 0.001),
    'turned.png': (pillow(PLAIN, 'PNG', exif=TURNED), np.rot90(PLAIN, -1) / 255, 0.001),
    'profile.png': (pillow(PLAIN, 'PNG', icc_profile=SRGB), PLAIN / 255, 0.001),
    'large_profile.png': (pillow(PLAIN, 'PNG', icc_profile=np.random.default_rng(0).bytes(3 << 20)),
                          PLAIN / 255, 0.001),
    'deep.png': (cv2.imencode('.png', DEEP[..., ::-1])[1].tobytes(), DEEP / 65535, 1e-5),
    'alpha.png': (pillow(ALPHA, 'PNG'), ALPHA / 255, 0.001),
    'grey_alpha.png': (pillow(ALPHA[..., 2:], 'PNG'), ALPHA[..., 2:] / 255, 0.001),
    'deep_grey.png': (pillow(GREY, 'PNG'), GREY / 65535, 1e-5),
    'deep.jpg': (*_deep_jpeg(DEEP), 0.005),
    'deep_grey.jpg': (*_deep_jpeg(GREY), 0.005),
    'phone.jfif': (*_as_pillow_reads(PLAIN, 'JPEG'), 3 / 255),
    'n\u00e4me \u56fe %.jpe': (*_as_pillow_reads(PLAIN, 'JPEG'), 3 / 255),
    'lossless.webp': (pillow(PLAIN, 'WEBP', lossless=True), PLAIN / 255, 0.001),
    'wavelets.jp2': (pillow(PLAIN, 'JPEG2000'), PLAIN / 255, 0.001),
    'plain.bmp': (pillow(PLAIN, 'BMP'), PLAIN / 255, 0.001),
    'still.gif': (pillow(_palette, 'GIF'), _colours, 0.001),
}  # fmt: skip

# name -> content, word of the refusal
REFUSED: dict[str, tuple[bytes, str]] = {
    'pointer.png': (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n', 'LFS'),
    'page.jpg': (b'\n<!DOCTYPE html><html>login</html>', 'HTML page'),
    'heic.png': (b'\0\0\0\x18ftypheic' + b'\0' * 60, 'HEIC'),
    'fork.png': (b'\0\5\x16\7' + b'\0' * 60, 'resource fork'),
    'empty.png': (b'', 'empty'),
    'text.bmp': (b'not an image', 'no image'),
    'two.tif': (pillow(PLAIN, 'TIFF', save_all=True, append_images=[Image.fromarray(PLAIN)]),
                'holds 2 images'),
    'moving.gif': (pillow(PLAIN, 'GIF', save_all=True,
                          append_images=[Image.fromarray(255 - PLAIN)]), 'holds 2 frames'),
    'moving.png': (pillow(PLAIN, 'PNG', save_all=True,
                          append_images=[Image.fromarray(255 - PLAIN)]), 'animation'),
    'float.tif': (tiff(np.zeros((8, 8, 3), np.float32), photometric='rgb'), 'floating-point'),
    'wide.tif': (tiff(np.zeros((8, 8), np.uint32), photometric='minisblack'), '32-bit'),
    'lab.tif': (tiff(PLAIN, photometric='cielab'), 'CIELAB'),
    'shallow.jp2': (imagecodecs.jpeg2k_encode(PLAIN >> 4, bitspersample=4), 'fewer than 8 bits'),
    'vast.ppm': (b'P6 60000 60000 255\n', 'pixels, more than'),
    'beyond.pgm': (netpbm('P5', np.full((4, 4), 200), 100), 'beyond the maximum'),
}  # fmt: skip


def assert_values(name: str, found: np.ndarray) -> None:
    _, values, tolerance = READ[name]
    assert found.shape == values.shape, name
    assert np.abs(to_float(found) - values).max() <= tolerance + 1e-7, name
