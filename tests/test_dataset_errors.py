"""Wrong options and damaged data of the datasets give one error that names file, key and remedy."""

import cv2
import numpy as np
import pytest
from basicsr.data import build_dataset
from dataset_options import paired, refusals, synthetic
from helpers import DELETE, put, write_photos

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
        build_dataset(options)  # before the run
    assert list(refusals(options)) == ['dataroot_lq']
    skipping = build_dataset(options | {'on_error': 'skip'})
    with pytest.raises(ValueError, match=words):
        skipping[1]
    for root in ('gt', 'lq'):
        write_lmdb(tmp_path / root, tmp_path / f'{root}.lmdb')
    with pytest.raises(ValueError, match=r'gt\.lmdb \(key img_1\) is 64x48'):
        build_dataset(paired(tmp_path / 'gt.lmdb', tmp_path / 'lq.lmdb'))  # before any item


@pytest.mark.parametrize(
    ('key', 'value', 'words'),
    [
        ('dataroot_gt', 'nowhere', 'nowhere: no such folder'),
        ('io_backend.type', 'lmbd', "Did you mean 'lmdb'"),
        ('gt_sise', 16, "Did you mean 'gt_size'"),
        ('gt_size', '16', "got '16'"),
        ('gt_size', None, 'is missing'),
        ('use_rot', 1, 'must be true or false'),
        ('scale', 2, 'is 2'),
        ('seed', -1, 'at least 0'),
        ('crop_multiple', 8, 'is for validation'),
        ('phase', 'training', "'train'"),
        ('color', 'gray', "Did you mean 'grey'"),
        ('degradations.0.type', 'gausian_noise', "Did you mean 'gaussian_noise'"),
        ('meta_info_file', 'nowhere.txt', 'nowhere.txt: no such meta_info_file'),
        ('degradation_names', ['rain', 'rain'], 'list of different names'),
    ],
)
def test_bad_options_are_refused_with_dataset_key_and_remedy(tmp_path, key, value, words):
    write_photos(tmp_path, 1)
    assert refusals(synthetic(tmp_path)) == {}
    options = put(synthetic(tmp_path), key, value)
    found = refusals(options)
    assert list(found) == [key]
    assert words in found[key]
    with pytest.raises(ValueError, match=r'^dataset photos \(SyntheticDegradationDataset\): '):
        build_dataset(options)


def test_the_class_of_a_set_must_be_one_of_the_run(tmp_path):
    write_photos(tmp_path, 1)
    options = synthetic(tmp_path, degradation_names=['rain', 'haze'])
    assert 'which of rain, haze' in refusals(options)['degradation_name']
    options['degradation_name'] = 'rian'
    assert "Did you mean 'rain'" in refusals(options)['degradation_name']


def test_training_keys_are_refused_in_validation(tmp_path):
    write_photos(tmp_path, 1)
    found = refusals(synthetic(tmp_path, 'val', repeat=2, on_error='skip'))
    assert 'is for training' in found['repeat']
    assert 'measures every image' in found['on_error']


def test_a_missing_or_imageless_folder_and_an_unmarked_lmdb_are_explained(tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty' / 'notes.txt').write_text('x')
    with pytest.raises(ValueError, match=r'no image in it \(1 other files\)'):
        build_dataset(synthetic(tmp_path / 'empty'))
    write_photos(tmp_path / 'images', 1)
    write_lmdb(tmp_path / 'images', tmp_path / 'i.lmdb')
    with pytest.raises(ValueError, match=r'set io_backend: \{type: lmdb\}'):
        build_dataset(synthetic(tmp_path / 'i.lmdb') | {'io_backend': {'type': 'disk'}})


@pytest.mark.parametrize('key', ['dataroot_gt', 'dataroot_lq'])
def test_a_problem_with_one_of_two_folders_has_its_key(tmp_path, key):
    roots = {name: tmp_path / name for name in ('dataroot_gt', 'dataroot_lq')}
    for root in roots.values():
        write_photos(root, 2)
    good = paired(tmp_path, tmp_path) | {name: str(root) for name, root in roots.items()}
    assert refusals(good) == {}
    assert 'is missing' in refusals(put(good, key, DELETE))[key]
    (tmp_path / 'empty').mkdir()
    assert list(refusals(good | {key: str(tmp_path / 'empty')})) == [key]
    assert set(refusals(good | dict.fromkeys(roots, 'nowhere'))) == roots.keys()
    (roots[key] / 'img_1.png').write_bytes(b'no image')
    ((found, message),) = refusals(good).items()
    assert found == key
    assert 'img_1.png: cannot be decoded' in message


def test_a_bad_template_is_named_under_its_own_key(tmp_path):
    for folder in ('gt', 'lq'):
        write_photos(tmp_path / folder, 2)
    pairs = paired(tmp_path / 'gt', tmp_path / 'lq')
    for template, words in (
        ('{', 'no other braces'),
        ('x', 'must hold {}'),
        ('{}{}', 'no other braces'),
        ('{}_rain', 'looked for img_0_rain.png'),
    ):
        found = refusals(pairs | {'filename_tmpl': template})
        assert list(found) == ['filename_tmpl']
        assert words in found['filename_tmpl']
