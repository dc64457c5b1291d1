"""All-in-one mixtures: labels, composition of the epoch, checks."""

import pickle
from collections import Counter

import pytest
from basicsr.data import build_dataset
from dataset_options import refusals, synthetic
from helpers import DELETE, put, write_photos

from unfoldldm_basicsr.common.declaration import read
from unfoldldm_basicsr.preparing.lmdb_writer import write_lmdb

NAMES = ['noise', 'rain', 'blur']


@pytest.fixture
def mixture(tmp_path) -> dict:
    """Noise on 6 photos from a folder, rain pairs from an LMDB (2), blur on 3 photos."""
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
        assert item['lq'].shape == item['gt'].shape == (3, 16, 16)
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
    typed = read(type(dataset).Options, mixture | {'io_backend': {'type': 'lmdb'}})
    assert [part.io_backend.type for part in typed.sets] == ['lmdb'] * 3


@pytest.mark.parametrize(
    ('place', 'value', 'key', 'words'),
    [
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
    ],
)
def test_bad_mixtures_are_refused_with_place_and_remedy(mixture, place, value, key, words):
    assert refusals(mixture) == {}
    found = refusals(put(mixture, place, DELETE if value is None else value))
    assert list(found) == (key or place).split()
    assert words in ' '.join(found.values())
