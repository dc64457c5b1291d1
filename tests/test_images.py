"""Image files: read right or refused, and what is written is read back unchanged."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import image_of
from odd_images import PLAIN, READ, SRGB, TURNED, pillow, tiff
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from unfoldldm_basicsr.common.files import write_bytes_atomic
from unfoldldm_basicsr.data.images import (
    Picture,
    decode,
    read_picture,
    size_in_header,
    write_picture,
)
from unfoldldm_basicsr.data.pixels import ImageError

SHAPES = {'grey': (9, 7), 'grey-alpha': (9, 7, 2), 'rgb': (9, 7, 3), 'rgb-alpha': (9, 7, 4)}


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """As a viewer has to turn what is stored, by Pillow."""
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_what_is_written_is_read_back(tmp_path, shape, suffix, dtype):
    image = image_of(shape, dtype)
    write_picture(tmp_path / f'x{suffix}', Picture(image))
    found = read_picture(tmp_path / f'x{suffix}')
    assert found.pixels.dtype == dtype
    assert np.array_equal(found.pixels, image)
    assert (found.alpha is not None) == (shape[2:] in ((2,), (4,)))
    if dtype == np.uint8:  # another reader agrees
        assert np.array_equal(np.asarray(Image.open(tmp_path / f'x{suffix}')), image)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'TIFF', 'WEBP'])
def test_camera_orientation_is_applied(orientation, kind):
    image = Image.fromarray(np.kron(image_of((2, 3, 3)), np.ones((8, 8, 1), np.uint8)))
    exif = image.getexif()
    exif[0x0112] = orientation
    content = pillow(image, kind, exif=exif, quality=100, subsampling=0, lossless=True)
    difference = decode(content, 'x').pixels.astype(int)
    assert size_in_header(io.BytesIO(content)) == difference.shape[:2]
    difference -= turned(np.asarray(image), orientation)
    assert np.abs(difference).max() <= (8 if kind == 'JPEG' else 0)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_camera_orientation_is_applied_once_to_grey_tiff(dtype):
    for orientation in range(1, 9):
        stored = image_of((4, 6), dtype)
        found = decode(pillow(stored, 'TIFF', tiffinfo={0x0112: orientation}), 'x').pixels
        assert found.dtype == dtype
        assert np.array_equal(found, turned(stored, orientation))


@pytest.mark.parametrize('mode', ['L', 'LA', 'P', '1', 'RGBA'])
def test_grey_palettes_and_bits_transparent_in_one_value_keep_it(mode):
    image = Image.fromarray(image_of((9, 7, 3))).convert(mode)
    options = {} if mode in ('LA', 'RGBA') else {'transparency': int(np.asarray(image)[0, 0])}
    content = pillow(image, 'PNG', **options)
    picture = decode(content, 'x')
    assert picture.alpha is not None
    rgba = np.asarray(Image.open(io.BytesIO(content)).convert('RGBA'))
    assert np.array_equal(picture.pixels, rgba[..., [0, 3]] if picture.is_grey else rgba)


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6" dc:title="t"/></x:xmpmeta>'


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
def test_metadata_are_handed_on_with_the_orientation_normal(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, 'Maker'
    info = PngInfo()
    info.add_itxt('XML:com.adobe.xmp', XMP.decode(), zip=True)
    picture = decode(pillow(PLAIN, kind, exif=exif, icc_profile=SRGB, xmp=XMP, pnginfo=info), 'x')
    write_picture(tmp_path / 'x.png', picture)
    again = Image.open(tmp_path / 'x.png')
    again.load()
    assert np.array_equal(np.asarray(again), picture.pixels)
    assert again.getexif()[0x0112] == 1
    assert again.getexif()[0x010F] == 'Maker'
    assert again.info['icc_profile'] == SRGB
    assert b'dc:title="t"' in again.info['xmp']
    assert b'tiff:Orientation="1"' in again.info['xmp']
    write_picture(tmp_path / 'x.tif', picture)
    back = read_picture(tmp_path / 'x.tif')
    assert back.icc_profile == SRGB
    assert back.xmp == again.info['xmp']


def test_only_a_profile_that_fits_the_pixels_is_kept(tmp_path):
    assert Picture(image_of((9, 7, 4), np.uint16), SRGB).icc_profile == SRGB
    assert Picture(image_of((9, 7)), SRGB).icc_profile is None
    grey = SRGB[:16] + b'GRAY' + SRGB[20:]
    assert Picture(image_of((9, 7, 2)), grey).icc_profile == grey
    cmyk = SRGB[:16] + b'CMYK' + SRGB[20:]  # no sound profile: converted without it
    ink = Image.fromarray(PLAIN).convert('CMYK')
    for kind in ('JPEG', 'TIFF'):
        picture = decode(pillow(ink, kind, icc_profile=cmyk, quality=98), 'x')
        assert picture.icc_profile is None
        assert np.abs(picture.pixels.astype(int) - PLAIN).max() <= 6


@pytest.mark.parametrize('kind', ['.png', '.jpg', '.bmp', '.tif', '.webp', '.ppm', 'deep', 'early'])
@pytest.mark.parametrize('keep', [0.1, 0.9])
def test_truncated_files_are_named_and_never_read_half(tmp_path, kind, keep):
    noise = image_of((64, 64, 3))
    if kind == 'deep':
        data = cv2.imencode('.png', noise.astype(np.uint16) * 257)[1].tobytes()
    elif kind == 'early':  # a TIFF whose directory comes before the pixels
        data = tiff(noise, photometric='rgb', compression='lzw', rowsperstrip=4)
    else:
        data = cv2.imencode(kind, noise)[1].tobytes()
    (tmp_path / 'x.img').write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ImageError, match=r'x\.img: '):
        read_picture(tmp_path / 'x.img')


def test_damage_anywhere_never_escapes_as_another_error():
    """Random bytes overwritten in valid files: either readable or refused by name."""
    generator = np.random.default_rng(1)
    sources = [content for content, _, _ in READ.values() if len(content) < 2**16]
    refused = 0
    for index in range(20 * len(sources)):
        data = bytearray(sources[index % len(sources)])
        for position in generator.integers(0, len(data), 4):
            data[position] = generator.integers(256)
        try:
            decode(bytes(data), 'x')
        except ImageError:
            refused += 1
    assert refused > 100


def test_metadata_that_cannot_be_unpacked_do_not_damage_an_image():
    content = pillow(PLAIN, 'PNG', icc_profile=SRGB, exif=TURNED)
    place = content.index(b'iCCP') + 20
    picture = decode(content[:place] + b'\xff' * 8 + content[place + 8 :], 'x')
    assert picture.icc_profile is None
    assert np.array_equal(picture.pixels, np.rot90(PLAIN, -1))


def test_lossy_formats_and_floats_are_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"not '\.jpg'"):
        write_picture(tmp_path / 'x.jpg', Picture(image_of((9, 7, 3))))
    with pytest.raises(ValueError, match='float32 images are not stored'):
        write_picture(tmp_path / 'x.png', Picture(image_of((9, 7)).astype(np.float32)))
    assert not list(tmp_path.iterdir())


def test_written_files_have_ordinary_permissions(tmp_path):
    write_bytes_atomic(tmp_path / 'a', b'1')
    (tmp_path / 'b').write_bytes(b'1')
    modes = [Path(tmp_path / name).stat().st_mode for name in 'ab']
    assert modes[0] == modes[1]
    with pytest.raises(OSError, match='a/b'):  # the name that was asked for
        write_bytes_atomic(tmp_path / 'a' / 'b', b'')
