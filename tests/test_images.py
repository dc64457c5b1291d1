"""Image files: what is in them, odd and refused ones, the same by every way of reading."""

import contextlib
import io
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from basicsr.data import build_dataset
from basicsr.utils import get_root_logger
from basicsr.utils.logger import initialized_logger
from dataset_options import NOTHING, epochs, paired, refusals, synthetic
from helpers import image_of, preflight, write_photos
from odd_images import PLAIN, READ, REFUSED, SRGB, TURNED, assert_values, pillow, tiff
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from tiny_network import TinyConvNet, save_weights
from torch import nn

from unfoldldm_basicsr import cli
from unfoldldm_basicsr.common.files import write_bytes_atomic
from unfoldldm_basicsr.comparing.tables import read_csv, write_csv
from unfoldldm_basicsr.data.degradations import DEGRADATIONS
from unfoldldm_basicsr.data.images import (
    Picture,
    decode,
    read_picture,
    size_in_header,
    write_picture,
)
from unfoldldm_basicsr.data.listing import find_images, read_meta_info
from unfoldldm_basicsr.data.pixels import ImageError
from unfoldldm_basicsr.data.sources import close_lmdbs
from unfoldldm_basicsr.preparing.lmdb_writer import write_lmdb
from unfoldldm_basicsr.training.validation_report import append_rows

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
    noise = np.random.default_rng(0).integers(0, 256, (700, 1, 3)[: len(shape)]).astype(dtype)
    write_picture(tmp_path / f'x{suffix}', Picture(noise))
    assert np.array_equal(read_picture(tmp_path / f'x{suffix}').pixels, noise), 'tall and narrow'
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


def test_threads_that_write_files_of_like_names_do_not_meet(tmp_path):
    files = [tmp_path / f'{i}{"_frame" * 9}.bin' for i in range(8)] * 8
    with ThreadPoolExecutor(8) as pool:
        [*pool.map(lambda path: write_bytes_atomic(path, path.name.encode() * 1000), files)]
    assert all(path.read_bytes() == path.name.encode() * 1000 for path in files)


def identity(path):
    net = TinyConvNet()
    nn.init.zeros_(net.tail.weight)
    nn.init.zeros_(net.tail.bias)
    return save_weights(path, net)


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    """Folder and two LMDBs with every file that must be read, each in a folder of its own."""
    root = tmp_path_factory.mktemp('odd')
    for index, name in enumerate(READ):
        place = root / 'folder' / f'{index:02d}' / name
        place.parent.mkdir(parents=True)
        place.write_bytes(READ[name][0])
    for payload in ('png', 'source'):
        write_lmdb(root / 'folder', root / f'{payload}.lmdb', payload=payload)
    yield root
    close_lmdbs()


@pytest.mark.parametrize('source', ['folder', 'png.lmdb', 'source.lmdb'])
def test_data_sets_give_the_right_values_without_alpha(odd, source):
    dataset = build_dataset(synthetic(odd / source, 'val', degradations=NOTHING))
    assert len(dataset) == len(READ)
    for name, item in zip(READ, dataset, strict=True):
        _, values, tolerance = READ[name]
        values = values[..., 0] if values.shape[2:] == (2,) else values
        values = np.repeat(values[..., None], 3, 2) if values.ndim == 2 else values[..., :3]
        found = item['gt'].permute(1, 2, 0).numpy()
        assert found.shape == values.shape, name
        assert np.abs(found - values).max() <= tolerance + 1e-6, name
    images = dataset.images[0]
    listed = [images.shape(name) for name in images.names]
    told = [shape == READ[name][1].shape[:2] for name, shape in zip(READ, listed, strict=True)]
    if source != 'folder':
        assert all(told), 'an LMDB knows the sizes of upright images'


def test_restore_writes_the_right_values_with_alpha(odd, tmp_path):
    words = ['-i', odd / 'folder', '--recursive', '-w', identity(tmp_path / 'net.pth')]
    assert cli.main(['restore', *map(str, words), '-o', str(tmp_path / 'out')]) == 0
    results = sorted((tmp_path / 'out').glob('*/*'))
    for name, path in zip(READ, results, strict=True):
        assert_values(name, read_picture(path).pixels)


