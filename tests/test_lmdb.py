"""LMDBs round-trip, are readable by BasicSR itself, and bad input is refused by name."""

import os
import re

import cv2
import lmdb
import numpy as np
import pytest
from basicsr.data import build_dataset
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from dataset_options import paired
from helpers import load_script, write_photos

from unfoldldm_basicsr.data.sources import FolderImages, LmdbImages, close_lmdbs
from unfoldldm_basicsr.preparing import lmdb_writer
from unfoldldm_basicsr.preparing.lmdb_writer import SubImages, plan_keys, write_lmdb


def test_basicsr_reads_the_lmdbs_with_its_own_dataset(tmp_path):
    write_photos(tmp_path / 'gt', 3)
    write_photos(tmp_path / 'lq', 3, seed=1)
    for side, payload in (('gt', 'png'), ('lq', 'bmp')):
        write_lmdb(tmp_path / side, tmp_path / f'{side}.lmdb', payload=payload)
    roots = [tmp_path / f'{side}.lmdb' for side in ('gt', 'lq')]
    dataset = build_dataset(paired(*roots, 'val', type='PairedImageDataset'))
    assert len(dataset) == 3
    item = dataset[1]
    expected = cv2.imread(str(tmp_path / 'lq' / 'img_1.png'))[:, :, ::-1]
    assert np.array_equal((item['lq'].numpy() * 255).round(), expected.transpose(2, 0, 1))
    assert item['gt_path'] == 'img_1'


def test_lmdbs_written_by_basicsr_are_readable_even_with_dotted_names(tmp_path):
    names = [p.name for p in write_photos(tmp_path / 'images', 2)]
    make_lmdb_from_imgs(str(tmp_path / 'images'), str(tmp_path / 'b.lmdb'), names, ['b.v1', 'a'])
    database = LmdbImages(tmp_path / 'b.lmdb')
    assert database.names == ['a', 'b.v1']
    assert np.array_equal(database.read('b.v1'), FolderImages(tmp_path / 'images').read(names[0]))


@pytest.mark.parametrize(
    ('side', 'thresh', 'starts'),
    [(40, 0, [0]), (65, 0, [0, 20, 25]), (65, 5, [0, 20]), (66, 5, [0, 20, 26])],
)
def test_sub_images_cover_a_side_with_the_stated_overlap(side, thresh, starts):
    assert SubImages(40, 20, thresh).starts(side) == starts


def test_sub_images_are_the_parts_of_the_photo_and_the_map_grows_for_them(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdb_writer, '_FIRST_MAP_SIZE', 2**15)
    write_photos(tmp_path / 'images', 1, (50, 70))
    options = {'sub_images': SubImages(40, 20), 'payload': 'bmp', 'num_threads': 3}
    count = write_lmdb(tmp_path / 'images', tmp_path / 'i.lmdb', **options)
    assert (tmp_path / 'i.lmdb').stat().st_mode & 0o777 == 0o755
    whole = FolderImages(tmp_path / 'images').read('img_0.png')
    database = LmdbImages(tmp_path / 'i.lmdb')
    assert database.names == [f'img_0_s{i:03d}' for i in range(1, count + 1)]
    places = [(top, left) for top in (0, 10) for left in (0, 20, 30)]
    for key, (top, left) in zip(database.names, places, strict=True):
        np.testing.assert_array_equal(database.read(key), whole[top : top + 40, left : left + 40])


@pytest.mark.parametrize(
    ('names', 'words'),
    [
        (['a.png', 'a.jpg'], "a.jpg and a.png would both have the key 'a'"),
        (['a.v1.png', 'a_v1.png'], "the key 'a_v1'"),
        (['x' * 512 + '.png'], '512 bytes'),
        ([' a.png'], 'space'),
    ],
)
def test_keys_that_could_not_be_read_back_are_refused(names, words):
    with pytest.raises(ValueError, match=re.escape(names[0])) as error:
        plan_keys(names)
    assert words in str(error.value)


def test_force_never_removes_a_folder_that_is_no_lmdb(tmp_path):
    write_photos(tmp_path / 'images', 1)
    write_photos(tmp_path / 'photos.lmdb', 1)
    with pytest.raises(FileExistsError, match='not an LMDB'):
        write_lmdb(tmp_path / 'images', tmp_path / 'photos.lmdb', force=True)
    assert (tmp_path / 'photos.lmdb' / 'img_0.png').is_file()


