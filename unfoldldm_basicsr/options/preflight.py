"""Checks a whole option dict before anything is built, written or renamed.

All problems are reported at once, each as ``FILE: key.path: cause and remedy``. Nothing here
changes the options, sets BasicSR's logger up, or leaves a trace on the disk.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from unfoldldm_basicsr.common.suggest import did_you_mean
from unfoldldm_basicsr.options import schema
from unfoldldm_basicsr.options.components import (
    check_metrics,
    check_network,
    check_vector_length,
    check_weights,
    registered,
)
from unfoldldm_basicsr.options.dataset_checks import Start, check_datasets
from unfoldldm_basicsr.options.defaults import fill_defaults
from unfoldldm_basicsr.options.device_checks import check_gpus, check_scan_backend
from unfoldldm_basicsr.options.devices import gpu_count, process_count
from unfoldldm_basicsr.options.problems import Problems
from unfoldldm_basicsr.options.train_checks import check_train
from unfoldldm_basicsr.options.values import show
from unfoldldm_basicsr.restoring.tiling import check_tile
from unfoldldm_basicsr.training.checkpoint_files import read_state

_NAME = re.compile(r'[A-Za-z0-9_][\w.+=,@-]*')
# BasicSR makes a folder of every other key of the section path.
_NO_FOLDER = ('pretrain_network', 'strict_load', 'resume', 'param_key')
_WITHOUT_GT = {'SingleImageDataset'}


def is_training(options: Mapping) -> bool:
    """Whether an option file is for training, by its sections."""
    datasets = options.get('datasets')
    return 'train' in options or (isinstance(datasets, Mapping) and 'train' in datasets)


def preflight(
    options: dict,
    file: str,
    is_train: bool,
    *,
    here: bool = True,
    resuming: bool | None = None,
    launcher: str | None = None,
) -> list[str]:
    """Every problem of an option dict, one line each; empty when the run can start.

    Args:
        options: as read from the file, not completed; stays unchanged.
        file: name for the messages.
        is_train: training or test.
        here: also check what belongs to this machine: data, weights, GPUs.
        resuming: the run goes on from a state, so the weights it started from are not read (None:
            if ``path.resume_state`` names one).
        launcher: that of the command line; None where no run is started.
    """
    options = deepcopy(options)
    fill_defaults(options, is_train)
    not_read = _not_read(options, is_train, resuming)
    processes, gpus = process_count(launcher), options['num_gpu']
    if gpus == 'auto' and here:
        gpus = gpu_count(options, launcher)
    problems = Problems()
    for path, value in _values(options):
        if isinstance(value, float) and not math.isfinite(value):
            problems.add(path, f'must be a finite number, got {value}.')
        if path.endswith('.type') and not isinstance(value, str):
            problems.add(path, f'must be a name, got {show(value)}.')
    with basicsr_logger_untouched():
        model = _check_top(problems, options, is_train)
        networks = {
            str(key): check_network(problems, str(key), section)
            for key, section in options.items()
            if str(key).startswith('network_') and not problems.covers(str(key))
        }
        for phase, dataset in _sections(options.get('datasets')):
            dataset['phase'], dataset['scale'] = phase.split('_')[0], options['scale']
        split = launcher in (None, 'none') and isinstance(gpus, int)  # as DataParallel does
        replicas = max(gpus, 1) if split else 1
        check_datasets(problems, options, Start(is_train, here, processes, replicas))
        if is_train:
            check_train(problems, options, model, networks, processes)
            _check_logger(problems, options, model)
        _check_val(problems, options, model, networks.get('network_g'))
        _check_dist(problems, options)
        if here:
            check_gpus(problems, options, launcher)
        check_scan_backend(problems, options, networks.get('network_g'), gpus=gpus, here=here)
        resolved = {**options, 'is_train': is_train, 'num_gpu': gpus}
        _check_model(problems, resolved, model, not_read, here=here)
        check_vector_length(problems, networks)
        _check_path(problems, options, model, networks, not_read, is_train=is_train, here=here)
    return problems.lines(file)


@contextmanager
def basicsr_logger_untouched() -> Iterator[None]:
    """Undoes a set-up of BasicSR's logger inside: the first one decides about its log file."""
    from basicsr.utils.logger import initialized_logger

    logger = logging.getLogger('basicsr')
    known, handlers = dict(initialized_logger), list(logger.handlers)
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.ERROR)  # what is built here only to be checked has nothing to say
    try:
        yield
    finally:
        initialized_logger.clear()
        initialized_logger.update(known)
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