@pytest.fixture(scope='module')
def refused(tmp_path_factory):
    """Folder of every file that must be refused, and what ``restore`` says of it."""
    root = tmp_path_factory.mktemp('refused')
    write_photos(root / 'in', 1)
    for name, (content, _) in REFUSED.items():
        (root / 'in' / name).write_bytes(content)
    words = ['-i', root / 'in', '-o', root / 'out', '-w', identity(root / 'net.pth')]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert cli.main(['restore', *map(str, words)]) == 1
    assert [path.name for path in (root / 'out').iterdir()] == ['img_0.png']
    return root / 'in', said.getvalue()


@pytest.mark.parametrize('name', REFUSED)
def test_every_way_refuses_with_the_same_words(tmp_path, name, refused):
    folder, said = refused
    content, word = REFUSED[name]
    dataset = build_dataset(synthetic(folder, 'val'))
    with pytest.raises(ImageError, match=word) as error:
        dataset[sorted([*REFUSED, 'img_0.png']).index(name)]
    assert f'failed: {error.value}\n' in said
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in' / name).write_bytes(content)
    with pytest.raises(ImageError) as lmdb_error:
        write_lmdb(tmp_path / 'in', tmp_path / 'i.lmdb')
    assert str(lmdb_error.value) == str(error.value).replace(str(folder), str(tmp_path / 'in'))
    assert not (tmp_path / 'i.lmdb').exists()


@pytest.mark.parametrize('lmdb', [False, True])
def test_one_channel_is_the_grey_file_itself_or_the_luminance(tmp_path, lmdb):
    root = tmp_path / 'images'
    root.mkdir()
    (root / 'a.png').write_bytes(pillow(PLAIN[..., 0], 'PNG'))
    (root / 'b.png').write_bytes(pillow(PLAIN, 'PNG'))
    if lmdb:
        write_lmdb(root, tmp_path / 'i.lmdb')
        root = tmp_path / 'i.lmdb'
    grey, colour = build_dataset(synthetic(root, 'val', degradations=NOTHING, color='grey'))
    assert np.array_equal(grey['gt'][0].numpy(), PLAIN[..., 0] / np.float32(255))
    luminance = PLAIN @ np.array([0.299, 0.587, 0.114]) / 255
    np.testing.assert_allclose(colour['gt'][0].numpy(), luminance, atol=1e-6)
    assert grey['lq'].shape == colour['lq'].shape == (1, *PLAIN.shape[:2])


def test_y_is_what_basicsr_gives(tmp_path):
    for side in ('gt', 'lq'):
        write_photos(tmp_path / side, 1)
    ours = paired(tmp_path / 'gt', tmp_path / 'lq', 'val', color='y')
    theirs = build_dataset(ours | {'type': 'PairedImageDataset'})[0]
    torch.testing.assert_close(build_dataset(ours)[0]['lq'], theirs['lq'], rtol=0, atol=1e-6)


def test_every_degradation_takes_one_channel(tmp_path):
    write_photos(tmp_path, 2)
    for name in DEGRADATIONS:
        (batches,) = epochs(synthetic(tmp_path, color='grey', degradations=[{'type': name}]))
        assert batches[0]['lq'].shape == batches[0]['gt'].shape == (2, 1, 16, 16), name
        assert not torch.equal(batches[0]['lq'], batches[0]['gt']), name


def test_the_check_compares_the_channels_of_data_and_network(plugin):
    plugin['model_type'] = 'RestorationModel'
    del plugin['train']['isda_opt']
    for channels, train, val, found in (
        (3, 'rgb', 'rgb', ''),
        (1, 'grey', 'y', ''),
        (1, 'rgb', 'grey', 'datasets.train.color'),
        (3, 'rgb', 'y', 'datasets.val.color'),
        (2, 'rgb', 'rgb', 'network_g'),
    ):
        plugin['network_g'] = {'type': 'NAFNet', 'img_channel': channels}
        plugin['datasets']['train']['color'], plugin['datasets']['val']['color'] = train, val
        lines = preflight(plugin, 'x.yml', True)
        assert [line.split(': ')[1] for line in lines if 'channels' in line] == found.split()


