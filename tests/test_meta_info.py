"""Lists of pairs for data sets whose degraded and clean images have different names."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from basicsr.data import build_dataset
from dataset_options import paired
from helpers import ROOT, write_photos

from unfoldldm_basicsr.data.listing import read_meta_info
from unfoldldm_basicsr.preparing.lmdb_writer import write_lmdb

spec = importlib.util.spec_from_file_location(
    'make_meta_info', ROOT / 'scripts' / 'data' / 'make_meta_info.py'
)
make_meta_info = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_meta_info)


def write_named(folder, *names, seed=0):
    """Different photos under these names."""
    for index, name in enumerate(names):
        (photo,) = write_photos(folder, 1, seed=seed + index)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        photo.rename(folder / name)


def make_list(tmp_path, gt, lq, *options):
    output = tmp_path / 'lists' / 'pairs.txt'
    status = make_meta_info.main([str(gt), str(lq), '-o', str(output), *options])
    return status, read_meta_info(output) if output.is_file() else None


@pytest.mark.parametrize(
    ('rule', 'gt', 'lq'),
    [
        ('same', 'a/1.png', 'a/1.png'),
        ('rain100l', 'norain-10x2.png', 'rain-10x2.png'),
        ('reside', '0025.png', 'part1/0025_0.8_0.12.png'),
        ('gopro', 'GOPR0372_07_00/sharp/000047.png', 'GOPR0372_07_00/blur/000047.png'),
    ],
)
def test_rule_finds_the_clean_image_by_the_published_names(tmp_path, rule, gt, lq):
    both = tmp_path / 'train' if rule == 'gopro' else None
    write_named(both or tmp_path / 'gt', gt)
    write_named(both or tmp_path / 'lq', lq)
    status, pairs = make_list(
        tmp_path, both or tmp_path / 'gt', both or tmp_path / 'lq', '--rule', rule
    )
    assert (status, pairs) == (0, [(gt, lq)])


def test_gopro_leaves_the_gamma_corrected_frames_out(tmp_path):
    folders = [f'S/{kind}/1.png' for kind in ('blur', 'blur_gamma', 'sharp')]
    write_named(tmp_path / 'train', *folders)
    _, pairs = make_list(tmp_path, tmp_path / 'train', tmp_path / 'train', '--rule', 'gopro')
    assert pairs == [('S/sharp/1.png', 'S/blur/1.png')]


def test_many_hazy_images_share_a_clean_one_in_folders_and_lmdbs(tmp_path):
    """The data set gives each hazy image with its own clean one, from either kind of root."""
    hazy = [f'part{i}/{clear}_0.{i}_0.1.png' for i in (1, 2) for clear in ('0025', '0039')]
    write_named(tmp_path / 'clear', '0025.png', '0039.png')
    write_named(tmp_path / 'hazy', *hazy, seed=10)
    write_lmdb(tmp_path / 'clear', tmp_path / 'clear.lmdb')
    renames = [('^.*/', ''), (r'\.', '_')]
    write_lmdb(tmp_path / 'hazy', tmp_path / 'hazy.lmdb', renames=renames)
    found = []
    for ending in ('', '.lmdb'):
        gt, lq = tmp_path / f'clear{ending}', tmp_path / f'hazy{ending}'
        status, pairs = make_list(tmp_path, gt, lq, '--rule', 'reside')
        assert status == 0
        assert len(pairs) == 4
        data = paired(gt, lq, 'val', meta_info_file=str(tmp_path / 'lists' / 'pairs.txt'))
        dataset = build_dataset(data)
        items = [dataset[index] for index in range(len(dataset))]
        assert len({item['gt_path'] for item in items}) == 2
        for item in items:
            name = item['lq_path'].rsplit('/')[-1]
            assert item['gt_path'].endswith((f'{name[:4]}.png', name[:4]))
        found.append({item['lq'].numpy().tobytes(): item['gt'].numpy() for item in items})
    folder, lmdb = found
    assert folder.keys() == lmdb.keys()
    assert all(np.array_equal(folder[key], lmdb[key]) for key in folder)


def test_a_rule_of_your_own_replaces_part_of_the_name(tmp_path):
    write_named(tmp_path / 'gt', 'a.png')
    write_named(tmp_path / 'lq', 'a_noisy.png')
    _, pairs = make_list(tmp_path, tmp_path / 'gt', tmp_path / 'lq', '--gt-name', '_noisy$', '')
    assert pairs == [('a.png', 'a_noisy.png')]


def test_what_cannot_be_paired_is_named_and_nothing_is_written(tmp_path, capsys):
    write_named(tmp_path / 'gt', '1.png')
    write_named(tmp_path / 'lq', '1.png', '2.png')
    assert make_list(tmp_path, tmp_path / 'gt', tmp_path / 'lq') == (1, None)
    assert '1 of 2 degraded images have no clean one, the first is 2.png' in capsys.readouterr().err
    assert make_list(tmp_path, tmp_path / 'gt', tmp_path / 'lq', '--rule', 'gopro') == (1, None)
    assert 'no name of a degraded image matches' in capsys.readouterr().err
    write_named(tmp_path / 'gt', '2.png')
    (tmp_path / 'gt' / '2.jpg').write_bytes((tmp_path / 'gt' / '2.png').read_bytes())
    assert make_list(tmp_path, tmp_path / 'gt', tmp_path / 'lq') == (1, None)
    assert '2.png could belong to 2.jpg or 2.png' in capsys.readouterr().err


def test_a_faulty_pattern_is_a_usage_error(tmp_path):
    with pytest.raises(SystemExit) as caught:
        make_meta_info.main(['a', 'b', '-o', 'c', '--gt-name', '(', ''])
    assert caught.value.code == 2