def test_failure_names_every_damaged_file_and_leaves_nothing_behind(tmp_path, monkeypatch):
    for path in write_photos(tmp_path / 'images', 24)[1::2]:
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r'img_1\.png: cannot be decoded: truncated') as error:
        write_lmdb(tmp_path / 'images', tmp_path / 'i.lmdb')
    assert len(f'{error.value}'.splitlines()) == 12
    monkeypatch.setattr(lmdb_writer, '_MANY', 3)  # enough of a folder of which nothing fits
    with pytest.raises(ValueError, match='The 16 images after these') as error:
        write_lmdb(tmp_path / 'images', tmp_path / 'i.lmdb')
    assert len(f'{error.value}'.splitlines()) == 4 + 1
    assert [p.name for p in tmp_path.iterdir()] == ['images']


def test_16_bit_images_are_refused_as_bmp_instead_of_losing_bits(tmp_path):
    deep = {'deep': lambda: np.full((8, 8, 3), 1000, np.uint16)}
    with pytest.raises(ValueError, match='deep: BMP holds 8 bits'):
        write_lmdb(deep, tmp_path / 'i.lmdb', payload='bmp')


def test_verification_notices_a_payload_that_decodes_to_another_image(tmp_path, monkeypatch):
    write_photos(tmp_path / 'images', 1)
    monkeypatch.setattr(
        lmdb_writer, 'encode_png', lambda it: cv2.imencode('.jpg', it.pixels)[1].tobytes()
    )
    with pytest.raises(ValueError, match='img_0 differs'):
        write_lmdb(tmp_path / 'images', tmp_path / 'i.lmdb')
    assert not (tmp_path / 'i.lmdb').exists()


def test_damaged_lmdbs_are_reported_with_their_path(tmp_path):
    write_photos(tmp_path / 'images', 2)
    root = tmp_path / 'i.lmdb'
    write_lmdb(tmp_path / 'images', root)
    with (root / 'meta_info.txt').open('a') as meta:
        meta.write('img_9.png (48,64,3) 1\n')
    with pytest.raises(ValueError, match=r'i\.lmdb \(key img_9\).*lacks it'):
        LmdbImages(root).read('img_9')
    close_lmdbs()
    (root / 'data.mdb').write_bytes(b'nonsense' * 1000)
    with pytest.raises(ValueError, match=r'i\.lmdb: LMDB error'):
        LmdbImages(root).read('img_0')
    (root / 'meta_info.txt').unlink()
    with pytest.raises(FileNotFoundError, match=r'has no meta_info\.txt'):
        LmdbImages(root)


def test_one_environment_per_database_is_shared_and_survives_a_fork(tmp_path):
    write_photos(tmp_path / 'images', 2)
    root = tmp_path / 'i.lmdb'
    write_lmdb(tmp_path / 'images', root)
    first, second = LmdbImages(root), LmdbImages(str(root) + '/')
    expected = first.read('img_0')
    np.testing.assert_array_equal(second.read('img_0'), expected)  # LMDB allows one only
    child = os.fork()
    if child == 0:
        lmdb.open(str(root), readonly=True, lock=False).close()  # fails if the parent's is left
        os._exit(0 if np.array_equal(first.read('img_0'), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert first.read('img_1').size
    with pytest.raises(lmdb.Error, match='already open'):
        lmdb.open(str(root), readonly=True, lock=False)
    close_lmdbs()
    lmdb.open(str(root), readonly=True, lock=False).close()


def test_photos_of_scikit_image_are_written_grey_and_colour(tmp_path):
    assert load_script('scripts/data/skimage_photos.py').main(['-o', str(tmp_path)]) == 0
    assert {p.stem for p in (tmp_path / 'val').iterdir()} == {'astronaut', 'chelsea', 'coffee'}
    train = {p.stem: cv2.imread(str(p), -1) for p in (tmp_path / 'train').iterdir()}
    assert len(train) == 12
    assert train['rocket'].shape == (427, 640, 3)
    grey = {name for name, image in train.items() if image.ndim == 2}
    assert grey == {'camera', 'brick', 'grass', 'gravel', 'coins', 'moon'}
