"""What the released option files of Restormer and NAFNet say, as far as this package has the nets.

The keys and values are facts about those projects (13 files of Restormer; the 10 of NAFNet's that
name NAFNet or NAFNetLocal); the files are made anew from them.
"""

from typing import Any

_WANDB = {'project': None, 'resume_id': None}
_DIST = {'backend': 'nccl', 'port': 29500}
_PATH = {'pretrain_network_g': None, 'strict_load_g': True, 'resume_state': None}
_PROGRESSIVE = {
    'mini_batch_sizes': [8, 5, 4, 2, 1, 1], 'iters': [92000, 64000, 48000, 36000, 36000, 24000],
    'gt_size': 384, 'gt_sizes': [128, 160, 192, 256, 320, 384],
}  # fmt: skip


def restormer_files() -> dict[str, dict]:
    crops = {'gt': 'target_crops', 'lqL': 'inputL_crops', 'lqR': 'inputR_crops'}
    splits = {split: f'{split}/DPDD' for split in ('train', 'val')}
    dual = _sections('Dataset_DefocusDeblur_DualPixel_16bit', 'Defocus_Deblurring', splits, **crops)
    files = {
        'RealDenoising': _restormer(_pairs('Denoising', 'SIDD'), 'BiasFree', mixup=True),
        'Deraining': _restormer(_pairs('Deraining', 'Rain13K', 'Rain100L'), y_channel=True),
        'Deblurring': _restormer(_pairs('Motion_Deblurring', 'GoPro'), use_image=True),
        'DefocusDeblur_Single_8bit': _restormer(_pairs('Defocus_Deblurring', 'DPDD')),
        'DefocusDeblur_DualPixel_16bit': _restormer(dual, channels=6),
    }
    for channels, colour in ((3, 'Color'), (1, 'Gray')):
        for sigma in (15, 25, 50, None):
            name = f'Gaussian{colour}Denoising_Sigma{sigma or ""}'
            data = _noise(channels, sigma)
            files[name] = _restormer(data, 'BiasFree', channels=channels, mixup=True)
    return files


def _restormer(
    data: dict,
    norm: str = 'WithBias',
    *,
    channels: int = 3,
    mixup: bool = False,
    use_image: bool = False,
    y_channel: bool = False,
) -> dict[str, Any]:
    loading = {'use_shuffle': True, 'num_worker_per_gpu': 8, 'batch_size_per_gpu': 8}
    train = {**data['train'], 'geometric_augs': True, 'filename_tmpl': '{}'}
    train |= {'io_backend': {'type': 'disk'}, **loading, **_PROGRESSIVE}
    train |= {'dataset_enlarge_ratio': 1, 'prefetch_mode': None}
    return {
        'name': 'restormer',
        'model_type': 'ImageCleanModel',
        'scale': 1,
        'num_gpu': 8,
        'manual_seed': 100,
        'datasets': {
            'train': {'name': 'TrainSet', **train},
            'val': {'name': 'ValSet', **data['val'], 'io_backend': {'type': 'disk'}},
        },
        'network_g': {
            'type': 'Restormer', 'inp_channels': channels, 'out_channels': min(channels, 3),
            'dim': 48, 'num_blocks': [4, 6, 6, 8], 'num_refinement_blocks': 4,
            'heads': [1, 2, 4, 8], 'ffn_expansion_factor': 2.66, 'bias': False,
            'LayerNorm_type': norm, 'dual_pixel_task': channels == 6,
        },
        'path': dict(_PATH),
        'train': {
            'total_iter': 300000, 'warmup_iter': -1, 'use_grad_clip': True,
            'scheduler': {
                'type': 'CosineAnnealingRestartCyclicLR', 'periods': [92000, 208000],
                'restart_weights': [1, 1], 'eta_mins': [0.0003, 0.000001],
            },
            'mixing_augs': {'mixup': mixup, 'mixup_beta': 1.2, 'use_identity': True},
            'optim_g': {'type': 'AdamW', 'lr': 3e-4, 'weight_decay': 1e-4, 'betas': [0.9, 0.999]},
            'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1, 'reduction': 'mean'},
        },
        'val': {
            'window_size': 8, 'val_freq': 4e3, 'save_img': False, 'rgb2bgr': True,
            'use_image': use_image or y_channel, 'max_minibatch': 8,
            'metrics': {
                'psnr': {'type': 'calculate_psnr', 'crop_border': 0, 'test_y_channel': y_channel}
            },
        },
        'logger': {
            'print_freq': 1000, 'save_checkpoint_freq': 4e3, 'use_tb_logger': True, 'wandb': _WANDB,
        },
        'dist_params': _DIST,
    }  # fmt: skip


