"""The option files at published settings train: through the real trainer, only made smaller."""

from __future__ import annotations

import math
import re

import pytest
import torch
from helpers import put
from published_data import build_datasets, load_options
from vlunet_runs import EMBED_DIM, TINY_CLIP

NO_WORKERS = {
    'num_gpu': 0,
    'datasets.train.num_worker_per_gpu': 0,
    'datasets.train.persistent_workers': False,
    'datasets.train.pin_memory': False,
    'train.total_iter': 3,
    'val.val_freq': 3,
    'logger.print_freq': 1,
    'logger.save_checkpoint_freq': 1,
    'logger.use_tb_logger': False,
}
RUNS = {
    'Restormer/denoise.yml': {
        'network_g.dim': 8,
        'network_g.num_blocks': [1, 1, 1, 1],
        'network_g.num_refinement_blocks': 1,
        'datasets.train.gt_size': 32,
        'datasets.train.batch_size_per_gpu': 3,
        'train.progressive.iters': [1, 1, 1],
        'train.progressive.gt_sizes': [16, 24, 32],
        'train.progressive.mini_batch_sizes': [3, 2, 1],
    },
    'VLUNet/nhr.yml': {
        'network_g.dim': 10,
        'network_g.num_blocks': [1, 1, 1, 1],
        'network_g.num_refinement_blocks': 1,
        'network_g.heads': [1, 1, 1, 1],
        'network_g.embed_dim': EMBED_DIM,
        'network_e.pretrained': None,
        'network_e.clip_config': TINY_CLIP,
        'path.pretrain_network_e': None,
        'datasets.train.gt_size': 32,
        'datasets.train.batch_size_per_gpu': 2,
        'train.warmup_iter': 1,
        'train.scheduler.constant_iter': 1,
    },
}
RATES = {
    'Restormer/denoise.yml': [3e-4] * 3,
    'VLUNet/nhr.yml': [2e-4, 2e-4, 1e-4],
}


@pytest.mark.parametrize('name', RUNS)
def test_option_file_trains_validates_and_saves(name, tmp_path, run_here):
    options = load_options(f'train/{name}')
    for path, value in {**NO_WORKERS, **RUNS[name]}.items():
        options = put(options, path, value)
    build_datasets(tmp_path, options)
    text = run_here(options)
    losses = [float(value) for value in re.findall(r' l_pix: (\S+)', text)]
    assert len(losses) == 3
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    rates = [float(value) for value in re.findall(r'lr:\(([\d.e+-]+),', text)]
    assert rates == pytest.approx(RATES[name], rel=1e-3)
    for metric in options['val']['metrics']:
        values = re.findall(rf'# {metric}: (\S+)', text)
        assert values
        assert all(math.isfinite(float(value)) for value in values)
    if name.startswith('VLUNet'):
        for degradation in options['datasets']['train']['degradation_names']:
            assert re.search(rf'^\s+{degradation}\s.*\d\.\d', text, re.M)

    models = tmp_path / 'experiments' / options['name'] / 'models'
    first, last = (
        torch.load(models / f'net_g_{i}.pth', weights_only=True)['params'] for i in (1, 3)
    )
    changed = [not torch.equal(first[key], last[key]) for key in first]
    assert sum(changed) > 0.9 * len(changed)
