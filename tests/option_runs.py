"""Runs an option file for one step on tiny pictures: the proof that an accepted file is right."""

import copy
import inspect
import logging
import sys
from pathlib import Path
from typing import Any

import basicsr.test
import basicsr.train
import pytest
import torch
from basicsr.utils.logger import initialized_logger
from basicsr.utils.registry import ARCH_REGISTRY
from helpers import tiny_unfoldldm, write_options, write_photos
from option_mutants import Mutant, at, key_paths
from tiny_vlunet import CLIP

from unfoldldm_basicsr.common.cost import build_on_meta, network_cost
from unfoldldm_basicsr.preparing.lmdb_writer import write_lmdb
from unfoldldm_basicsr.weights.checkpoint import DEGRADATION_KEY
from unfoldldm_basicsr.weights.conditioning import degradation_meta

LARGEST = 20_000_000  # parameters of a network that is trained here

# Sizes of networks that cost little; used for what a mutant does not touch.
_UNET = {'dim': 8, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'heads': [1, 1, 2, 2]}
_NAFNET = {'width': 8, 'enc_blk_nums': [1, 1, 1, 1], 'dec_blk_nums': [1, 1, 1, 1]}
SMALL = {
    'NAFNet': _NAFNET, 'NAFNetLocal': _NAFNET, 'UnfoldLDM': {**tiny_unfoldldm(), **_UNET},
    'VLUNet': {**_UNET, 'dim': 10},
    'CLIPDegradationEmbedding': {'pretrained': None, 'clip_config': {**CLIP, 'embed_dim': 512}},
}  # fmt: skip
_SMALLER = dict.fromkeys(('gt_size', 'center_crop', 'gt_sizes'), (8, 16))  # divisor, least value
_SMALLER |= dict.fromkeys(('batch_size_per_gpu', 'accum_iter', 'mini_batch_sizes'), (4, 1))
_CHEAP = dict.fromkeys(('num_worker_per_gpu', 'num_gpu'), 0)
_CHEAP |= dict.fromkeys(('use_tb_logger', 'use_compile', 'pbar'), False)
_CHEAP |= {'repeat': 2, 'weight': 1, 'print_freq': 1, 'prefetch_mode': None}


def short_run(mutant: Mutant, folder: Path) -> dict:
    """Trains one step and validates, or tests, with BasicSR's own pipeline; what ran is returned.

    Data, batch and network are replaced by small ones wherever the mutant leaves the file alone.
    An exit is a refusal now that data and weights are there; anything else raised is a fault.
    """
    options = copy.deepcopy(mutant.options)
    names = {*mutant.names, *(part for path in mutant.paths for part in path)}
    names -= {'datasets', 'train', 'val', 'path', 'network_g', 'network_e'}
    _shrink_numbers(options, names)
    _shrink_networks(options, names)
    for phase, section in options['datasets'].items():
        _use_pictures(section, section.get('io_backend'), folder / 'data' / phase, names)
    networks = {k: v for k, v in options.items() if k.startswith('network_')}
    if any(network_cost_or_zero(network) > LARGEST for network in networks.values()):
        return options  # built and evaluated without memory, which is what this machine can do
    _run(options, folder, names, steps=1)
    return options


def brief_run(options: dict, folder: Path, steps: int) -> None:
    """The same with the data that the file names, relative to ``folder``, and so many steps."""
    _shrink_numbers(options, set())
    _shrink_networks(options, set())
    _run(options, folder, set(), steps)


def _run(options: dict, folder: Path, names: set, steps: int) -> None:
    _use_weights(options, folder, names)
    write_options(folder / 'short.yml', options)
    logger, create = logging.getLogger('basicsr'), basicsr.train.create_train_val_dataloader

    def shortened(opt: dict, logger: logging.Logger) -> tuple:
        return *create(opt, logger)[:3], 0, steps  # BasicSR's loop ends after so many iterations

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, 'argv', ['run', '-opt', 'short.yml'])
        patch.setattr(logger, 'handlers', list(logger.handlers))
        patch.setattr(basicsr.train, 'create_train_val_dataloader', shortened)
        try:
            if 'train' in options:
                basicsr.train.train_pipeline(str(folder))
            else:
                basicsr.test.test_pipeline(str(folder))
        finally:
            initialized_logger.clear()


def network_cost_or_zero(network: dict) -> int:
    """Parameters of a network, evaluated on the meta device when there are too many to train."""
    cls = ARCH_REGISTRY.get(network['type'])
    net = build_on_meta(cls, {k: v for k, v in network.items() if k != 'type'})
    params = sum(p.numel() for p in net.parameters())
    if params > LARGEST and 'label' not in inspect.signature(net.forward).parameters:
        network_cost(network, 64)
    return params


