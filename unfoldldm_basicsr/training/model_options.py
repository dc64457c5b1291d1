"""Option keys of the models and the checks of their values, before anything is built.

A section of ``option_keys`` maps each key to the types its value may have and a line of help. The
section '' holds the keys at the top of the option file.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY

from unfoldldm_basicsr.training.lr_schedulers import check_scheduler
from unfoldldm_basicsr.training.mixing import check_mixing
from unfoldldm_basicsr.training.optimisation import check_optimizer

OptionKeys = dict[str, dict[str, tuple[tuple[type, ...], str]]]
Problems = list[tuple[str, str]]

NUMBER = (int, float)
OPTIONAL = type(None)

BASE_OPTION_KEYS: OptionKeys = {
    '': {
        'scan_backend': (
            (str,),
            'selective scan on GPUs: auto, or one of torch, triton, mamba; before UNFOLDLDM_SCAN',
        ),
    },
    'train': {
        'total_iter': ((int,), 'number of iterations'),
        'warmup_iter': ((int, OPTIONAL), 'iterations of linear warm-up of the learning rate'),
        'optim_g': ((dict,), 'optimiser: type (any of torch.optim), lr, weight_decay, betas, ...'),
        'scheduler': ((dict,), 'learning-rate schedule: type and its arguments'),
        'ema_decay': ((*NUMBER, OPTIONAL), 'decay of the averaged weights; 0 = none'),
        'use_grad_clip': ((bool,), 'limit the gradient norm of each parameter group'),
        'grad_clip_norm': ((*NUMBER, dict), 'the limit, one for all groups or one per group'),
        'accum_iter': ((int,), 'slices of the batch whose gradients are added up in one step'),
        'amp': ((str, OPTIONAL), 'bf16: mixed precision; empty: fp32'),
        'progressive': (
            (dict, OPTIONAL),
            'patch and batch sizes: iters, gt_sizes, mini_batch_sizes',
        ),
        'mixing_augs': ((dict, OPTIONAL), 'mixed pairs: mixup, mixup_beta (1.2), use_identity'),
        'max_nonfinite': ((int,), 'steps in a row that may be skipped for NaN before a stop (10)'),
        'apply_new_schedule': (
            (bool,),
            'a resumed run takes optim_g, scheduler and warmup_iter from the option file (false)',
        ),
        'use_compile': ((bool,), 'torch.compile'),
        'use_channels_last': ((bool,), 'channels-last memory format'),
        'pixel_opt': ((dict, OPTIONAL), 'pixel loss: type and its arguments'),
        'perceptual_opt': ((dict, OPTIONAL), "BasicSR's perceptual loss"),
    },
    'val': {
        'val_freq': ((int,), 'iterations between validations'),
        'save_img': ((bool,), 'write the restored images'),
        'suffix': ((str, OPTIONAL), 'ending of the names of restored images in a test'),
        'pbar': ((bool,), 'progress bar'),
        'metrics': ((dict, OPTIONAL), 'name: {type, arguments, better: higher or lower}'),
        'tile': ((int, OPTIONAL), 'restore in overlapping tiles of this size'),
        'tile_overlap': ((int,), 'overlap of the tiles in pixels (32)'),
        'trace': ((bool,), 'write the PSNR of every stage to stage_psnr_DATASET.csv'),
    },
    'path': {
        'pretrain_network_g': ((str, OPTIONAL), 'weights to start from, or to test'),
        'param_key_g': ((str, OPTIONAL), 'which weights of that file: params or params_ema'),
        'strict_load_g': ((bool,), 'every weight must fit'),
        'resume_state': ((str, OPTIONAL), 'training state to continue from'),
        'ignore_resume_networks': ((list, OPTIONAL), 'networks that a resumed run does not load'),
    },
    'logger': {
        'keep_checkpoints': ((int, OPTIONAL), 'newest checkpoints to keep; empty: all'),
        'keep_best': ((bool,), 'keep the weights of the best validation, net_g_best_METRIC.pth'),
    },
}


def merged(*parts: OptionKeys) -> OptionKeys:
    """Option keys of a class from those of its base and its own."""
    sections = dict.fromkeys(section for part in parts for section in part)
    return {
        section: {key: leaf for part in parts for key, leaf in part.get(section, {}).items()}
        for section in sections
    }


def section_of(opt: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of an option dict, empty when it is missing or not a section."""
    section = opt.get(name)
    return section if isinstance(section, Mapping) else {}


