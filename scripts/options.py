"""Writes the option files of UnfoldLDM, Restormer and NAFNet from one table of tasks and methods.

    python scripts/options.py            # writes options/{train,test}/{UnfoldLDM,Restormer,NAFNet}
    python scripts/options.py --check    # says which files differ from the table; exit status 1

The files are ordinary BasicSR YAML; whoever trains edits a copy of one. What many of them share is
changed here. Files of VLU-Net and the smoke files are written by hand.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TRAIN = 'python -m unfoldldm_basicsr.train -opt {} --auto_resume'
TORCHRUN = (
    'torchrun --nproc_per_node={} -m unfoldldm_basicsr.train -opt {} --launcher pytorch '
    '--auto_resume'
)
TEST = 'python -m unfoldldm_basicsr.test -opt {}'


# ---- tasks --------------------------------------------------------------------------------------


class Images(NamedTuple):
    """Where pairs lie, and in which set (``unfoldldm prepare``)."""

    set: str
    part: str
    listed: bool = False  # many degraded images of a clean one


class Task(NamedTuple):
    """A task of the papers' tables.

    Attributes:
        title: for the first line of a file.
        train, tests: pairs; None and () for a task of its own kind.
        metrics: names in METRICS.
        small: images too small for patches of 384 and 512 pixels.
        unrounded: published figures are of results that nobody rounded to 8 bits.
    """

    title: str
    train: Images | None
    tests: tuple[Images, ...]
    metrics: str = 'psnr ssim'
    small: bool = True
    unrounded: bool = False


LOW_LIGHT = 'psnr ssim psnr_gt_mean ssim_gt_mean'
RAIN = 'psnr_y ssim_y psnr ssim'
TASKS = {
    'denoise': Task('blind Gaussian denoising (sigma 0 to 50)', None, (), small=False),
    'denoise_sidd': Task(
        'denoising of photos, SIDD',
        Images('SIDD', 'train'), (Images('SIDD', 'val'),), small=False, unrounded=True,
    ),
    'deblur_gopro': Task(
        'motion deblurring, GoPro',
        Images('GoPro', 'train'), (Images('GoPro', 'test'), Images('HIDE', 'test')), small=False,
    ),
    'derain_rain100l': Task(
        'deraining, Rain100L', Images('Rain100L', 'train'), (Images('Rain100L', 'test'),), RAIN
    ),
    'derain_rain13k': Task(
        'deraining, Rain13K',
        Images('Rain13K', 'train'),
        tuple(
            Images('Rain13K', part)
            for part in ('Rain100L', 'Rain100H', 'Test100', 'Test1200', 'Test2800')
        ),
        RAIN, small=False,
    ),
    'lowlight_lol_v1': Task(
        'low light, LOL-v1', Images('LOL-v1', 'train'), (Images('LOL-v1', 'test'),), LOW_LIGHT
    ),
    'lowlight_lol_v2_real': Task(
        'low light, LOL-v2 real',
        Images('LOL-v2-real', 'train'), (Images('LOL-v2-real', 'test'),), LOW_LIGHT,
    ),
    'lowlight_lol_v2_synthetic': Task(
        'low light, LOL-v2 synthetic',
        Images('LOL-v2-synthetic', 'train'), (Images('LOL-v2-synthetic', 'test'),), LOW_LIGHT,
    ),
    'underwater_uieb': Task(
        'underwater images, UIEB',
        Images('UIEB', 'train'), (Images('UIEB', 'test'),), 'psnr ssim uciqe uiqm',
    ),
    'backlit_baid': Task(
        'backlit images, BAID', Images('BAID', 'train'), (Images('BAID', 'test'),)
    ),
    'mixture': Task('noise, rain, haze, blur and low light in one network, blind', None, ()),
}  # fmt: skip
METRICS = {
    'psnr': '{type: calculate_psnr, crop_border: 0}',
    'ssim': '{type: calculate_ssim, crop_border: 0}',
    'psnr_y': '{type: calculate_psnr, crop_border: 0, test_y_channel: true}',
    'ssim_y': '{type: calculate_ssim, crop_border: 0, test_y_channel: true}',
    'psnr_gt_mean': '{type: calculate_psnr_gt_mean} # brightness matched to the truth',
    'ssim_gt_mean': '{type: calculate_ssim_gt_mean}',
    'uciqe': '{type: calculate_uciqe}',
    'uiqm': '{type: calculate_uiqm}',
}
CLASSES = ['noise15', 'noise25', 'noise50', 'rain', 'haze', 'blur', 'lowlight']
MIXED = {  # class -> training and test images, how often the training images count
    'rain': (Images('Rain100L', 'train'), Images('Rain100L', 'test'), 120),
    'haze': (Images('OTS', 'train', True), Images('SOTS', 'outdoor', True), 1),
    'blur': (Images('GoPro_frames', 'train'), Images('GoPro_frames', 'test'), 1),
    'lowlight': (Images('LOL-v1', 'train'), Images('LOL-v1', 'test'), 1),
}
NOISY_TESTS = [
    (name, sigma) for name in ('CBSD68', 'Kodak24', 'Urban100') for sigma in (15, 25, 50)
]


def roots(images: Images, indent: str = '    ') -> list[str]:
    place = f'datasets/{images.set}/{images.part}'
    lines = [f'dataroot_gt: {place}_gt.lmdb', f'dataroot_lq: {place}_lq.lmdb']
    lines += [f'meta_info_file: {place}.txt'] * images.listed
    return [indent + line for line in lines]


def loading(size: int, batch: int, workers: int, flips: bool = True) -> list[str]:
    switch = str(flips).lower()
    return [
        f'    gt_size: {size}', f'    use_hflip: {switch}', f'    use_rot: {switch}',
        f'    num_worker_per_gpu: {workers}', f'    batch_size_per_gpu: {batch}',
        '    persistent_workers: true', '    pin_memory: true',
    ]  # fmt: skip


def noisy(root: str, sigma: object, output: str = 'unclipped') -> list[str]:
    return [
        '    type: SyntheticDegradationDataset',
        f'    dataroot_gt: {root}',
        '    io_backend: {type: lmdb}',
        '    degradations:',
        f'      - {{type: gaussian_noise, sigma: {sigma}}}',
        f'    lq_output: {output} # as in the published denoising protocols',
    ]


def mixed(split: int) -> list[str]:
    """The data set of all degradations; 0: training, 1: test."""
    lines = [
        '    type: MixedDegradationDataset',
        f'    degradation_names: [{", ".join(CLASSES)}]',
        '    io_backend: {type: lmdb}',
        '    sets:',
    ]
    photos = 'datasets/CBSD68/test_gt.lmdb' if split else 'datasets/BSD400_WED/train_gt.lmdb'
    for name in CLASSES:
        lines += [f'      - degradation_name: {name}']
        if name.startswith('noise'):
            sigma = name.removeprefix('noise')
            lines += [
                '        type: SyntheticDegradationDataset',
                f'        dataroot_gt: {photos}',
                f'        degradations: [{{type: gaussian_noise, sigma: {sigma}}}]',
                '        lq_output: uint8',
            ]
            repeat = 3
        else:
            repeat = MIXED[name][2]
            lines += ['        type: PairedDegradationDataset']
            lines += roots(MIXED[name][split], '        ')
        lines += [f'        repeat: {repeat}'] * (repeat > 1 and not split)
    return lines


def datasets(name: str, method: str, kind: str, how: Schedule | None) -> list[str]:
    """The section ``datasets`` of a training, or of a test (``how`` is None)."""
    task, lines = TASKS[name], ['datasets:']
    if how is not None:
        lines += ['  train:', f'    name: {name}']
        if name == 'denoise':
            lines += noisy('datasets/DFWB/train_gt.lmdb', '[0, 50]')
        elif name == 'mixture':
            lines += mixed(0)
        else:
            lines += ['    type: PairedDegradationDataset', *roots(task.train)]
            lines += ['    io_backend: {type: lmdb}']
            lines += ['    repeat: 100 # an epoch of a few hundred images is short'] * task.small
        flips = not (method == 'NAFNet' and name == 'denoise_sidd')
        lines += loading(how.gt_size, how.batch, how.workers, flips)
    tests = [f'{images.set}_{images.part}' for images in task.tests]
    for number, images in enumerate(task.tests[: 1 if how else None], 1):
        section = 'val' if how else f'test_{number}'
        lines += [f'  {section}:', f'    name: {tests[number - 1]}']
        lines += ['    type: PairedDegradationDataset', *roots(images)]
        lines += ['    io_backend: {type: lmdb}']
    if name == 'denoise':
        for number, (photos, sigma) in enumerate([('CBSD68', 25)] if how else NOISY_TESTS, 1):
            section = 'val' if how else f'test_{number}'
            lines += [f'  {section}:', f'    name: {photos}_sigma{sigma}']
            lines += noisy(f'datasets/{photos}/test_gt.lmdb', sigma)
    if name == 'mixture':
        lines += ['  val:' if how else '  test:', '    name: mixture_test', *mixed(1)]
    return lines


# ---- methods ------------------------------------------------------------------------------------


class Schedule(NamedTuple):
    """How long, in what sizes, on how many GPUs.

    Attributes:
        total: iterations.
        iters, sizes, batches: of progressive training, or () with one size.
        gt_size, batch, workers: of the loader, per GPU.
        gpus: of the command.
        note: what the settings are.
    """

    total: int
    gt_size: int
    batch: int
    gpus: int
    note: str
    iters: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    workers: int = 8
    warmup: int = 0  # of the latent prior, Phase II
    val_freq: int = 20000
    amp: str = '~ # bf16 takes a third less memory'


RELATIVES = 'Schedule of the close relatives ({}): the paper does not give its own.'
ONE_DAY = 'Meant for about a day on one GPU; not measured, and no published setting.'
PRESETS = {  # dim, num_blocks, heads, mgda_dim
    'tiny': (32, '[1, 1, 1]', '[0, 0, 4]', None),
    'small': (64, '[1, 1, 1]', '[0, 0, 4]', None),
    'base': (192, '[6, 6, 5]', '[0, 0, 8]', 32),
    'large': (256, '[4, 6, 8]', '[0, 0, 8]', 64),
}


def unfoldldm_schedule(name: str, phase: int, one_day: bool) -> Schedule:
    if one_day:
        total, warmup = ((40000, 0), (60000, 10000))[phase - 1]
        return Schedule(total, 128, 8, 1, ONE_DAY, warmup=warmup, val_freq=5000, amp='bf16')
    if name == 'denoise':
        total, warmup = ((30000, 0), (35000, 5000))[phase - 1]
        note = f'Reduced schedule (patch 128, {total} iterations): the paper does not give its own.'
        return Schedule(total, 128, 8, 1, note, warmup=warmup, val_freq=5000)
    if name == 'mixture':
        total, warmup = ((300000, 0), (400000, 100000))[phase - 1]
        note = 'Patches and images as VLU-Net (nhrbl); the paper has no such mixture.'
        return Schedule(total, 128, 4, 8, note, warmup=warmup)
    if TASKS[name].small:
        iters = ((55000, 25000, 29000, 23000, 18000), (65000, 35000, 39000, 33000, 28000))
        return Schedule(
            (150000, 200000)[phase - 1], 256, 8, 4, RELATIVES.format('Reti-Diff'),
            iters[phase - 1], (128, 160, 192, 224, 256), (4, 4, 2, 2, 1),
            warmup=(0, 45000)[phase - 1], val_freq=5000,
        )  # fmt: skip
    iters = (
        (92000, 80000, 38000, 33000, 33000, 24000), (150000, 60000, 50000, 60000, 40000, 40000),
    )  # fmt: skip
    return Schedule(
        (300000, 400000)[phase - 1], 512, 8, 8, RELATIVES.format('DiffIR, Reti-Diff'),
        iters[phase - 1], (192, 256, 320, 384, 464, 512), (8, 4, 2, 2, 1, 1),
        warmup=(0, 100000)[phase - 1],
    )  # fmt: skip


def restormer_schedule(name: str, one_day: bool) -> Schedule:
    if one_day:
        return Schedule(100000, 128, 8, 1, ONE_DAY, val_freq=5000, amp='bf16')
    if name == 'mixture':
        note = 'Patches and images as VLU-Net (nhrbl), optimiser and schedule as published.'
        return Schedule(300000, 128, 4, 8, note)
    if TASKS[name].small:
        note = 'As published for deblurring and deraining, but patches of at most 256 pixels.'
        return Schedule(
            300000, 256, 8, 8, note, (92000, 64000, 48000, 96000), (128, 160, 192, 256),
            (8, 5, 4, 2), val_freq=4000,
        )  # fmt: skip
    return Schedule(
        300000, 384, 8, 8, 'At the published settings.',
        (92000, 64000, 48000, 36000, 36000, 24000), (128, 160, 192, 256, 320, 384),
        (8, 5, 4, 2, 1, 1), val_freq=4000,
    )  # fmt: skip


def nafnet_schedule(name: str, one_day: bool) -> Schedule:
    if one_day:
        return Schedule(200000, 256, 8, 1, ONE_DAY, workers=4, val_freq=5000, amp='bf16')
    published = name in ('deblur_gopro', 'denoise_sidd')
    note = 'At the published settings.' if published else 'As published for SIDD.'
    return Schedule(200000, 256, 4, 8, note, workers=4)


def progressive(how: Schedule) -> list[str]:
    if not how.iters:
        return []
    listed = {'iters': how.iters, 'gt_sizes': how.sizes, 'mini_batch_sizes': how.batches}
    lines = [f'    {key}: [{", ".join(map(str, values))}]' for key, values in listed.items()]
    return ['  progressive: # patch and batch size per GPU, by iteration', *lines]


def unfoldldm_network(phase: int, preset: str, how: Schedule, *, training: bool) -> list[str]:
    dim, blocks, heads, mgda_dim = PRESETS[preset]
    lines = [
        'network_g:', '  type: UnfoldLDM', f'  phase: {phase}',
        f"  dim: {dim} # preset '{preset}': dim, num_blocks, heads, mgda_dim",
        f'  num_blocks: {blocks}', f'  heads: {heads}',
    ]  # fmt: skip
    lines += [f'  mgda_dim: {mgda_dim}'] if mgda_dim else []
    lines += ['  num_stages: 3', '  num_timesteps: 3', '  prior_dim: 64']
    lines += [f'  prior_window: {how.gt_size} # side of the training patches']
    if training and how.iters:
        lines += ['  use_checkpoint: true # a sixth of the memory for a quarter more time']
    return lines


def unfoldldm_train(phase: int, how: Schedule) -> list[str]:
    lines = [f'  total_iter: {how.total}']
    if phase == 2:
        text = "II-a: only PI' and f_theta, against the frozen PI"
        lines += [f'  prior_warmup_iter: {how.warmup} # {text}']
    lines += [
        '  warmup_iter: ~', '  ema_decay: 0.999',
        '  optim_g: {type: AdamW, lr: 2.0e-4, weight_decay: 0, betas: [0.9, 0.999]}',
    ]  # fmt: skip
    if phase == 2 and how.iters:  # halved three times after the warm-up of the prior
        rest = how.total - how.warmup
        steps = [how.warmup + rest * part // 15 for part in (4, 8, 12)]
        lines += [f'  scheduler: {{type: MultiStepLR, milestones: {steps}, gamma: 0.5}}']
    else:
        constant = how.warmup + 3 * (how.total - how.warmup) // 10
        lines += [
            f'  scheduler: {{type: ConstantCosineLR, constant_iter: {constant}, eta_min: 1.0e-6}}'
        ]
    clip = '{restoration: 0.01, prior: 1.0}' if phase == 2 else '0.01'
    lines += [
        *progressive(how), '  use_grad_clip: true', f'  grad_clip_norm: {clip}',
        f'  amp: {how.amp}', '  pixel_opt: {type: L1Loss, loss_weight: 1.0}',
        '  isda_opt: {type: ISDALoss, loss_weight: 0.01}', '  stage_loss_weight: 0.3',
    ]  # fmt: skip
    if phase == 2:
        lines += ['  diffusion_opt: {type: LatentDiffusionLoss, loss_weight: 1.0}']
    return lines


def restormer_network(name: str) -> list[str]:
    norm = 'BiasFree' if name.startswith('denoise') else 'WithBias'
    return [
        'network_g:', '  type: Restormer', '  inp_channels: 3', '  out_channels: 3', '  dim: 48',
        '  num_blocks: [4, 6, 6, 8]', '  num_refinement_blocks: 4', '  heads: [1, 2, 4, 8]',
        '  ffn_expansion_factor: 2.66', '  bias: false', f'  LayerNorm_type: {norm}',
        '  dual_pixel_task: false',
    ]  # fmt: skip


def restormer_train(name: str, how: Schedule) -> list[str]:
    constant = how.total * 92 // 300
    mixup = str(name.startswith('denoise')).lower()
    lines = [
        f'  total_iter: {how.total}', '  warmup_iter: -1', '  ema_decay: 0',
        '  optim_g: {type: AdamW, lr: 3.0e-4, weight_decay: 1.0e-4, betas: [0.9, 0.999]}',
        '  scheduler: # constant, then a half cosine',
        '    type: CosineAnnealingRestartCyclicLR',
        f'    periods: [{constant}, {how.total - constant}]',
        '    restart_weights: [1, 1]', '    eta_mins: [3.0e-4, 1.0e-6]', *progressive(how),
        f'  mixing_augs: {{mixup: {mixup}, mixup_beta: 1.2, use_identity: true}}',
        '  use_grad_clip: true', '  grad_clip_norm: 0.01',
    ]  # fmt: skip
    lines += ['  amp: bf16'] if how.amp == 'bf16' else []
    return [*lines, '  pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}']


def nafnet_network(name: str) -> list[str]:
    if name == 'deblur_gopro':
        return [
            'network_g:',
            '  type: NAFNetLocal # as NAFNet in training; windows of 1.5 patches on larger images',
            '  width: 32', '  middle_blk_num: 1', '  enc_blk_nums: [1, 1, 1, 28]',
            '  dec_blk_nums: [1, 1, 1, 1]', '  train_size: [1, 3, 256, 256] # sets the windows',
        ]  # fmt: skip
    return [
        'network_g:', '  type: NAFNet', '  width: 32', '  middle_blk_num: 12',
        '  enc_blk_nums: [2, 2, 4, 8]', '  dec_blk_nums: [2, 2, 2, 2]',
    ]  # fmt: skip


def nafnet_train(name: str, how: Schedule) -> list[str]:
    decay = '1.0e-3' if name == 'deblur_gopro' else '0'
    lines = [
        f'  total_iter: {how.total}', '  warmup_iter: -1', '  ema_decay: 0',
        f'  optim_g: {{type: AdamW, lr: 1.0e-3, weight_decay: {decay}, betas: [0.9, 0.9]}}',
        f'  scheduler: {{type: TrueCosineAnnealingLR, T_max: {how.total}, eta_min: 1.0e-7}}',
        "  use_grad_clip: true # the released trainer's default", '  grad_clip_norm: 0.01',
    ]  # fmt: skip
    lines += ['  amp: bf16'] if how.amp == 'bf16' else []
    loss = '{type: PSNRLoss, loss_weight: 1.0, reduction: mean} # logged as minus the PSNR in dB'
    return [*lines, f'  pixel_opt: {loss}']


# ---- files --------------------------------------------------------------------------------------


def metrics(task: Task) -> list[str]:
    lines = ['  use_image: false # as published: not rounded to 8 bits'] * task.unrounded
    return [*lines, '  metrics:', *(f'    {m}: {METRICS[m]}' for m in task.metrics.split())]


def train_file(method: str, name: str, phase: int = 0, preset: str = '', one_day: bool = False):
    """(path below options, lines) of a training."""
    task, phases = TASKS[name], f'_phase{phase}' * bool(phase)
    named = f'{name}_{preset}' if preset and name == 'denoise' else name
    file = f'train/{method}/{named}{"_one_day" * one_day}{phases}.yml'
    run = Path(file).stem
    run = f'{method.lower()}_{run}'
    how = {
        'UnfoldLDM': lambda: unfoldldm_schedule(name, phase, one_day),
        'Restormer': lambda: restormer_schedule(name, one_day),
        'NAFNet': lambda: nafnet_schedule(name, one_day),
    }[method]()
    title = {0: '', 1: ', Phase I (prior pre-training)', 2: ', Phase II (diffusion)'}[phase]
    kind = f'{method}, preset {preset}' if preset else method + ' (width 32)' * (method == 'NAFNet')
    path = f'options/{file}'
    seed = {'UnfoldLDM': 0, 'Restormer': 100, 'NAFNet': 42}[method]
    model = f'UnfoldLDMPhase{phase}Model' if phase else 'RestorationModel'
    lines = [
        f'# {kind}: {task.title}{title}.',
        f'# {TORCHRUN.format(how.gpus, path) if how.gpus > 1 else TRAIN.format(path)}',
        f'# {how.note}',
    ]
    if how.gpus > 1:
        lines += [f'# On G GPUs multiply every batch size by {how.gpus} / G.']
    lines += [
        f'name: {run}', f'model_type: {model}', 'scale: 1', 'num_gpu: auto',
        f'manual_seed: {seed}', '', *datasets(name, method, 'train', how), '',
    ]  # fmt: skip
    if method == 'UnfoldLDM':
        lines += [*unfoldldm_network(phase, preset, how, training=True), '', 'path:']
        if phase == 2:
            start = run.replace('phase2', 'phase1')
            weights = f'experiments/{start}/models/net_g_latest.pth'
            lines += [f'  pretrain_network_phase1: {weights}']
        own = unfoldldm_train(phase, how)
    else:
        network = restormer_network if method == 'Restormer' else nafnet_network
        lines += [*network(name), '', 'path:', '  pretrain_network_g: ~', '  strict_load_g: true']
        own = (restormer_train if method == 'Restormer' else nafnet_train)(name, how)
    lines += ['  resume_state: ~', '', 'train:', *own, '']
    lines += [
        'val:', f'  val_freq: {how.val_freq}', '  save_img: false', '  pbar: true',
        *metrics(task), '', 'logger:', f'  print_freq: {min(500, how.val_freq // 10)}',
        f'  save_checkpoint_freq: {min(5000, how.val_freq)}', '  keep_checkpoints: 5',
        '  use_tb_logger: true', '', 'dist_params:', '  backend: nccl',
    ]  # fmt: skip
    return file, lines


def test_file(method: str, name: str, *, dnd: bool):
    """(path below options, lines) of a test."""
    task = TASKS[name]
    file = f'test/{method}/{"denoise_dnd" if dnd else name}.yml'
    preset = 'base' if method == 'UnfoldLDM' else ''
    suffix = f'{"_base" * (method == "UnfoldLDM" and name == "denoise")}'
    run = f'{method.lower()}_{name}{suffix}{"_phase2" * bool(preset)}'
    title = 'denoising of photos, DND: saves images for its authors to score' if dnd else task.title
    seed = {'UnfoldLDM': 0, 'Restormer': 100, 'NAFNet': 42}[method]
    lines = [
        f'# Tests a trained {method}{f" (preset {preset})" * bool(preset)}: {title}.',
        f'# {TEST.format(f"options/{file}")}',
        f'name: test_{method.lower()}_{Path(file).stem}',
        f'model_type: {"UnfoldLDMPhase2Model" if preset else "RestorationModel"}',
        'scale: 1', 'num_gpu: auto', f'manual_seed: {seed}', '',
    ]  # fmt: skip
    if dnd:
        lines += [
            'datasets:', '  test:', '    name: DND', '    type: SingleImageDataset',
            '    dataroot_lq: datasets/DND/test_lq.lmdb', '    io_backend: {type: lmdb}',
        ]  # fmt: skip
    else:
        lines += datasets(name, method, 'test', None)
    lines += ['']
    if method == 'UnfoldLDM':
        how = unfoldldm_schedule(name, 2, False)
        lines += unfoldldm_network(2, preset, how, training=False)
    else:
        lines += (restormer_network if method == 'Restormer' else nafnet_network)(name)
    weights = f'experiments/{run}/models/net_g_latest.pth'
    released = ' # or released weights, as they are' * (method != 'UnfoldLDM')
    lines += ['', 'path:', f'  pretrain_network_g: {weights}{released}']
    lines += ['  param_key_g: params_ema'] * bool(preset) + ['  strict_load_g: true']
    lines += ['', 'val:', '  save_img: true', '  suffix: ~', '  pbar: true']
    if preset:
        lines += ['  prior_source: generated # null, shuffled, oracle: what the prior is worth']
    return file, lines if dnd else [*lines, *metrics(task)]


def files() -> dict[str, str]:
    """Path below ``options`` -> text."""
    found = []
    for name in TASKS:
        if name != 'derain_rain13k':
            for preset in PRESETS if name == 'denoise' else ['base']:
                found += [train_file('UnfoldLDM', name, phase, preset) for phase in (1, 2)]
            found += [test_file('UnfoldLDM', name, dnd=False)]
        found += [train_file('Restormer', name), test_file('Restormer', name, dnd=False)]
        if name not in ('denoise', 'derain_rain13k', 'mixture'):
            found += [train_file('NAFNet', name), test_file('NAFNet', name, dnd=False)]
    for method in ('UnfoldLDM', 'Restormer', 'NAFNet'):
        found += [test_file(method, 'denoise_sidd', dnd=True)]
        phases = (1, 2) if method == 'UnfoldLDM' else (0,)
        preset = 'small' if method == 'UnfoldLDM' else ''
        found += [train_file(method, 'deblur_gopro', phase, preset, True) for phase in phases]
    return {file: '\n'.join(lines) + '\n' for file, lines in found}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--check', action='store_true', help='write nothing, name the differences')
    args = parser.parse_args(argv)
    wanted, folders = files(), ('UnfoldLDM', 'Restormer', 'NAFNet')
    present = {
        path.relative_to(ROOT / 'options').as_posix(): path.read_text(encoding='utf-8')
        for arch in folders
        for path in (ROOT / 'options').glob(f't*/{arch}/*.yml')
    }
    changed = [f for f in sorted({*wanted, *present}) if wanted.get(f) != present.get(f)]
    for file in changed:
        print(file)
        if args.check:
            continue
        path = ROOT / 'options' / file
        if file not in wanted:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[file], encoding='utf-8')
    return int(args.check and bool(changed))


if __name__ == '__main__':
    sys.exit(main())
