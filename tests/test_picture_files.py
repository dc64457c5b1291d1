"""Image files: what is written is read back unchanged, and damaged files are named."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from unfoldldm_basicsr.common.files import write_bytes_atomic
from unfoldldm_basicsr.data.picture_files import (
    ImageReadError,
    Picture,
    read_image,
    write_image,
)

SHAPES = {'grey': (9, 7), 'grey-alpha': (9, 7, 2), 'rgb': (9, 7, 3), 'rgb-alpha': (9, 7, 4)}


def pixels(shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize('suffix', ['.png', '.tif'])
def test_eight_bit_round_trip(tmp_path, shape, suffix):
    image = pixels(shape)
    write_image(tmp_path / f'x{suffix}', Picture(image))
    found = read_image(tmp_path / f'x{suffix}').pixels
    assert found.dtype == np.uint8
    assert np.array_equal(found, image)


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize('suffix', ['.png', '.tif'])
def test_sixteen_bit_round_trip(tmp_path, shape, suffix):
    image = pixels(shape, np.uint16)
    write_image(tmp_path / f'x{suffix}', Picture(image))
    found = read_image(tmp_path / f'x{suffix}').pixels
    assert found.dtype == np.uint16
    assert np.array_equal(found, image[..., [0, 0, 0, 1]] if shape[2:] == (2,) else image)


def test_sixteen_bit_grey_with_alpha_stays_grey(tmp_path):
    image = pixels((9, 7, 2), np.uint16)

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body).to_bytes(4, 'big')
        return len(body).to_bytes(4, 'big') + kind + body + checksum

    head = (7).to_bytes(4, 'big') + (9).to_bytes(4, 'big') + bytes([16, 4, 0, 0, 0])
    lines = b''.join(b'\0' + row.astype('>u2').tobytes() for row in image)
    (tmp_path / 'x.png').write_bytes(
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', head)
        + chunk(b'IDAT', zlib.compress(lines))
        + chunk(b'IEND', b'')
    )
    assert np.array_equal(read_image(tmp_path / 'x.png').pixels, image)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_the_colour_profile_survives(tmp_path, dtype):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    write_image(tmp_path / 'x.png', Picture(pixels((9, 7, 3), dtype), profile))
    assert read_image(tmp_path / 'x.png').icc_profile == profile
    assert np.array_equal(read_image(tmp_path / 'x.png').pixels, pixels((9, 7, 3), dtype))


UPRIGHT = {  # EXIF orientation -> how a viewer has to turn the stored pixels
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize('orientation', UPRIGHT)
@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.tif'])
def test_camera_orientation_is_applied(tmp_path, orientation, suffix):
    image = Image.fromarray(np.kron(pixels((2, 3, 3)), np.ones((8, 8, 1), np.uint8)))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / f'x{suffix}', exif=exif, quality=100, subsampling=0)
    difference = read_image(tmp_path / f'x{suffix}').pixels.astype(int)
    difference -= UPRIGHT[orientation](np.asarray(image))
    assert np.abs(difference).max() <= (8 if suffix == '.jpg' else 0)


@pytest.mark.parametrize('orientation', UPRIGHT)
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_camera_orientation_is_applied_once_to_grey_tiff(tmp_path, orientation, dtype):
    stored = pixels((4, 6), dtype)
    Image.fromarray(stored).save(tmp_path / 'x.tif', tiffinfo={0x0112: orientation})
    found = read_image(tmp_path / 'x.tif').pixels
    assert found.dtype == dtype
    assert np.array_equal(found, UPRIGHT[orientation](stored))


@pytest.mark.parametrize(
    ('mode', 'shape'), [('P', (9, 7, 3)), ('1', (9, 7)), ('CMYK', (9, 7, 3)), ('L', (9, 7))]
)
def test_other_modes_become_grey_or_rgb(tmp_path, mode, shape):
    image = Image.fromarray(pixels((9, 7, 3))).convert(mode)
    path = tmp_path / ('x.tif' if mode == 'CMYK' else 'x.png')
    image.save(path)
    found = read_image(path).pixels
    assert found.shape == shape
    assert np.array_equal(found, np.asarray(image.convert('L' if len(shape) == 2 else 'RGB')))


def test_a_palette_with_transparency_keeps_it(tmp_path):
    image = Image.fromarray(pixels((9, 7, 3))).convert('P')
    image.save(tmp_path / 'x.png', transparency=int(np.asarray(image)[0, 0]))
    found = read_image(tmp_path / 'x.png').pixels
    assert found.shape == (9, 7, 4)
    assert found[0, 0, 3] == 0


def encoded(suffix: str, image: np.ndarray) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.bmp', '.tif', '.webp', '.ppm'])
@pytest.mark.parametrize('keep', [0.1, 0.5, 0.9])
def test_truncated_files_are_named_and_never_read_half(tmp_path, suffix, keep):
    data = encoded(suffix, pixels((64, 64, 3)))
    path = tmp_path / f'x{suffix}'
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ImageReadError, match=f'x{suffix}: '):
        read_image(path)


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
def test_truncated_sixteen_bit_files_are_named(tmp_path, suffix):
    data = encoded(suffix, pixels((64, 64, 3), np.uint16))
    (tmp_path / f'x{suffix}').write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ImageReadError):
        read_image(tmp_path / f'x{suffix}')


def test_what_is_no_still_image_is_refused_with_the_reason(tmp_path):
    (tmp_path / 'empty.png').touch()
    (tmp_path / 'text.png').write_text('not an image')
    frames = [Image.fromarray(pixels((9, 7))), Image.fromarray(pixels((9, 7)) // 2)]
    frames[0].save(tmp_path / 'two.tif', save_all=True, append_images=frames[1:])
    Image.fromarray(pixels((9, 7)).astype(np.float32)).save(tmp_path / 'float.tif')
    for name, message in {
        'empty.png': 'empty',
        'text.png': 'no image',
        'two.tif': '2 frames',
        'float.tif': 'floating-point',
        'missing.png': 'cannot be read',
    }.items():
        with pytest.raises(ImageReadError, match=f'{name}: .*{message}'):
            read_image(tmp_path / name)


def test_lossy_formats_and_floats_are_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"not '\.jpg'"):
        write_image(tmp_path / 'x.jpg', Picture(pixels((9, 7, 3))))
    with pytest.raises(ValueError, match='float32 images are not stored'):
        write_image(tmp_path / 'x.png', Picture(pixels((9, 7)).astype(np.float32)))
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_and_no_remains(tmp_path, monkeypatch):
    path = tmp_path / 'x.png'
    write_image(path, Picture(pixels((9, 7))))
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('os.replace', fail)
    with pytest.raises(OSError, match='No space'):
        write_bytes_atomic(path, b'new')
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_written_files_have_ordinary_permissions(tmp_path):
    write_bytes_atomic(tmp_path / 'a', b'1')
    (tmp_path / 'b').write_bytes(b'1')
    modes = [Path(tmp_path / name).stat().st_mode for name in 'ab']
    assert modes[0] == modes[1]


def test_damage_anywhere_never_escapes_as_another_error(tmp_path):
    """Random bytes overwritten in valid files: either readable or refused by name."""
    generator = np.random.default_rng(1)
    buffer = io.BytesIO()
    Image.fromarray(pixels((24, 24, 3))).save(buffer, 'TIFF', compression='tiff_lzw')
    sources = [encoded(s, pixels((24, 24, 3))) for s in ('.png', '.jpg', '.webp', '.bmp')]
    sources.append(buffer.getvalue())
    refused = 0
    for index in range(240):
        data = bytearray(sources[index % 5])
        for position in generator.integers(0, len(data), 4):
            data[position] = generator.integers(256)
        (tmp_path / 'x').write_bytes(data)
        try:
            read_image(tmp_path / 'x')
        except ImageReadError:
            refused += 1
    assert refused > 20