def is_training(opt: Mapping[str, Any]) -> bool:
    """Whether the option dict describes a training; option files of tests have no ``train``."""
    return bool(opt.get('is_train', 'train' in opt))


def is_whole(value: object, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_base_options(opt: Mapping[str, Any], network_inputs: tuple[str, ...] = ()) -> Problems:
    """Problems of the options that all models share, as (key path, message).

    Args:
        opt: the whole option dict.
        network_inputs: what the model gives to the network with every image, besides ``lq``.
    """
    problems = _check_evaluation(section_of(opt, 'val')) + _check_forward(opt, network_inputs)
    path = section_of(opt, 'path')
    weights = path.get('pretrain_network_g')
    if weights and not Path(str(weights)).expanduser().is_file():
        problems.append(('path.pretrain_network_g', f'{weights}: no such file.'))
    if not is_training(opt):
        if not weights:
            problems.append(
                (
                    'path.pretrain_network_g',
                    'a test needs weights, otherwise it would score a random network.',
                )
            )
        return problems
    if opt.get('find_unused_parameters'):
        problems.append(
            ('find_unused_parameters', 'has no effect here: every parameter is used. Remove it.')
        )
    train = section_of(opt, 'train')
    total = train.get('total_iter')
    if not is_whole(total, 1):
        problems.append(('train.total_iter', f'must be a whole number >= 1, got {total!r}.'))
        total = None
    problems += _check_schedule(train, total, on_cpu=opt.get('num_gpu') == 0)
    problems += _check_step(train, section_of(section_of(opt, 'datasets'), 'train'))
    if not train.get('pixel_opt') and not train.get('perceptual_opt'):
        problems.append(('train.pixel_opt', 'no loss: set pixel_opt, for example type: L1Loss.'))
    keep = section_of(opt, 'logger').get('keep_checkpoints')
    if keep is not None and not is_whole(keep, 1):
        problems.append(('logger.keep_checkpoints', f'must be >= 1 or empty, got {keep!r}.'))
    if section_of(opt, 'logger').get('keep_best'):
        problems += _check_keep_best(opt)
    return problems


def _check_keep_best(opt: Mapping[str, Any]) -> Problems:
    if not section_of(opt, 'val').get('metrics'):
        return [('logger.keep_best', 'needs val.metrics to tell what is best.')]
    if not any(str(phase).startswith('val') for phase in section_of(opt, 'datasets')):
        return [('logger.keep_best', 'needs datasets.val: without it nothing is validated.')]
    return []


def _check_forward(opt: Mapping[str, Any], network_inputs: tuple[str, ...]) -> Problems:
    """The network must work with what the model gives it."""
    kind = section_of(opt, 'network_g').get('type')
    network = dict(iter(ARCH_REGISTRY)).get(kind)
    if network is None:
        return []
    parameters = list(inspect.signature(network.forward).parameters.values())[2:]
    missing = [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and p.name not in network_inputs
    ]
    if missing:
        message = (
            f'{kind} also needs {", ".join(missing)} with every image, which this model_type does '
            'not provide.'
        )
        if missing == ['degradation']:
            phases = 'VLUNetPriorPhase1Model or VLUNetPriorPhase2Model'
            fitting = phases if 'gt' in (p.name for p in parameters) else 'VLUNetModel'
            message += f' Use model_type: {fitting}.'
        return [('network_g.type', message)]
    unused = [name for name in network_inputs if name not in (p.name for p in parameters)]
    if unused:
        return [
            (
                'network_g.type',
                f'{kind} takes no {", ".join(unused)}, which this model_type is for; '
                'use model_type: RestorationModel.',
            )
        ]
    if section_of(opt, 'val').get('trace') and 'prior_source' not in (p.name for p in parameters):
        return [('val.trace', f'{kind} has no stages to trace; remove it.')]
    return []


def _check_evaluation(val: Mapping[str, Any]) -> Problems:
    problems = []
    tile, overlap = val.get('tile'), val.get('tile_overlap', 32)
    if tile is None and 'tile_overlap' in val:
        problems.append(('val.tile_overlap', 'has no effect without val.tile.'))
    if tile is not None:
        if not is_whole(tile, 1) or not is_whole(overlap, 0) or overlap >= tile:
            problems.append(
                ('val.tile', f'{tile!r} must be larger than val.tile_overlap ({overlap!r}).')
            )
        if val.get('trace'):
            problems.append(('val.trace', 'stages are traced on whole images: remove val.tile.'))
    return problems


def _check_schedule(train: Mapping[str, Any], total: int | None, *, on_cpu: bool) -> Problems:
    problems, lr = [], None
    if isinstance(train.get('optim_g'), Mapping):
        lr = train['optim_g'].get('lr')
        found = check_optimizer(train['optim_g'], on_cpu=on_cpu)
        problems += [(f'train.optim_g.{k}', m) for k, m in found]
    else:
        problems.append(('train.optim_g', 'missing: type, lr, ... of the optimiser.'))
    if isinstance(train.get('scheduler'), Mapping):
        found = check_scheduler(train['scheduler'], total, lr if is_number(lr) else None)
        problems += [(f'train.scheduler.{k}', m) for k, m in found]
    else:
        problems.append(('train.scheduler', 'missing: type and arguments of the schedule.'))
    warmup = train.get('warmup_iter')
    if warmup is not None and (not is_whole(warmup, -1) or (total and warmup >= total)):
        problems.append(
            ('train.warmup_iter', f'must lie between -1 and total_iter, got {warmup!r}.')
        )
    return problems


def _check_step(train: Mapping[str, Any], dataset: Mapping[str, Any]) -> Problems:
    problems = []
    decay = train.get('ema_decay')
    if decay is not None and not (is_number(decay) and 0 <= decay < 1):
        problems.append(('train.ema_decay', f'must lie in [0, 1), got {decay!r}.'))
    limits = train.get('grad_clip_norm')
    if limits is not None:
        values = limits.values() if isinstance(limits, Mapping) else [limits]
        if not all(is_number(value) and value > 0 for value in values):
            problems.append(('train.grad_clip_norm', f'must be positive, got {limits!r}.'))
        if not train.get('use_grad_clip'):
            problems.append(('train.grad_clip_norm', 'has no effect without use_grad_clip: true.'))
    if train.get('amp') not in (None, 'bf16'):
        problems.append(
            (
                'train.amp',
                f'{train["amp"]!r} is not known: bf16 or empty (fp16 would need loss scaling).',
            )
        )
    if not is_whole(train.get('max_nonfinite', 10), 1):
        problems.append(('train.max_nonfinite', 'must be a whole number >= 1.'))
    if train.get('mixing_augs') is not None:
        problems += [(f'train.{key}', text) for key, text in check_mixing(train['mixing_augs'])]
    smallest = dataset.get('batch_size_per_gpu')
    if train.get('progressive') is not None:
        found, sizes = _check_progressive(train['progressive'], dataset)
        problems += found
        smallest = min(sizes) if sizes else smallest
    accum = train.get('accum_iter', 1)
    if not is_whole(accum, 1):
        problems.append(('train.accum_iter', f'must be a whole number >= 1, got {accum!r}.'))
    elif is_whole(smallest, 1) and accum > smallest:
        problems.append(('train.accum_iter', f'{accum} slices of a batch of {smallest}.'))
    return problems


def _check_progressive(progressive: Any, dataset: Mapping[str, Any]) -> tuple[Problems, list[int]]:
    """Problems, and the batch sizes where they are valid."""
    keys = ('iters', 'gt_sizes', 'mini_batch_sizes')
    if not isinstance(progressive, Mapping) or set(progressive) != set(keys):
        given = ', '.join(map(str, progressive)) if isinstance(progressive, Mapping) else 'none'
        message = f'needs exactly the lists {", ".join(keys)}; there are: {given}.'
        return [('train.progressive', message)], []
    for key in keys:
        values = progressive[key]
        if not isinstance(values, list) or not values or not all(is_whole(v, 1) for v in values):
            return [(f'train.progressive.{key}', 'must be a list of whole numbers >= 1.')], []
        if len(values) != len(progressive['iters']):
            return [(f'train.progressive.{key}', 'is not as long as iters.')], []
    problems = []
    for key, limit in (('gt_sizes', 'gt_size'), ('mini_batch_sizes', 'batch_size_per_gpu')):
        largest = dataset.get(limit)
        if is_whole(largest, 1) and max(progressive[key]) > largest:
            problems.append(
                (
                    f'train.progressive.{key}',
                    f'{max(progressive[key])} is more than datasets.train.{limit} ({largest}).',
                )
            )
    return problems, progressive['mini_batch_sizes']