def _values(value: object, path: str = '') -> Iterator[tuple[str, object]]:
    """Everything in an option dict with its key path."""
    if path:
        yield path, value
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _values(item, f'{path}.{key}' if path else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _values(item, f'{path}.{index}')


def _sections(section: object) -> list[tuple[str, dict]]:
    if not isinstance(section, Mapping):
        return []
    return [(str(name), value) for name, value in section.items() if isinstance(value, dict)]


def _check_top(problems: Problems, options: dict, is_train: bool) -> type | None:
    """Checks the top level; returns the class of ``model_type``."""
    from basicsr.utils.registry import MODEL_REGISTRY

    model = registered(MODEL_REGISTRY, options.get('model_type'))
    keys, words = schema.model_keys(model, '')
    required = ('name', 'model_type', 'network_g')
    problems.check_keys('', options, keys, words, required)
    if isinstance(options.get('model_type'), str) and model is None:
        names = [name for name, _ in MODEL_REGISTRY]
        problems.add(
            'model_type',
            f'no model {show(options["model_type"])} is registered.'
            f'{did_you_mean(options["model_type"], names)}',
        )
    name = options.get('name')
    if isinstance(name, str) and not _NAME.fullmatch(name):
        problems.add(
            'name',
            f'{show(name)} becomes a folder: use letters, digits and _ . + = , @ - only.',
        )
    gpus = options.get('num_gpu')
    if isinstance(gpus, str) and gpus != 'auto':
        problems.add('num_gpu', f"must be a whole number or 'auto', got {show(gpus)}.")
    return model


def _check_logger(problems: Problems, options: dict, model: type | None) -> None:
    logger = options.get('logger')
    keys, words = schema.model_keys(model, 'logger')
    if not problems.check_keys('logger', logger, keys, words):
        return
    wandb = logger.get('wandb')
    project = None
    if wandb is not None and not problems.covers('logger.wandb'):
        problems.check_keys('logger.wandb', wandb, schema.WANDB)
        project = wandb.get('project')
    if project is not None:
        if find_spec('wandb') is None:
            problems.add('logger.wandb.project', 'needs Weights & Biases: pip install wandb.')
        if logger.get('use_tb_logger') is not True:
            problems.add('logger.use_tb_logger', 'must be true with logger.wandb.project.')
    if logger.get('use_tb_logger') is True and find_spec('tensorboard') is None:
        problems.add('logger.use_tb_logger', 'needs TensorBoard: pip install tensorboard.')


def _check_val(
    problems: Problems, options: dict, model: type | None, network: nn.Module | None
) -> None:
    val = options.get('val')
    if val is None:
        return
    keys, words = schema.model_keys(model, 'val')
    if not problems.check_keys('val', val, keys, words):
        return
    if isinstance(val.get('suffix'), str) and not _NAME.fullmatch(val['suffix']):
        problems.add('val.suffix', f'{show(val["suffix"])} becomes part of a file name.')
    if val.get('metrics') is not None:
        sets = [d for p, d in _sections(options.get('datasets')) if p.split('_')[0] != 'train']
        has_gt = not sets or any(str(d.get('type')) not in _WITHOUT_GT for d in sets)
        check_metrics(problems, 'val.metrics', val['metrics'], has_gt)
    _check_tile(problems, val, getattr(network, 'size_multiple', 1))


def _check_tile(problems: Problems, val: Mapping, size_multiple: int) -> None:
    """Tile and overlap of the validation, aligned to the network as they will be."""
    tile, overlap = val.get('tile'), val.get('tile_overlap', 32)
    if tile is None or problems.covers('val.tile') or problems.covers('val.tile_overlap'):
        return
    if isinstance(tile, int) and isinstance(overlap, int):
        try:
            check_tile(tile, overlap, size_multiple)
        except ValueError as error:
            problems.add('val.tile', f'{error}')


def _check_dist(problems: Problems, options: dict) -> None:
    params = options.get('dist_params')
    if params is not None and not problems.covers('dist_params'):
        problems.check_keys('dist_params', params, schema.DIST_PARAMS)


def _not_read(options: Mapping, is_train: bool, resuming: bool | None) -> frozenset[str]:
    """Keys of ``path`` whose files a resumed run has no use for: its checkpoint replaces them."""
    paths = options['path'] if isinstance(options['path'], Mapping) else {}
    resuming = bool(paths.get('resume_state')) if resuming is None else resuming
    if not is_train or not resuming:
        return frozenset()
    networks = {str(key) for key in options if str(key).startswith('network_')}
    ignored = paths.get('ignore_resume_networks') or ()
    replaced = networks - set(map(str, [ignored] if isinstance(ignored, str | int) else ignored))
    keys = {f'pretrain_{network}' for network in replaced}
    return frozenset(keys | ({'pretrain_network_phase1'} if 'network_g' in replaced else set()))


def _check_model(
    problems: Problems,
    options: dict,
    model: type | None,
    not_read: frozenset[str],
    *,
    here: bool,
) -> None:
    """The model's own view of the whole dict, completed with ``is_train``."""
    check_options = getattr(model, 'check_options', None)
    if check_options is None:
        return
    paths = options['path'] if isinstance(options['path'], Mapping) else {}

    def counts(path: str) -> bool:
        section, _, key = path.partition('.')
        if section == 'path' and key in not_read:
            return False
        return here or section != 'path' or not paths.get(key)  # a file named may lie elsewhere

    problems.check_with('', lambda: check_options(options), counts)


def _check_path(
    problems: Problems,
    options: dict,
    model: type | None,
    networks: Mapping[str, nn.Module | None],
    not_read: frozenset[str],
    *,
    is_train: bool,
    here: bool,
) -> None:
    paths = options.get('path')
    keys, words = schema.model_keys(model, 'path')
    words = frozenset(w for w in words if any(part in w for part in _NO_FOLDER))
    if not problems.check_keys('path', paths, keys, words):
        return
    ignored = paths.get('ignore_resume_networks')
    for name in ignored if isinstance(ignored, list) else ():
        if str(name) not in networks:
            problems.add(
                'path.ignore_resume_networks',
                f'{show(name)} is no network of this file.{did_you_mean(name, networks)}',
            )
    if not is_train and 'network_g' in networks and not paths.get('pretrain_network_g'):
        problems.add('path.pretrain_network_g', 'is empty: the test would score a random network.')
    if not here:
        return
    for key, value in paths.items():
        place = f'path.{key}'
        if not isinstance(value, str) or problems.covers(place) or key in not_read:
            continue
        file = Path(os.path.expanduser(value))
        if key == 'resume_state' and not file.is_file():
            problems.add(place, f'no such file: {value}. To start anew, write ~.')
        elif key == 'resume_state' and is_train:
            _, fault = read_state(file)
            if fault:
                problems.add(place, f'{value} {fault}. Name an older state.')
        elif key.startswith('pretrain_network_') and not file.is_file():
            problems.add(place, f'no such file: {value}.{_remedy(key, file)}')
        elif key.startswith('pretrain_network_'):
            label = key.removeprefix('pretrain_network_')
            first_phase = label == 'phase1'
            net = networks.get('network_g' if first_phase else f'network_{label}')
            strict = paths.get(f'strict_load_{label}', True) is not False
            param_key = paths.get(f'param_key_{label}')
            check_weights(
                problems,
                place,
                value,
                net,
                param_key=param_key if isinstance(param_key, str) else None,
                strict=strict,
                complete=not is_train,
                new_modules=getattr(model, 'new_modules', ()) if first_phase else None,
                arguments=options.get('network_g'),
                label='g' if first_phase else label,
            )


def _remedy(key: str, file: Path) -> str:
    near = []
    if file.parent.is_dir():
        near = [p.name for p in file.parent.glob('*.pth')]
    hint = did_you_mean(file.name, near)
    if key.endswith('network_e'):
        hint += ' Train the embedding first, with an option file of DegradationCLIPModel.'
    return hint
