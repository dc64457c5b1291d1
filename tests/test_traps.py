"""Traps of BasicSR 1.4.2 that ruin a run without an error: metrics, its own models, LMDBs, files.

docs/compatibility.md lists all of them with the tests of each.
"""

import math
import re
import time
from pathlib import Path
from types import SimpleNamespace

import basicsr.metrics
import numpy as np
import pytest
import torch
import yaml
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import ARCH_REGISTRY
from helpers import ROOT, for_test, image_of, model_options, problems_at, put, warnings_at
from torch import nn

from unfoldldm_basicsr.common.errors import RunFailure
from unfoldldm_basicsr.common.option_files import OptionLoader
from unfoldldm_basicsr.data.paired_degradation_dataset import match_names
from unfoldldm_basicsr.data.sources import close_lmdbs
from unfoldldm_basicsr.options.preflight import examine
from unfoldldm_basicsr.preparing.lmdb_writer import write_lmdb


def test_the_list_of_traps_names_tests_that_exist():
    text = (ROOT / 'docs' / 'compatibility.md').read_text(encoding='utf-8')
    named = set(re.findall(r'`(test_\w+)`', text))
    written = {
        name
        for file in (ROOT / 'tests').glob('test_*.py')
        for name in re.findall(r'^def (test_\w+)', file.read_text(encoding='utf-8'), re.MULTILINE)
    }
    assert len(named) > 80
    assert sorted(named - written) == []
    assert all((ROOT / file).is_file() for file in re.findall(r'`(tests/\w+\.py)`', text))
    assert all(re.search(rf'^\| S{n} ', text, re.MULTILINE) for n in range(1, 13))


PSNR = {'type': 'calculate_psnr', 'crop_border': 0}
SSIM = {'type': 'calculate_ssim', 'crop_border': 0}
NIQE = {'type': 'calculate_niqe', 'crop_border': 0}


def measure(options: dict, *images: np.ndarray, stock: bool = False) -> float:
    data = dict(zip(('img', 'img2'), images, strict=False))
    function = basicsr.metrics.calculate_metric
    return float((function.replaces if stock else function)(data, options))


@pytest.mark.parametrize('options', [PSNR | {'crop_border': 2}, SSIM], ids=['psnr', 'ssim'])
def test_a_grey_image_has_no_order_of_channels(options):
    pair, first = (image_of((20, 24)), image_of((20, 24), seed=1)), {'input_order': 'CHW'}
    expected = measure(options, *pair, stock=True)
    assert measure(options, *pair) == expected
    with np.errstate(all='ignore'):
        assert measure(options | first, *pair, stock=True) != expected  # the trap
    assert measure(options | first, *pair) == expected


@pytest.mark.parametrize(('options', 'shape', 'says'), [
    (SSIM, (10, 24, 3), 'at least 11 x 11'),
    (SSIM | {'crop_border': 8}, (24, 24, 3), '8 x 8 pixels are left'),
    (PSNR | {'crop_border': 12}, (24, 24, 3), '0 x 0 pixels are left'),
    (NIQE, (96, 191, 3), 'less than two squares'),
    ({'type': 'calculate_uciqe'}, (24, 24), 'colour'),
    ({'type': 'calculate_uiqm'}, (24, 24, 1), 'colour'),
    ({'type': 'calculate_lpips'}, (24, 24), 'colour'),
    ({'type': 'calculate_pyiqa', 'metric': 'dists'}, (24, 24, 1), 'colour'),
])  # fmt: skip
def test_an_undefined_value_is_nan_with_its_reason(options, shape, says, log):
    images = [image_of(shape, seed=s) for s in range(1 if options is NIQE else 2)]
    assert math.isnan(measure(options, *images))
    assert f'{options["type"]} is undefined: ' in log.text
    assert says in log.text


@pytest.mark.parametrize(('shape', 'kind'), [((20, 24, 3), np.float32), ((20, 24, 2), np.uint8)])
def test_floats_and_other_channels_are_measured_as_by_basicsr(shape, kind):
    images = [image_of(shape, seed=seed).astype(kind) for seed in range(2)]
    for options in (PSNR, SSIM):
        assert measure(options, *images) == measure(options, *images, stock=True)


def test_niqe_of_a_flat_image_ends_no_training():
    flat = np.full((200, 200, 3), 128, np.uint8)
    with pytest.raises(np.linalg.LinAlgError), np.errstate(all='ignore'):
        measure(NIQE, flat, stock=True)  # the trap
    assert math.isnan(measure(NIQE, flat))


@pytest.mark.parametrize(('images', 'options', 'says'), [
    ([image_of((20, 24, 3)) / 255] * 2, PSNR, 'in 0..255, got float64 up to 1'),
    ([image_of((20, 24, 3)).astype(np.uint16)] * 2, SSIM, 'got 16 bit'),
    ([torch.zeros(3, 20, 24)] * 2, PSNR, 'got Tensor'),
    ([image_of((3, 20, 24))] * 2, PSNR, 'in the order HWC'),
    ([image_of((20, 24, 3))] * 2, SSIM | {'input_order': 'CHW'}, 'in the order CHW'),
    ([image_of((20, 24, 3)), image_of((20, 25, 3))], PSNR, 'differ in size'),
])  # fmt: skip
def test_images_and_arguments_that_would_give_nonsense_are_refused(images, options, says):
    with pytest.raises(ValueError, match=says):
        measure(options, *images)


class Normalised(nn.Sequential):
    def __init__(self, num_in_ch: int = 3):
        super().__init__(nn.Conv2d(num_in_ch, 48, 1), nn.BatchNorm2d(48), nn.PixelShuffle(4))


@pytest.fixture
def normalised(stock, monkeypatch):
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'Normalised', Normalised)
    return put(stock, 'network_g', {'type': 'Normalised'})


