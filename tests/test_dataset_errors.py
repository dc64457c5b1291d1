"""Wrong options and damaged data of the datasets give one error that names file, key and remedy."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from basicsr.data import build_dataset
from dataset_options import epochs, paired, synthetic
from helpers import write_photos

from unfoldldm_basicsr.data.paired_degradation_dataset import PairedDegradationDataset
from unfoldldm_basicsr.data.synthetic_degradation_dataset import SyntheticDegradationDataset
from unfoldldm_basicsr.preparing.lmdb_writer import write_lmdb


def test_surplus_and_ambiguous_partners_are_refused(tmp_path):
    write_photos(tmp_path / 'gt', 2)
    write_photos(tmp_path / 'lq', 3)
    with pytest.raises(ValueError, match=r'1 of 3 images .*the first is img_2\.png'):
        build_dataset(paired(tmp_path / 'gt', tmp_path / 'lq'))
    (tmp_path / 'lq' / 'img_2.png').rename(tmp_path / 'lq' / 'img_1.bmp')
    (tmp_path / 'gt' / 'img_1.png').rename(tmp_path / 'gt' / 'img_1.jpg')
    with pytest.raises(ValueError, match=r'several partners.*img_1\.bmp, img_1\.png'):
        build_dataset(paired(tmp_path / 'gt', tmp_path / 'lq'))


def test_a_pair_of_different_sizes_is_named(tmp_path):
    write_photos(tmp_path / 'gt', 2)
    lq = write_photos(tmp_path / 'lq', 2)
    cv2.imwrite(str(lq[1]), np.zeros((12, 16, 3), np.uint8))
    options = paired(tmp_path / 'gt', tmp_path / 'lq')
    words = r'gt .*gt.img_1\.png is 64x48, lq .*lq.img_1\.png is 16x12'
    with pytest.raises(ValueError, match=words):
        build_dataset(options)[1]
    assert [key for key, _ in PairedDegradationDataset.check_options(options)] == ['dataroot_lq']
    for root in ('gt', 'lq'):
        write_lmdb(tmp_path / root, tmp_path / f'{root}.lmdb')
    with pytest.raises(ValueError, match=r'gt\.lmdb \(key img_1\) is 64x48'):
        build_dataset(paired(tmp_path / 'gt.lmdb', tmp_path / 'lq.lmdb'))  # before any item


@pytest.mark.parametrize(
    ('content', 'num_workers'),
    [(b'', 0), (b'not an image', 0), (None, 0), (None, 1)],
    ids=['empty', 'text', 'cut', 'cut, in a worker'],
)
def test_a_damaged_image_is_named_also_from_a_worker(tmp_path, content, num_workers):
    paths = write_photos(tmp_path, 2)
    paths[1].write_bytes(paths[1].read_bytes()[:300] if content is None else content)
    with pytest.raises(ValueError, match=r'img_1\.png.*(Replace|Remove)'):
        epochs(synthetic(tmp_path, num_worker_per_gpu=num_workers))


def test_a_photo_that_disappears_is_named(tmp_path):
    paths = write_photos(tmp_path, 2)
    dataset = build_dataset(synthetic(tmp_path))
    paths[0].unlink()
    with pytest.raises(FileNotFoundError, match=r'img_0\.png: cannot be read'):
        dataset[0]


def test_float_images_are_refused_by_name(tmp_path):
    cv2.imwrite(str(tmp_path / 'a.tiff'), np.zeros((8, 8, 3), np.float32))
    with pytest.raises(ValueError, match=r'a\.tiff: floating-point'):
        build_dataset(synthetic(tmp_path, 'val'))[0]


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'dataroot_gt': 'nowhere'}, 'nowhere: no such folder'),
        ({'dataroot_gt': None}, 'dataroot_gt'),
        ({'io_backend': {'type': 'lmdb'}}, 'has no data.mdb'),
        ({'io_backend': {'type': 'lmbd'}}, "Did you mean 'lmdb'"),
        ({'io_backend': {'type': 'disk', 'sys_path': '/tmp'}}, 'io_backend.sys_path'),
        ({'gt_sise': 16}, "Did you mean 'gt_size'"),
        ({'gt_size': '16'}, 'gt_size: must be int'),
        ({'gt_size': None}, 'gt_size: is missing'),
        ({'gt_size': 0}, 'gt_size: must be at least 1'),
        ({'use_rot': 1}, 'use_rot: must be bool'),
        ({'repeat': True}, 'repeat: must be int'),
        ({'scale': 2}, 'scale: is 2'),
        ({'seed': -1}, 'seed: must not be negative'),
        ({'crop_multiple': 8}, 'crop_multiple: is for validation'),
        ({'phase': 'training'}, 'phase: must be one of'),
        ({'lq_output': 'unclip'}, "Did you mean 'unclipped'"),
        ({'degradations': [{'type': 'gausian_noise'}]}, "Did you mean 'gaussian_noise'"),
        ({'degradations': [{'type': 'jpeg', 'qualty': 3}]}, "Did you mean 'quality'"),
        ({'meta_info_file': 'nowhere.txt'}, 'nowhere.txt: no such meta_info_file'),
        ({'degradation_names': ['rain', 'haze']}, 'degradation_name: is missing'),
        ({'degradation_names': ['rain', 'rain']}, 'list of different names'),
        (
            {'degradation_names': ['rain', 'haze'], 'degradation_name': 'rian'},
            "Did you mean 'rain'",
        ),
    ],
)
def test_bad_options_are_refused_with_dataset_key_and_remedy(tmp_path, changes, words):
    write_photos(tmp_path, 1)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        build_dataset(synthetic(tmp_path) | changes)
    assert words in str(error.value)
    assert 'dataset photos (SyntheticDegradationDataset)' in str(error.value)


def test_repeat_is_refused_in_validation(tmp_path):
    write_photos(tmp_path, 1)
    with pytest.raises(ValueError, match='repeat: is for training'):
        build_dataset(synthetic(tmp_path, 'val', repeat=2))


def test_a_missing_or_imageless_folder_and_an_unmarked_lmdb_are_explained(tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty' / 'notes.txt').write_text('x')
    with pytest.raises(ValueError, match=r'no image in it \(1 other files\)'):
        build_dataset(synthetic(tmp_path / 'empty'))
    write_photos(tmp_path / 'images', 1)
    write_lmdb(tmp_path / 'images', tmp_path / 'i.lmdb')
    with pytest.raises(ValueError, match=r'set io_backend: \{type: lmdb\}'):
        build_dataset(synthetic(tmp_path / 'i.lmdb') | {'io_backend': {'type': 'disk'}})
    options = paired(tmp_path / 'images', tmp_path / 'images')
    del options['dataroot_lq']
    with pytest.raises(ValueError, match='dataroot_lq is missing'):
        build_dataset(options)


@pytest.mark.parametrize('key', ['dataroot_gt', 'dataroot_lq'])
def test_a_problem_with_one_of_two_folders_has_its_key(tmp_path, key):
    roots = {name: tmp_path / name for name in ('dataroot_gt', 'dataroot_lq')}
    for root in roots.values():
        write_photos(root, 2)
    good = paired(tmp_path, tmp_path) | {name: str(root) for name, root in roots.items()}
    assert PairedDegradationDataset.check_options(good) == []
    (tmp_path / 'empty').mkdir()
    empty = good | {key: str(tmp_path / 'empty')}
    assert [found for found, _ in PairedDegradationDataset.check_options(empty)] == [key]
    (roots[key] / 'img_1.png').write_bytes(b'no image')
    ((found, message),) = PairedDegradationDataset.check_options(good)
    assert found == key
    assert 'img_1.png: cannot be decoded' in message


def test_check_options_reports_every_problem_and_nothing_on_good_options(tmp_path):
    write_photos(tmp_path, 1)
    good = synthetic(tmp_path)
    assert SyntheticDegradationDataset.check_options(good) == []
    del good['phase']  # as in an option file
    assert SyntheticDegradationDataset.check_options(good) == []
    assert PairedDegradationDataset.check_options(paired(tmp_path, tmp_path)) == []
    bad = synthetic(
        'nowhere', gt_size=-1, degradations=[{'type': 'jpeg', 'quality': 0}, {'type': 'x'}]
    )
    del bad['batch_size_per_gpu']
    assert {key for key, _ in SyntheticDegradationDataset.check_options(bad)} == {
        'gt_size', 'batch_size_per_gpu', 'degradations[0].quality', 'degradations[1].type',
        'dataroot_gt',
    }  # fmt: skip


@pytest.mark.parametrize('dataset', [SyntheticDegradationDataset, PairedDegradationDataset])
def test_option_keys_have_types_and_help(dataset):
    for key, (types, text) in dataset.option_keys.items():
        assert all(isinstance(t, type) for t in types), key
        assert text, key