def _pairs(task: str, train: str, val: str | None = None) -> dict[str, dict]:
    places = {'train': f'train/{train}', 'val': f'test/{val or train}'}
    return _sections('Dataset_PairedImage', task, places, gt='target', lq='input')


def _sections(kind: str, task: str, places: dict[str, str], **folders: str) -> dict[str, dict]:
    return {
        split: {'type': kind}
        | {f'dataroot_{key}': f'./{task}/Datasets/{place}/{f}' for key, f in folders.items()}
        for split, place in places.items()
    }


def _noise(channels: int, sigma: int | None) -> dict[str, dict]:
    common = {'type': 'Dataset_GaussianDenoising', 'in_ch': channels, 'dataroot_lq': 'none'}
    kind, levels = ('constant', sigma) if sigma else ('random', [0, 50])
    train = {'sigma_type': kind, 'sigma_range': levels}
    test = 'CBSD68' if channels == 3 else 'BSD68'
    return {
        'train': {**common, **train, 'dataroot_gt': './Denoising/Datasets/train/DFWB'},
        'val': {
            **common, 'sigma_test': sigma or 25, 'dataroot_gt': f'./Denoising/Datasets/test/{test}',
        },
    }  # fmt: skip


def nafnet_files() -> dict[str, dict]:
    """The option dicts by name; those that end in ``test`` have no training."""
    files = {}
    for data, width in (('GoPro', 32), ('GoPro', 64), ('SIDD', 32), ('SIDD', 64), ('REDS', 64)):
        files[f'{data}{width}'], files[f'{data}{width}_test'] = _nafnet(data, width)
    return files


def _nafnet(data: str, width: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A training, and the test of its published weights."""
    sidd, (size, total) = data == 'SIDD', (8, 400000) if width == 64 else (4, 200000)
    blocks = ([2, 2, 4, 8], 12, [2, 2, 2, 2]) if sidd else ([1, 1, 1, 28], 1, [1] * 4)
    common = {
        'name': 'nafnet', 'model_type': 'ImageRestorationModel', 'scale': 1, 'manual_seed': 10,
        'network_g': {
            'type': 'NAFNet' if sidd else 'NAFNetLocal', 'width': width, 'enc_blk_nums': blocks[0],
            'middle_blk_num': blocks[1], 'dec_blk_nums': blocks[2],
        },
        'dist_params': _DIST,
    }  # fmt: skip
    train, val = (
        {
            'name': f'{data}-{split}', 'type': 'PairedImageDataset', 'io_backend': {'type': 'lmdb'},
            'dataroot_gt': f'./datasets/{data}/{split}/gt.lmdb',
            'dataroot_lq': f'./datasets/{data}/{split}/input.lmdb',
        }
        for split in ('train', 'val')
    )  # fmt: skip
    loading = {'use_shuffle': True, 'num_worker_per_gpu': size, 'batch_size_per_gpu': size}
    train |= {'filename_tmpl': '{}', 'gt_size': 256, 'use_flip': not sidd, 'use_rot': not sidd}
    train |= {**loading, 'dataset_enlarge_ratio': 1, 'prefetch_mode': None}
    of_all = {'crop_border': 0, 'test_y_channel': False}
    validation = {'save_img': False, **({'use_image': False} if sidd else {})}
    validation['metrics'] = {n: {'type': f'calculate_{n}', **of_all} for n in ('psnr', 'ssim')}
    decay = 0.0 if sidd else 1e-3
    training = {
        'num_gpu': 8, 'datasets': {'train': train, 'val': val}, 'path': dict(_PATH),
        'train': {
            'optim_g': {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': decay, 'betas': [0.9, 0.9]},
            'scheduler': {'type': 'TrueCosineAnnealingLR', 'T_max': total, 'eta_min': 1e-7},
            'total_iter': total, 'warmup_iter': -1,
            'pixel_opt': {'type': 'PSNRLoss', 'loss_weight': 1, 'reduction': 'mean'},
        },
        'val': {'val_freq': 2e4, **validation},
        'logger': {
            'print_freq': 200, 'save_checkpoint_freq': 5e3, 'use_tb_logger': True, 'wandb': _WANDB,
        },
    }  # fmt: skip
    weights = f'experiments/pretrained_models/NAFNet-{data}-width{width}.pth'
    test = {
        'num_gpu': 1, 'datasets': {'val' if sidd else 'test': val},
        'val': {'grids': False, **validation},
        'path': {**_PATH, 'pretrain_network_g': weights},
    }  # fmt: skip
    return {**common, **training}, {**common, **test}