def test_a_stock_model_stops_at_a_loss_that_is_not_finite(tmp_path):
    options = model_options(tmp_path, {'type': 'MSRResNet', 'num_feat': 4, 'num_block': 1})
    options['train']['optim_g'] = {'type': 'Adam', 'lr': 1e-3}
    model = SRModel(options | {'scale': 4})
    model.feed_data({'lq': torch.rand(1, 3, 4, 4), 'gt': torch.full((1, 3, 16, 16), math.nan)})
    with pytest.raises(RunFailure, match='l_pix not finite'):
        model.optimize_parameters(1)
    assert BaseModel.reduce_loss_dict(model, {'l_pix': torch.tensor(0.5)}) == {'l_pix': 0.5}


def test_a_warmup_that_would_freeze_the_rate_is_warned_of(stock):
    stock = put(stock, 'train.warmup_iter', 5)
    assert 'never leave 4/5 of the learning rate' in warnings_at(stock, 'train.warmup_iter')
    cosine = {'type': 'CosineAnnealingRestartLR', 'periods': [4]}
    assert problems_at(put(stock, 'train.scheduler', cosine), 'train.warmup_iter') == ''
    own = put(stock, 'model_type', 'RestorationModel')
    assert problems_at(own, 'train.warmup_iter', here=False).find('never leave') == -1


def test_an_average_without_running_statistics_is_warned_of(stock, normalised):
    normalised = put(normalised, 'train.ema_decay', 0.9)
    assert 'running statistics' in warnings_at(normalised, 'train.ema_decay')
    assert problems_at(put(stock, 'train.ema_decay', 0.9), 'train.ema_decay') == ''


def test_ranks_that_would_lose_step_are_refused(stock, normalised, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    ranks = {'launcher': 'pytorch'}
    assert 'lose step' in problems_at(normalised, 'train.ema_decay', **ranks)
    assert problems_at(stock, 'train.ema_decay', **ranks) == ''


def test_a_test_of_a_stock_model_needs_every_weight(stock, tmp_path):
    network = dict(stock['network_g'], num_block=2)
    net = ARCH_REGISTRY.get(network.pop('type'))(**network)
    state = {k: v for k, v in net.state_dict().items() if not k.startswith('body.1')}
    torch.save({'params': state}, tmp_path / 'part.pth')
    test = put(for_test(stock), 'network_g.num_block', 2)
    test['path'] = {'pretrain_network_g': str(tmp_path / 'part.pth'), 'strict_load_g': False}
    assert 'missing in the file' in problems_at(test, 'path.pretrain_network_g')


def test_the_loaders_of_other_libraries_stay_as_they_are():
    """BasicSR's reader adds its constructors to yaml's own loader, for every library."""
    assert yaml.load('a: 1e-4', Loader=OptionLoader) == {'a': 1e-4}
    assert yaml.safe_load('a: 1e-4') == {'a': '1e-4'}
    assert type(yaml.load('{a: 1}', Loader=yaml.CSafeLoader)) is dict


def test_a_network_without_end_is_refused_at_once(plugin, monkeypatch):
    monkeypatch.setattr('unfoldldm_basicsr.options.preflight._MODULES', 500)
    options = put(plugin, 'network_g.num_blocks', [10**9, 1, 1])
    found = problems_at(options, 'network_g', here=False)
    assert 'more than 500 modules' in found
    assert 'num_blocks: [1000000000, 1, 1]' in found


@pytest.fixture
def lmdb_options(tmp_path, plugin):
    """Stock and own data sets on LMDBs; the training set's is ``gt.lmdb``."""
    write_lmdb(tmp_path / 'clean', tmp_path / 'gt.lmdb')
    options = put(plugin, 'datasets.train.dataroot_gt', str(tmp_path / 'gt.lmdb'))
    return put(options, 'datasets.train.io_backend', {'type': 'lmdb'}), tmp_path / 'gt.lmdb'


def cut(root: Path) -> None:
    """LMDB reads through mapped memory: a missing page is a bus error, the end of the process."""
    file = root / 'data.mdb'
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def invent(root: Path) -> None:
    with (root / 'meta_info.txt').open('a') as meta:
        meta.write('zebra.png (64,64,3) 1\n')


@pytest.mark.parametrize(('damage', 'says'), [(cut, 'truncated'), (invent, "lacks 1 .*'zebra'")])
def test_a_damaged_lmdb_is_found_by_the_check(lmdb_options, damage, says):
    options, root = lmdb_options
    place = 'datasets.train.dataroot_gt'
    data = {k: v for k, v in options['datasets']['train'].items() if k != 'degradations'}
    data |= {'type': 'PairedImageDataset', 'dataroot_lq': str(root)}  # of BasicSR
    options = put(options, 'datasets.train', data | {'use_hflip': True, 'use_rot': True})
    assert problems_at(options, place) == ''
    close_lmdbs()
    damage(root)
    found = problems_at(options, place)
    assert 'gt.lmdb' in found
    assert re.search(says, found), found


def test_an_lmdb_that_lists_some_of_its_images_is_used(lmdb_options):
    options, root = lmdb_options
    meta = root / 'meta_info.txt'
    meta.write_text('\n'.join(meta.read_text().splitlines()[:-1]) + '\n')
    assert examine(options, 'x.yml', True).problems == []


def test_pairing_many_images_is_not_quadratic():
    """BasicSR looks every name up in a list: 14 s for 40000 pairs, hours for a million."""
    names = [f'{i:06d}.png' for i in range(40_000)]
    images = SimpleNamespace(names=names)
    start = time.process_time()
    assert match_names(images, images, '{}') == names
    assert time.process_time() - start < 3
