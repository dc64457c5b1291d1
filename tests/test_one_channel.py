"""Networks of one channel: trained, tested and used on grey files, through BasicSR's pipelines."""

import os
from pathlib import Path

import numpy as np
import pytest
from dataset_options import NOISE
from helpers import for_test, plugin_options, put, tiny_unfoldldm, write_photos
from PIL import Image
from tiny_vlunet import EMBEDDINGS, NETWORK

from unfoldldm_basicsr import cli
from unfoldldm_basicsr.common.cost import network_cost
from unfoldldm_basicsr.preparing.lmdb_writer import write_lmdb

ODD_NAME = b'/caf\xe9.png'  # a zip file made on Windows leaves such names
NETWORKS = {
    'NAFNet': {'img_channel': 1, 'width': 4, 'enc_blk_nums': [1], 'dec_blk_nums': [1]},
    'UnfoldLDM': tiny_unfoldldm(1, inp_channels=1),
    'VLUNet': {**NETWORK, 'inp_channels': 1, 'out_channels': 1},
}


def options_of(network: str, data: Path) -> dict:
    """A training on grey files, or on the luminance of colour files in an LMDB."""
    options = plugin_options(data)
    for phase, root in (('train', data / 'colour.lmdb'), ('val', data / 'grey')):
        backend = {'type': 'lmdb' if root.suffix else 'disk'}
        options['datasets'][phase] |= {'dataroot_gt': str(root), 'io_backend': backend}
        options['datasets'][phase] |= {'name': phase, 'color': 'grey', 'degradations': NOISE}
    options['datasets']['train']['gt_size'] = 16
    options |= {'name': 'grey', 'network_g': {'type': network, **NETWORKS[network]}, 'path': {}}
    schedule = {'type': 'MultiStepLR', 'milestones': [9]}
    options['train'] |= {'total_iter': 1, 'scheduler': schedule}
    options['val']['val_freq'] = options['logger']['save_checkpoint_freq'] = 1
    if network != 'UnfoldLDM':
        options['model_type'] = 'RestorationModel'
        del options['train']['isda_opt']
    if network == 'VLUNet':
        embedding = EMBEDDINGS['learned'] | {'in_channels': 1}
        options |= {'model_type': 'VLUNetModel', 'network_e': embedding}
        for section in options['datasets'].values():
            section |= {'degradation_names': ['noise'], 'degradation_name': 'noise'}
    return options


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('data')
    write_photos(root / 'colour', 2, (24, 32))
    write_lmdb(root / 'colour', root / 'colour.lmdb')
    (root / 'grey').mkdir()
    for path in (root / 'colour').iterdir():
        Image.open(path).convert('L').save(root / 'grey' / path.name)
    os.rename(root / 'grey' / 'img_1.png', os.fsencode(root / 'grey') + ODD_NAME)
    return root


@pytest.mark.parametrize('network', NETWORKS)
def test_a_network_of_one_channel_trains_tests_and_restores(network, data, tmp_path, run_here):
    assert network_cost({'type': network, **NETWORKS[network]}, 32).macs > 0
    options = options_of(network, data)
    assert 'psnr: ' in run_here(options)
    weights = tmp_path / 'experiments' / 'grey' / 'models' / 'net_g_1.pth'
    if network == 'UnfoldLDM':
        options = put(options, 'model_type', 'UnfoldLDMPhase2Model')
        options = put(options, 'network_g.phase', 2)
        options = put(options, 'train.diffusion_opt', {'type': 'LatentDiffusionLoss'})
        options = put(options, 'path.pretrain_network_phase1', str(weights))
        assert 'psnr: ' in run_here({**options, 'name': 'second'})
        weights = tmp_path / 'experiments' / 'second' / 'models' / 'net_g_1.pth'
        options['path'].clear()
    options = for_test(options) | {'path': {'pretrain_network_g': str(weights)}}
    options['val']['save_img'] = True
    assert 'psnr: ' in run_here(options, 'test')
    names = [os.fsencode(path) for path in (tmp_path / 'results').rglob('*.png')]
    assert any(b'/caf\xe9' in name for name in names)
    result = tmp_path / 'result.png'
    photo = data / 'grey' / 'img_0.png'
    assert cli.main(['restore', '-i', str(photo), '-o', str(result), '-w', str(weights)]) == 0
    found = np.asarray(Image.open(result))
    assert found.shape == (24, 32)
    assert not np.array_equal(found, np.asarray(Image.open(photo)))