def test_names_that_are_no_utf8_are_read_listed_and_told(tmp_path):
    for folder in ('gt', 'lq'):
        path = write_photos(tmp_path / folder, 1)[0]
        os.rename(path, os.fsencode(path.parent) + b'/caf\xe9.png')
    dataset = build_dataset(paired(tmp_path / 'gt', tmp_path / 'lq', 'val'))
    assert os.fsencode(dataset[0]['gt_path']).endswith(b'/caf\xe9.png')
    assert dataset.fingerprint()['images'] == 1
    append_rows(tmp_path / 'table.csv', [{'image': os.path.basename(dataset[0]['gt_path'])}])
    assert b'caf\xe9.png' in (tmp_path / 'table.csv').read_bytes()
    write_csv(pd.DataFrame({'image': ['caf\udce9']}), tmp_path / 'images.csv')
    assert (tmp_path / 'images.csv').read_bytes() == b'image\ncaf\xe9\n'
    assert list(read_csv(tmp_path / 'images.csv').image) == ['caf\udce9']
    (tmp_path / 'list.txt').write_bytes(b'caf\xe9.png\n')
    listed = synthetic(tmp_path / 'gt', 'val', meta_info_file=str(tmp_path / 'list.txt'))
    photo = build_dataset(listed)[0]['gt']
    write_lmdb(tmp_path / 'gt', tmp_path / 'gt.lmdb')
    listed = synthetic(tmp_path / 'gt.lmdb', 'val', meta_info_file=str(tmp_path / 'list.txt'))
    assert torch.equal(build_dataset(listed)[0]['gt'], photo)


def test_the_log_file_of_a_run_keeps_messages_with_such_names(tmp_path):
    initialized_logger.clear()
    get_root_logger(log_file=str(tmp_path / 'x.log')).error('left out: caf\udce9.png')
    initialized_logger.clear()
    assert 'left out: caf\\udce9.png' in (tmp_path / 'x.log').read_text()


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_lists_are_read_whatever_wrote_them(tmp_path, encoding):
    path = tmp_path / 'list.txt'
    text = 'ä.png, b.png\r\nc.png (1,2,3) 1\rd e.png 1 2 3\nf.png (1,2,3) 1 x\n\ng.png h.png\n'
    path.write_bytes(text.encode(encoding))
    singly = [(name, None) for name in ('c.png', 'd e.png', 'f.png', 'g.png h.png')]
    assert read_meta_info(path) == [('ä.png', 'b.png'), *singly]


def test_lists_that_are_none_are_named_and_backslashes_get_a_hint(tmp_path):
    write_photos(tmp_path / 'gt' / 'sub', 1)
    options = synthetic(tmp_path / 'gt', meta_info_file=str(tmp_path / 'list.txt'))
    for content in (b'a\0b', b'\xff\xfea'):
        (tmp_path / 'list.txt').write_bytes(content)
        assert 'list.txt: no text in UTF-8 or UTF-16' in refusals(options)['meta_info_file']
    (tmp_path / 'list.txt').write_text('sub\\img_0.png\n')
    assert '/ instead of \\' in refusals(options)['dataroot_gt']


def test_folders_are_listed_by_one_rule_and_whole(tmp_path, monkeypatch):
    (image,) = write_photos(tmp_path / 'in' / 'sub', 1)
    content = image.read_bytes()
    for name in ('a.JFIF', 'b.avif', 'c.pnm', 'd.jp2', '._a.png', '.hidden.png', 'notes.txt',
                 'e.heic', 'Thumbs.db'):  # fmt: skip
        (tmp_path / 'in' / name).write_bytes(content)
    for name in ('__MACOSX', '.cache'):
        write_photos(tmp_path / 'in' / name, 1)
    write_photos(tmp_path / 'elsewhere', 1)
    for link in ('link', 'twin'):
        (tmp_path / 'in' / link).symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'in' / 'sub' / 'back').symlink_to(tmp_path / 'in')
    names, others = find_images(tmp_path / 'in')
    assert names[:4] == ['a.JFIF', 'b.avif', 'c.pnm', 'd.jp2']
    assert names[4:] == [f'{folder}/img_0.png' for folder in ('link', 'sub', 'twin')]
    assert others == Counter({'.txt': 1, '.heic': 1})
    assert find_images(tmp_path / 'in', recursive=False)[0] == names[:4]
    monkeypatch.setattr(os, 'scandir', Mock(side_effect=[os.scandir(tmp_path), PermissionError]))
    with pytest.raises(PermissionError):  # of a folder that cannot be listed
        find_images(tmp_path)
