"""Synthetic, paired and mixed data sets, folders and LMDBs: contents, randomness, errors."""

import itertools
import os
import pickle
import re
from collections import Counter
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from dataset_options import NOTHING, epochs, paired, refusals, same, synthetic
from helpers import DELETE, load_script, put, write_photos

from unfoldldm_basicsr.common.declaration import read
from unfoldldm_basicsr.data.listing import key_of
from unfoldldm_basicsr.data.sources import FolderImages, LmdbImages, close_lmdbs
from unfoldldm_basicsr.preparing import lmdb_writer
from unfoldldm_basicsr.preparing.lmdb_writer import SubImages, plan_keys, write_lmdb


def pixels(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy().transpose(1, 2, 0)


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


def test_crops_and_noise_differ_in_every_epoch_although_basicsr_reseeds_numpy(tmp_path):
    write_photos(tmp_path, 1)  # one photo, so that the order of an epoch makes no difference
    options = synthetic(tmp_path, num_worker_per_gpu=2, repeat=4)
    three = epochs(options, 3)
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
    assert all(torch.equal(batch['gt'], batch['lq']) for batch in results[0][0])  # cropped alike
    paths = [Path(path).relative_to(images) for b in results[0][0] for path in b['gt_path']]
    keys = [key for batch in results[1][0] for key in batch['gt_path']]
    assert [key_of(str(path)) for path in paths] == keys


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


@pytest.mark.parametrize(('steps', 'flips'), [
    ([{'type': 'motion_blur', 'length': 15, 'angle': 45}], False),
    ([{'type': 'gaussian_blur', 'sigma': 2}], True),
    ([{'type': 'gaussian_blur', 'sigma': 1}, {'type': 'jpeg', 'quality': 10}], False),
])  # fmt: skip
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
    for options, part in (
        ({'crop_multiple': 16}, np.s_[1:49, 3:67]),
        ({'crop_multiple': 64}, np.s_[:, 3:67]),  # a side below it stays whole
        ({'center_crop': 40}, np.s_[5:45, 15:55]),
        ({'center_crop': 40, 'crop_multiple': 16}, np.s_[9:41, 19:51]),
    ):
        item = build_dataset(synthetic(tmp_path, 'val', **options))[0]
        np.testing.assert_array_equal(pixels(item['gt']), photo[part])


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
    for root, accent in (('gt', 'e\u0301'), ('lq', '\u00e9')):  # as macOS and as others write it
        write_photos(tmp_path / 'accents' / root, 1)[0].rename(
            tmp_path / f'accents/{root}/{accent}.png'
        )
    assert len(build_dataset(paired(tmp_path / 'accents/gt', tmp_path / 'accents/lq', 'val'))) == 1


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


@pytest.mark.parametrize(('key', 'value', 'words'), [
    ('io_backend.type', 'lmbd', "Did you mean 'lmdb'"),
    ('gt_sise', 16, "Did you mean 'gt_size'"), ('gt_size', None, 'is missing'),
    ('scale', 2, 'is 2'), ('crop_multiple', 8, 'is for validation'),
    ('color', 'gray', "Did you mean 'grey'"),
    ('meta_info_file', 'nowhere.txt', 'nowhere.txt: no such meta_info_file'),
    ('degradation_names', ['rain', 'rain'], 'list of different names'),
    ('filename_tmpl', '{', 'no other braces'), ('filename_tmpl', 'x', 'must hold {}'),
    ('filename_tmpl', '{}{}', 'no other braces'), ('filename_tmpl', '{{}}x', 'no other braces'),
    ('filename_tmpl', '{}_rain', 'looked for img_0_rain.png'),
])  # fmt: skip
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


NAMES = ['noise', 'rain', 'blur']


@pytest.fixture
def mixture(tmp_path) -> dict:
    write_photos(tmp_path / 'six', 6)
    write_photos(tmp_path / 'three', 3, seed=1)
    for index, root in enumerate(('gt', 'lq')):
        write_photos(tmp_path / root, 2, seed=2 + index)
        write_lmdb(tmp_path / root, tmp_path / f'{root}.lmdb')
    options = synthetic(tmp_path, name='mixture', type='MixedDegradationDataset')
    del options['dataroot_gt'], options['degradations']

    def part(kind: str, name: str, root: str, **keys) -> dict:
        keys |= {'type': f'{kind}DegradationDataset', 'degradation_name': name}
        return {'dataroot_gt': str(tmp_path / root), **keys}

    noise, blur = {'type': 'gaussian_noise', 'sigma': 25}, {'type': 'gaussian_blur', 'sigma': 2}
    lmdb = {'dataroot_lq': str(tmp_path / 'lq.lmdb'), 'io_backend': {'type': 'lmdb'}}
    sets = [
        part('Synthetic', 'noise', 'six', degradations=[noise]),
        part('Paired', 'rain', 'gt.lmdb', **lmdb),
        part('Synthetic', 'blur', 'three', degradations=[blur]),
    ]
    return options | {'degradation_names': NAMES, 'sets': sets}


def test_every_item_carries_its_class_by_the_explicit_order(mixture):
    dataset = build_dataset(mixture)
    items = [dataset[i] for i in range(len(dataset))]
    assert [item['degradation'] for item in items] == [0] * 6 + [1] * 2 + [2] * 3
    assert all(NAMES[item['degradation']] == item['degradation_name'] for item in items)
    other_order = build_dataset(mixture | {'degradation_names': NAMES[::-1]})
    assert [other_order[i]['degradation'] for i in (0, 6, 8)] == [2, 1, 0]
    for item in items:
        assert set(item) == {'lq', 'gt', 'lq_path', 'gt_path', 'degradation', 'degradation_name'}
        assert item['lq'].shape == item['gt'].shape == (3, 16, 16)
        assert item['lq'].dtype == item['gt'].dtype == torch.float32
        assert 0 <= item['lq'].min() <= item['lq'].max() <= 1
    assert items[6]['gt_path'] == 'img_0'
    spawned = pickle.loads(pickle.dumps(dataset))  # as loaders send it to their processes
    assert spawned[6]['gt_path'] == 'img_0'


def test_repeat_factors_compose_the_epoch_of_every_image(mixture):
    for entry, repeat in zip(mixture['sets'], (1, 4, 2), strict=True):
        entry['repeat'] = repeat
    seen = Counter((item['degradation_name'], item['gt_path']) for item in build_dataset(mixture))
    assert len(seen) == 6 + 2 + 3
    times = {(name, count) for (name, _), count in seen.items()}
    assert times == {('noise', 1), ('rain', 4), ('blur', 2)}
    options = {**mixture, 'phase': 'val', 'gt_size': None}
    assert [*refusals(options)] == ['sets.1.repeat']  # pairs are the same every time
    options['sets'][1]['repeat'] = 1
    options['sets'][0]['repeat'] = 400  # as in the training
    assert [*refusals(options)] == ['sets.0.repeat']
    options['sets'][0]['repeat'] = 1
    dataset = build_dataset(options)
    firsts = [*range(6), 6, 7, 8, 9, 10, 8, 9, 10]  # six of noise, two of rain, twice three of blur
    assert [dataset.first_draw_of(index) for index in range(len(dataset))] == firsts


def test_sets_inherit_common_keys_and_may_override_them(mixture):
    mixture['sets'][0]['use_hflip'] = False
    mixture['use_hflip'] = True
    mixture['seed'] = 7
    dataset = build_dataset(mixture)
    assert [part.options.use_hflip for part in dataset.sets] == [False, True, True]
    assert [part.options.seed for part in dataset.sets] == [7, 7, 7]
    typed = read(type(dataset).Options, mixture | {'io_backend': {'type': 'lmdb'}}, 'x')
    assert [part.io_backend.type for part in typed.sets] == ['lmdb'] * 3


@pytest.mark.parametrize(('place', 'value', 'key', 'words'), [
    ('sets.0.degradation_name', 'nois', '', "Did you mean 'noise'"),
    ('sets.2.degradation_name', None, '', 'is missing'),
    ('sets.1.type', 'PairedImageDataset', '', 'PairedDegradationDataset'),
    ('sets.1.type', None, '', 'must be the class of the set'),
    ('sets.1', 'rain', '', 'must be a mapping'),
    ('sets.1.repeat', 1e30, '', 'at most 10000000'),  # no index counts so far
    ('sets.0.num_worker_per_gpu', 1, '', 'but of the mixture'),
    ('sets.0.dataroot_gt', 'nowhere', '', 'no such folder'),
    ('degradation_name', 'noise', '', 'is not an option'),
    ('sets.1.weight', 2, '', 'repeat factor'),
    ('gt_size', None, 'sets.0.gt_size sets.1.gt_size sets.2.gt_size', 'is missing'),
])  # fmt: skip
def test_bad_mixtures_are_refused_with_place_and_remedy(mixture, place, value, key, words):
    assert refusals(mixture) == {}
    found = refusals(put(mixture, place, DELETE if value is None else value))
    assert list(found) == (key or place).split()
    assert words in ' '.join(found.values())


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


@pytest.mark.parametrize(('names', 'words'), [
    (['a.png', 'a.jpg'], "a.jpg and a.png would both have the key 'a'"),
    (['a.v1.png', 'a_v1.png'], "the key 'a_v1'"), (['x' * 512 + '.png'], '512 bytes'),
    ([' a.png'], 'space'),
])  # fmt: skip
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
