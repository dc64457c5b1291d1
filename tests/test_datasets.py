"""Synthetic and paired datasets: contents, randomness, BasicSR's loader, errors with their key."""

import itertools
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from dataset_options import NOTHING, epochs, paired, refusals, same, synthetic
from helpers import DELETE, put, write_photos

from unfoldldm_basicsr.data.listing import key_of, read_meta_info
from unfoldldm_basicsr.preparing.lmdb_writer import write_lmdb


def pixels(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy().transpose(1, 2, 0)


def test_training_items_hold_the_batch_contract(tmp_path):
    write_photos(tmp_path, 3)
    item = build_dataset(synthetic(tmp_path))[0]
    assert set(item) == {'lq', 'gt', 'lq_path', 'gt_path', 'degradation', 'degradation_name'}
    for key in ('lq', 'gt'):
        assert (item[key].shape, item[key].dtype) == ((3, 16, 16), torch.float32)
        assert 0 <= item[key].min() <= item[key].max() <= 1
    assert item['gt_path'] == str(tmp_path / 'img_0.png')
    assert (item['degradation'], item['degradation_name']) == (0, 'gaussian_noise')


def test_validation_is_identical_in_every_run_and_depends_on_seed_and_index(tmp_path):
    write_photos(tmp_path, 2, seed=3)
    (tmp_path / 'img_1.png').write_bytes((tmp_path / 'img_0.png').read_bytes())
    first = build_dataset(synthetic(tmp_path, 'val'))
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    again = build_dataset(synthetic(tmp_path, 'val'))
    assert torch.equal(again[1]['lq'], first[1]['lq'])
    assert torch.equal(again[1]['lq'], again[1]['lq'])
    assert not torch.equal(first[0]['lq'], first[1]['lq'])
    other_seed = build_dataset(synthetic(tmp_path, 'val', seed=1))
    assert not torch.equal(other_seed[0]['lq'], first[0]['lq'])
    for index, batch in enumerate(torch.utils.data.DataLoader(first, num_workers=2)):
        assert torch.equal(batch['lq'][0], first[index]['lq'])


def seed_workers_as_basicsr_does(worker_id: int) -> None:
    """The release seeds these generators equally in every epoch."""
    np.random.seed(10 + worker_id)  # noqa: NPY002
    random.seed(10 + worker_id)


def test_crops_and_noise_differ_in_every_epoch_although_basicsr_reseeds_numpy(tmp_path):
    write_photos(tmp_path, 1)  # one photo, so that the order of an epoch makes no difference
    options = synthetic(tmp_path, num_worker_per_gpu=2, repeat=4)
    three = epochs(options, 3, worker_init_fn=seed_workers_as_basicsr_does)
    lq, gt = (torch.cat([b[key] for batches in three for b in batches]) for key in ('lq', 'gt'))
    patches, noise = ({one.numpy().tobytes() for one in images} for images in (gt, lq - gt))
    assert len(patches) == len(noise) == 3 * 4


def test_lmdb_and_folder_give_identical_batches(tmp_path):
    images = tmp_path / 'images'
    write_photos(images / 'sub', 2, (24, 40))
    photos = write_photos(images, 4, seed=1)[1:]
    # names are sorted in another order than files, keys in another than names
    for path, name in zip(photos, ('img_0-1.png', 'img.1.png', 'é.png'), strict=True):
        path.rename(path.with_name(name))
    write_lmdb(images, tmp_path / 'i.lmdb')
    for options in (synthetic, lambda root: paired(root, root)):
        results = [epochs(options(root)) for root in (images, tmp_path / 'i.lmdb')]
        assert same(results[0][0], results[1][0])
    paths = [Path(path).relative_to(images) for b in results[0][0] for path in b['gt_path']]
    keys = [key for batch in results[1][0] for key in batch['gt_path']]
    assert [key_of(str(path)) for path in paths] == keys


def test_paired_crops_and_flips_are_the_same_for_both_images(tmp_path):
    write_photos(tmp_path, 3, (20, 70))
    dataset = build_dataset(paired(tmp_path, tmp_path, gt_size=18))
    for index in range(3):
        item = dataset[index]
        assert torch.equal(item['gt'], item['lq'])


def test_flips_cover_all_eight_orientations_or_none(tmp_path):
    write_photos(tmp_path, 1, (16, 16))

    def seen(**options) -> set[bytes]:
        dataset = build_dataset(synthetic(tmp_path, **options))
        return {dataset[0]['gt'].numpy().tobytes() for _ in range(100)}

    image = build_dataset(synthetic(tmp_path, 'val'))[0]['gt'].numpy()
    assert len(seen()) == 8
    assert seen(use_rot=False) == {image.tobytes(), image[..., ::-1].tobytes()}
    assert seen(use_hflip=False, use_rot=False) == {image.tobytes()}


def test_patches_reach_every_corner(tmp_path):
    write_photos(tmp_path, 1, (12, 10))
    image = pixels(build_dataset(synthetic(tmp_path, 'val'))[0]['gt'])
    blur = [{'type': 'gaussian_blur', 'sigma': 1}]  # patches are cut with a margin
    options = {'gt_size': 8, 'use_hflip': False, 'use_rot': False, 'degradations': blur}
    dataset = build_dataset(synthetic(tmp_path, **options))
    seen = {pixels(dataset[0]['gt']).tobytes() for _ in range(300)}
    places = itertools.product(range(5), range(3))
    assert seen == {image[top : top + 8, left : left + 8].tobytes() for top, left in places}


@pytest.mark.parametrize(
    ('steps', 'flips'),
    [
        ([{'type': 'motion_blur', 'length': 15, 'angle': 45}], False),
        ([{'type': 'gaussian_blur', 'sigma': 2}], True),
        ([{'type': 'gaussian_blur', 'sigma': 1}, {'type': 'jpeg', 'quality': 10}], False),
    ],
)
def test_training_patches_are_degraded_as_parts_of_the_photo(tmp_path, steps, flips):
    write_photos(tmp_path, 1, (40, 48))
    options = {'degradations': steps, 'lq_output': 'unclipped'}
    whole = pixels(build_dataset(synthetic(tmp_path, 'val', **options))[0]['lq'])
    views = []
    for turned in (whole, whole.swapaxes(0, 1)):
        for flipped in (turned, turned[::-1], turned[:, ::-1], turned[::-1, ::-1]):
            windows = np.lib.stride_tricks.sliding_window_view(flipped, (16, 16), axis=(0, 1))
            views.append(windows.reshape(-1, 3, 16, 16))
    views = np.concatenate(views if flips else views[:1])
    dataset = build_dataset(synthetic(tmp_path, use_hflip=flips, use_rot=flips, **options))
    for _ in range(8):
        assert np.abs(views - dataset[0]['lq'].numpy()).max(axis=(1, 2, 3)).min() < 1e-5


def test_images_smaller_than_the_patch_are_reflected(tmp_path):
    write_photos(tmp_path, 1, (10, 24))
    fixed = {'use_hflip': False, 'use_rot': False, 'degradations': NOTHING}
    small = build_dataset(synthetic(tmp_path, gt_size=24, **fixed))[0]['gt']
    photo = cv2.imread(str(tmp_path / 'img_0.png'))[:, :, ::-1].astype(np.float32) / 255
    expected = np.pad(photo, [(0, 14), (0, 0), (0, 0)], mode='reflect')
    np.testing.assert_array_equal(pixels(small), expected)


def test_validation_crops_are_central(tmp_path):
    write_photos(tmp_path, 1, (50, 71))
    photo = cv2.imread(str(tmp_path / 'img_0.png'))[:, :, ::-1].astype(np.float32) / 255
    item = build_dataset(synthetic(tmp_path, 'val', crop_multiple=16))[0]
    np.testing.assert_array_equal(pixels(item['gt']), photo[1:49, 3:67])
    item = build_dataset(synthetic(tmp_path, 'val', center_crop=40))[0]
    np.testing.assert_array_equal(pixels(item['gt']), photo[5:45, 15:55])


@pytest.mark.parametrize('phase', ['train', 'val'])
def test_iterating_ends_and_other_indices_are_index_errors(tmp_path, phase):
    roots = tmp_path / 'gt', tmp_path / 'lq'
    for seed, root in enumerate(roots):
        write_photos(root, 2, seed=seed)
    repeat = 2 if phase == 'train' else 1
    for options in (synthetic(roots[0], phase, repeat=2), paired(*roots, phase, repeat=repeat)):
        dataset = build_dataset(options)
        count = len(dataset)
        items = list(itertools.islice(iter(dataset), count + 1))
        names = [f'img_{i}.png' for i in range(2)] * (count // 2)
        assert [Path(item['gt_path']).name for item in items] == names
        for index in (count, -1):
            with pytest.raises(IndexError, match=f'index {index} of a dataset of {count} items'):
                dataset[index]


def test_meta_info_lists_pairs_of_any_names_and_subsets(tmp_path):
    write_photos(tmp_path / 'gt', 3)
    write_photos(tmp_path / 'lq', 3, seed=1)[2].rename(tmp_path / 'lq' / 'img 2, hazy.png')
    meta = tmp_path / 'pairs.txt'
    meta.write_text('img_2.png, img 2, hazy.png\r\n\nimg_0.png (48,64,3)\nimg_0.png (48,64,3) 1\n')
    names = ['img 2, hazy.png', 'img_0.png', 'img_0.png']
    listed = [('img_2.png', names[0]), ('img_0.png', None), ('img_0.png', None)]
    assert read_meta_info(meta) == listed
    options = paired(tmp_path / 'gt', tmp_path / 'lq', 'val', meta_info_file=str(meta))
    dataset = build_dataset(options)
    assert [Path(dataset[i]['lq_path']).name for i in range(3)] == names
    for root in ('gt', 'lq'):
        write_lmdb(tmp_path / root, tmp_path / f'{root}.lmdb')
    roots = tmp_path / 'gt.lmdb', tmp_path / 'lq.lmdb'
    from_lmdb = build_dataset(paired(*roots, 'val', meta_info_file=str(meta)))
    assert torch.equal(from_lmdb[0]['lq'], dataset[0]['lq'])
    meta.write_text('img_7.png\n')
    with pytest.raises(ValueError, match=r'img_7\.png'):
        build_dataset(synthetic(tmp_path / 'gt', meta_info_file=str(meta)))


def test_pairs_match_by_template_subfolder_and_stem(tmp_path):
    write_photos(tmp_path / 'gt' / 'night', 2)
    for path in write_photos(tmp_path / 'lq' / 'night', 2, seed=1):
        image = cv2.imread(str(path))
        path.unlink()
        cv2.imwrite(str(path.with_name(f'{path.stem}_dark.jpg')), image)
    options = paired(tmp_path / 'gt', tmp_path / 'lq', 'val', filename_tmpl='{}_dark')
    assert Path(build_dataset(options)[1]['lq_path']).name == 'img_1_dark.jpg'
    (tmp_path / 'lq' / 'night' / 'img_0_dark.jpg').unlink()
    with pytest.raises(ValueError, match=r'1 of 2 .*no partner.*img_0\.png.*img_0_dark\.png'):
        build_dataset(options)


def test_surplus_and_ambiguous_partners_are_refused(tmp_path):
    write_photos(tmp_path / 'gt', 2)
    write_photos(tmp_path / 'lq', 3)
    with pytest.raises(ValueError, match=r'1 of 3 images .*the first is img_2\.png'):
        build_dataset(paired(tmp_path / 'gt', tmp_path / 'lq'))
    (tmp_path / 'lq' / 'img_2.png').rename(tmp_path / 'lq' / 'img_1.bmp')
    (tmp_path / 'gt' / 'img_1.png').rename(tmp_path / 'gt' / 'img_1.jpg')
    with pytest.raises(ValueError, match=r'several partners.*img_1\.bmp, img_1\.png'):
        build_dataset(paired(tmp_path / 'gt', tmp_path / 'lq'))
    (tmp_path / 'lq' / 'img_1.bmp').rename(tmp_path / 'gt' / 'img_1.png')
    with pytest.raises(ValueError, match=r'lq.img_1\.png: partner of img_1\.jpg and of img_1\.png'):
        build_dataset(paired(tmp_path / 'gt', tmp_path / 'lq'))


def test_a_pair_of_different_sizes_is_named(tmp_path):
    write_photos(tmp_path / 'gt', 2)
    cv2.imwrite(str(write_photos(tmp_path / 'lq', 2)[1]), np.zeros((12, 16, 3), np.uint8))
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
        ('gt_size', None, 'is missing'),
        ('scale', 2, 'is 2'),
        ('crop_multiple', 8, 'is for validation'),
        ('color', 'gray', "Did you mean 'grey'"),
        ('meta_info_file', 'nowhere.txt', 'nowhere.txt: no such meta_info_file'),
        ('degradation_names', ['rain', 'rain'], 'list of different names'),
        ('filename_tmpl', '{', 'no other braces'),
        ('filename_tmpl', 'x', 'must hold {}'),
        ('filename_tmpl', '{}{}', 'no other braces'),
        ('filename_tmpl', '{{}}x', 'no other braces'),
        ('filename_tmpl', '{}_rain', 'looked for img_0_rain.png'),
    ],
)
def test_bad_options_are_refused_with_dataset_key_and_remedy(tmp_path, key, value, words):
    write_photos(tmp_path, 2)
    good = paired(tmp_path, tmp_path) if key == 'filename_tmpl' else synthetic(tmp_path)
    assert refusals(good) == {}
    options = put(good, key, value)
    found = refusals(options)
    assert list(found) == [key]
    assert words in found[key]
    with pytest.raises(ValueError, match=rf'^dataset photos \({good["type"]}\): '):
        build_dataset(options)


def test_a_missing_or_imageless_folder_and_an_unmarked_lmdb_are_explained(tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty' / 'notes.txt').write_text('x')
    with pytest.raises(ValueError, match=r'no image in it \(1 other files\)'):
        build_dataset(synthetic(tmp_path / 'empty'))
    write_photos(tmp_path / 'images', 1)
    options = synthetic(tmp_path / 'images', io_backend={'type': 'lmdb'})
    assert 'has no data.mdb' in refusals(options)['dataroot_gt']
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