def _shrink_numbers(options: dict, names: set) -> None:
    """Sizes divided by a common factor, so that what fits together still does."""
    for *place, key in [*key_paths(options)]:
        section = at(options, tuple(place))
        if key in _SMALLER.keys() - names:
            section[key] = _smaller(section[key], *_SMALLER[key])
        elif key in _CHEAP.keys() - names:
            section[key] = _CHEAP[key]
    options.setdefault('num_gpu', 0)
    options.setdefault('logger', {})
    if isinstance(options['logger'], dict):
        options['logger'].setdefault('use_tb_logger', False)
    train = options['datasets'].get('train')
    if train is not None:
        train.setdefault('num_worker_per_gpu', 0)


def _smaller(value: Any, divisor: int, least: int) -> Any:
    if isinstance(value, list):
        return [_smaller(v, divisor, least) for v in value]
    return max(least, -(-value // divisor)) if isinstance(value, int) else value


def _shrink_networks(options: dict, names: set) -> None:
    for key in [k for k in options if k.startswith('network_')]:
        network, kept = options[key], names | {'type', 'phase'}
        if network.get('clip_config') is not None:
            continue  # tiny already
        cls = ARCH_REGISTRY.get(network['type'])
        takes = inspect.signature(cls).parameters.keys() - kept
        small = SMALL.get(network['type'], _UNET)
        smaller = {**network, **{k: v for k, v in small.items() if k in takes}}
        try:
            build_on_meta(cls, {k: v for k, v in smaller.items() if k != 'type'})
        except (ValueError, RuntimeError, TypeError):
            continue  # the mutant does not go with the small sizes
        options[key] = smaller


def _use_pictures(section: dict, backend: object, folder: Path, names: set) -> None:
    """Points a data set, and the sets of a mixture, to four pictures of its kind."""
    for part in section.get('sets', []):
        _use_pictures(part, part.get('io_backend', backend), folder, names)
    kind = backend.get('type') if isinstance(backend, dict) else 'disk'
    template = section.get('filename_tmpl', '{}')
    roots = {'dataroot_gt', 'dataroot_lq', 'dataroot_lqL', 'dataroot_lqR', 'meta_info_file'}
    for key in roots & section.keys() - names:
        if section[key] == 'none':
            continue
        stem = template if key == 'dataroot_lq' else '{}'
        place = folder / f'{kind}_{key}_{stem.replace("{}", "_")}'
        if not place.exists():
            for path in write_photos(place, 4, (40, 48)):
                path.rename(path.with_name(f'{stem.format(path.stem)}.png'))
        if key == 'meta_info_file':
            if section[key]:
                section[key] = str(folder / 'list.txt')
                Path(section[key]).write_text(''.join(f'img_{i}.png\n' for i in range(4)))
            continue
        if kind == 'lmdb':
            root = place.with_suffix('.lmdb')
            if not root.exists():
                write_lmdb(place, root)
            place = root
        section[key] = str(place)


def _use_weights(options: dict, folder: Path, names: set) -> None:
    """Writes the weight files that the option file starts from."""
    paths = options.get('path') or {}
    for key in [k for k in paths if k.startswith('pretrain_network_') and paths[k]]:
        if key in names:
            continue
        label = key.removeprefix('pretrain_network_')
        network = dict(options['network_g' if label == 'phase1' else f'network_{label}'])
        if label == 'phase1':
            network['phase'] = 1
        elif network.get('type') == 'CLIPDegradationEmbedding':
            paths[key] = None
            continue
        net = ARCH_REGISTRY.get(network.pop('type'))(**network)
        paths[key] = str(folder / f'{key}.pth')
        state = net.state_dict()
        content = {'params': state, 'params_ema': state}
        if label == 'g' and 'network_e' in options:
            content[DEGRADATION_KEY] = _embedding(options)
        torch.save(content, paths[key])
    if paths.get('resume_state') and 'resume_state' not in names:
        paths['resume_state'] = None


def _embedding(options: dict) -> dict:
    """What the file of a steered network says about its vectors."""
    network = dict(options['network_e'])
    net = ARCH_REGISTRY.get(network['type'])(**{k: v for k, v in network.items() if k != 'type'})
    orders = (section.get('degradation_names') for section in options['datasets'].values())
    return degradation_meta(next(filter(None, orders), []), network, params=net.state_dict())
