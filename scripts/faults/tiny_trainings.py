"""Trainings of a few seconds that exercise everything a checkpoint has to hold."""

from pathlib import Path

import cv2
import numpy as np
import yaml

UNFOLDLDM = {
    'type': 'UnfoldLDM', 'dim': 8, 'num_blocks': [1, 1, 1], 'heads': [0, 0, 2], 'num_stages': 2,
    'mgda_dim': 8, 'mgda_d_state': 2, 'embed_dim': 8, 'prior_dim': 8, 'prior_width': 8,
    'prior_encoder_blocks': 1, 'denoiser_dim': 16,
}  # fmt: skip
VLUNET = {
    'type': 'VLUNet', 'de_dim': 4, 'dim': 10, 'num_blocks': [1, 1, 1, 1],
    'num_refinement_blocks': 1, 'heads': [1, 1, 1, 1], 'embed_dim': 8,
}  # fmt: skip
NAFNET = {
    'type': 'NAFNet', 'width': 4, 'middle_blk_num': 1, 'enc_blk_nums': [1], 'dec_blk_nums': [1]
}  # fmt: skip
MODELS = ('phase1', 'phase2', 'vlunet', 'nafnet')
NOISE = {'type': 'gaussian_noise', 'sigma': [5, 50]}
BLUR = {'type': 'gaussian_blur', 'sigma': [0.5, 2.0]}


def write_project(folder: Path, model: str, *, iterations: int = 40, workers: int = 1) -> Path:
    """Writes photos, what the ``model`` starts from, and ``run.yml`` with absolute paths.

    There is a checkpoint every 5 iterations and a validation every 10; ``workers`` of each rank.
    """
    folder = folder.resolve()
    _write_photos(folder / 'photos')
    options = _options(folder, iterations, workers)
    if model == 'vlunet':
        _make_vlunet(options)
    elif model == 'phase2':
        _make_phase2(options, folder)
    elif model == 'nafnet':
        options.update(model_type='RestorationModel', network_g=dict(NAFNET))
        options['train']['accum_iter'] = 2
        del options['train']['isda_opt']
    file = folder / 'run.yml'
    file.write_text(yaml.safe_dump(options, sort_keys=False), encoding='utf-8')
    return file


def _write_photos(folder: Path, count: int = 5) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for index in range(count):
        coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        photo = cv2.resize(coarse, (32, 24), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f'photo_{index}.png'), photo)


def _options(folder: Path, iterations: int, workers: int) -> dict:
    data = {
        'type': 'SyntheticDegradationDataset',
        'dataroot_gt': str(folder / 'photos'),
        'degradations': [NOISE],
    }
    loading = {'gt_size': 16, 'batch_size_per_gpu': 2, 'num_worker_per_gpu': workers, 'repeat': 3}
    return {
        'name': 'run',
        'model_type': 'UnfoldLDMPhase1Model',
        'num_gpu': 0,
        'manual_seed': 1,
        'datasets': {'train': {**data, **loading}, 'val': {**data, 'name': 'held_out'}},
        'network_g': {**UNFOLDLDM, 'phase': 1},
        'path': {},
        'train': {
            'total_iter': iterations,
            'warmup_iter': 4,
            'ema_decay': 0.9,
            'optim_g': {'type': 'AdamW', 'lr': 1e-3},
            'scheduler': {'type': 'TrueCosineAnnealingLR', 'T_max': iterations, 'eta_min': 1e-6},
            'use_grad_clip': True,
            'grad_clip_norm': 0.1,
            'pixel_opt': {'type': 'L1Loss'},
            'isda_opt': {'type': 'ISDALoss'},
        },
        'val': {'val_freq': 10, 'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 0}}},
        'logger': {'print_freq': 1, 'save_checkpoint_freq': 5, 'keep_best': True},
    }


def _make_phase2(options: dict, folder: Path) -> None:
    from unfoldldm_basicsr.archs.unfoldldm_arch import UnfoldLDM
    from unfoldldm_basicsr.training.checkpointer import save_atomic
    from unfoldldm_basicsr.weights.checkpoint import network_meta

    weights = folder / 'phase1.pth'
    if not weights.exists():
        arguments = {k: v for k, v in options['network_g'].items() if k != 'type'}
        state = UnfoldLDM(**arguments).state_dict()
        content = {'params': state, 'params_ema': state, 'arch': network_meta(options['network_g'])}
        save_atomic(content, weights)
    options['model_type'] = 'UnfoldLDMPhase2Model'
    options['network_g'] = {**UNFOLDLDM, 'phase': 2}
    options['path'] = {'pretrain_network_phase1': str(weights)}
    options['train']['diffusion_opt'] = {'type': 'LatentDiffusionLoss'}
    options['train']['prior_warmup_iter'] = 3 * options['train']['total_iter'] // 10
    options['train']['grad_clip_norm'] = {'restoration': 0.1, 'prior': 1.0}


def _make_vlunet(options: dict) -> None:
    options['model_type'] = 'VLUNetModel'
    options['network_g'] = dict(VLUNET)
    options['network_e'] = {'type': 'LearnedDegradationEmbedding', 'embed_dim': 8, 'width': 4}
    del options['train']['isda_opt']
    names = ['noise', 'blur']
    for section in options['datasets'].values():
        source = section.pop('dataroot_gt')
        kind, _ = section.pop('type'), section.pop('degradations')
        repeat = {'repeat': section.pop('repeat')} if 'repeat' in section else {}
        section.update(type='MixedDegradationDataset', degradation_names=names)
        own = {'type': kind, 'dataroot_gt': source, **repeat}
        section['sets'] = [
            {**own, 'degradation_name': name, 'degradations': [step]}
            for name, step in zip(names, (NOISE, BLUR), strict=True)
        ]
