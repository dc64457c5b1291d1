"""Rules about several keys of an option file that hold for BasicSR, whatever the model.

Rules of one model stand beside it, as ``rules``. Each gets the typed run and gives what is wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from basicsr.models import lr_scheduler
from basicsr.models.hifacegan_model import HiFaceGANModel
from basicsr.models.srgan_model import SRGANModel
from basicsr.models.stylegan2_model import StyleGAN2Model
from basicsr.utils.registry import ARCH_REGISTRY, METRIC_REGISTRY

from unfoldldm_basicsr.archs.layers.vss import SS2D
from unfoldldm_basicsr.common.contract import contract_of, image_channels
from unfoldldm_basicsr.common.declaration import OptionError, Problem, keys_of, read, show
from unfoldldm_basicsr.common.sections import FREE
from unfoldldm_basicsr.common.suggest import did_you_mean, written_as
from unfoldldm_basicsr.ops.ss2d.dispatch import BACKENDS
from unfoldldm_basicsr.options.declared import options_of, registered
from unfoldldm_basicsr.options.machine import Machine
from unfoldldm_basicsr.options.run import Run, section_values

Found = Iterator[Problem]
_WITHOUT_GT = {'SingleImageDataset'}
_INSTEAD = 'or use model_type: RestorationModel.'
# Keys that only the loader of the training data, and the patches of this package, make use of.
_OF_TRAINING = (
    'num_worker_per_gpu', 'batch_size_per_gpu', 'dataset_enlarge_ratio', 'use_shuffle',
    'persistent_workers',
)  # fmt: skip
_OF_LOADER = ('prefetch_mode', 'num_prefetch_queue', 'pin_memory')
_OF_PATCHES = ('gt_size', 'use_hflip', 'use_rot')


def is_read(phase: str, is_train: bool) -> bool:
    """Whether a training, or a test, reads ``datasets.PHASE``."""
    kind = phase.split('_')[0]
    return phase == 'train' or kind == 'val' if is_train else kind in ('val', 'test')


def sets_of(run: Run) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Path and section of every data set that is read."""
    for phase, section in section_values(run.opt, 'datasets').items():
        if isinstance(section, Mapping) and is_read(str(phase), run.is_train):
            yield f'datasets.{phase}', section


# ---- data sets ----------------------------------------------------------------------------------


def sets_are_read(run: Run, machine: Machine) -> Found:
    datasets = section_values(run.opt, 'datasets')
    if not datasets:
        needed = 'train and usually val' if run.is_train else 'test (or test_1, test_2, ...) or val'
        yield Problem('datasets', f'is missing or empty: write the sections {needed}.')
    elif run.is_train and 'train' not in datasets:
        yield Problem('datasets.train', 'is missing: the data to train on.')
    for phase in datasets:
        if not is_read(str(phase), run.is_train):
            reads = 'training reads train, val, val_2, ...'
            tests = 'a test reads val, val_2, ... and test, test_2, ...'
            yield Problem(f'datasets.{phase}', f'is not read: {reads if run.is_train else tests}.')


def sets_have_different_names(run: Run, machine: Machine) -> Found:
    names: dict[str, str] = {}
    for path, section in sets_of(run):
        name = str(section.get('name'))
        if path != 'datasets.train' and names.setdefault(name, path) != path:
            message = f'{show(name)} is the name of {names[name]} too, their results would mix.'
            yield Problem(f'{path}.name', message)


def loader_keys_have_an_effect(run: Run, machine: Machine) -> Found:
    for path, section in sets_of(run):
        training = path == 'datasets.train'
        if training and section.get('batch_size_per_gpu') is None:
            yield Problem(f'{path}.batch_size_per_gpu', 'is missing: batch size per GPU.')
        if 'num_prefetch_queue' in section and section.get('prefetch_mode') != 'cpu':
            message = 'has no effect without prefetch_mode: cpu.'
            yield Problem(f'{path}.num_prefetch_queue', message, 'warning')
        if training and section.get('prefetch_mode') == 'cuda':
            if section.get('pin_memory') is not True:
                yield Problem(f'{path}.pin_memory', 'must be true with prefetch_mode: cuda.')
            if machine.here and not torch.cuda.is_available():
                message = "'cuda' needs a GPU, and none is seen here: set it to ~."
                yield Problem(f'{path}.prefetch_mode', message)


def validation_knows_no_training_keys(run: Run, machine: Machine) -> Found:
    """The models of this package take the images one by one from the data set, without loader."""
    ours = hasattr(run.model, 'sections')
    for path, section in sets_of(run):
        if path == 'datasets.train':
            continue
        places = {path: section}
        parts = section.get('sets')
        for index, part in enumerate(parts if isinstance(parts, list) else []):
            places[f'{path}.sets.{index}'] = part if isinstance(part, Mapping) else {}
        for place, values in places.items():
            unread = {*_OF_TRAINING, *(_OF_LOADER if ours else ())}
            if not _is_stock_set(section):
                unread.update(_OF_PATCHES)
            for key in unread & values.keys():
                message = 'has no effect here: it is for the training data.'
                yield Problem(f'{place}.{key}', message, 'warning')


def _is_stock_set(section: Mapping) -> bool:
    from basicsr.utils.registry import DATASET_REGISTRY

    return not hasattr(registered(DATASET_REGISTRY, section.get('type')), 'Options')


# ---- path, val, logger --------------------------------------------------------------------------


def a_test_has_weights(run: Run, machine: Machine) -> Found:
    if not run.is_train and 'network_g' in run.opt and not run.path.pretrain_network_g:
        message = 'is empty: the test would score a random network.'
        yield Problem('path.pretrain_network_g', message)


def ignored_networks_exist(run: Run, machine: Machine) -> Found:
    ignored = run.path.ignore_resume_networks
    for name in ignored if isinstance(ignored, list) else ():
        if str(name) not in run.network_sections:
            hint = did_you_mean(name, run.network_sections)
            message = f'{show(name)} is no network of this file.{hint}'
            yield Problem('path.ignore_resume_networks', message)


def folders_have_names(run: Run, machine: Machine) -> Found:
    for key, value in section_values(run.opt, 'path').items():
        free = FREE['path'].fullmatch(str(key)) or isinstance(value, str)
        if not free and key not in keys_of(type(run.path)):
            message = f'BasicSR makes a folder of every such key and cannot of {show(value)}.'
            yield Problem(f'path.{key}', message)


def metrics_have_a_truth(run: Run, machine: Machine) -> Found:
    sets = [section for path, section in sets_of(run) if path != 'datasets.train']
    if not sets or any(str(s.get('type')) not in _WITHOUT_GT for s in sets):
        return
    for name, metric in (run.val.metrics or {}).items():
        function = registered(METRIC_REGISTRY, metric.get('type'))
        truth = function and inspect.signature(function).parameters.get('img2')
        if truth is not None and truth.default is inspect.Parameter.empty:
            message = 'compares with a ground truth, but no validation set has one: remove it.'
            yield Problem(f'val.metrics.{name}', message)


def loggers_are_installed(run: Run, machine: Machine) -> Found:
    if run.logger is None:
        return
    if run.logger.wandb is not None and run.logger.wandb.project is not None:
        if find_spec('wandb') is None:
            message = 'needs Weights & Biases: pip install wandb.'
            yield Problem('logger.wandb.project', message)
        if not run.logger.use_tb_logger:
            yield Problem('logger.use_tb_logger', 'must be true with logger.wandb.project.')
    if run.logger.use_tb_logger and find_spec('tensorboard') is None:
        yield Problem('logger.use_tb_logger', 'needs TensorBoard: pip install tensorboard.')


def embedding_fits(run: Run, machine: Machine) -> Found:
    """The degradation embedding ``network_e`` must give what ``network_g`` takes."""
    given, taken = (
        getattr(run.networks.get(name), 'embed_dim', None) for name in ('network_e', 'network_g')
    )
    if given is not None and taken is not None and given != taken:
        message = f'is {taken}, but network_e gives vectors of {given} numbers: set it to {given}.'
        yield Problem('network_g.embed_dim', message)


def scan_backend_is_of_use(run: Run, machine: Machine) -> Found:
    name, network = run.opt.get('scan_backend', 'auto'), run.networks.get('network_g')
    if name == 'auto':
        return
    if name not in BACKENDS:
        hint = did_you_mean(name, ('auto', *BACKENDS))
        yield Problem('scan_backend', f'unknown value {show(name)}.{hint}')
    elif network is not None and not any(isinstance(m, SS2D) for m in network.modules()):
        message = f'has no effect: {type(network).__name__} has no selective scan.'
        yield Problem('scan_backend', message)
    elif name != 'torch' and machine.gpus == 0:
        message = f"'{name}' needs a GPU; on the CPU the backend is always torch."
        yield Problem('scan_backend', message)


# ---- trainings with BasicSR's own models --------------------------------------------------------


def networks_suit_the_model(run: Run, machine: Machine) -> Found:
    """Networks of this package that a plain model would call without what they need."""
    net, model = run.networks.get('network_g'), run.model
    if net is None or model is None or not type(net).__module__.startswith('unfoldldm_basicsr.'):
        return
    contract, kind = contract_of(net), type(net).__name__
    phases = contract.phase in (1, 'joint') or (contract.phase == 2 and run.is_train)
    if phases and not any('Phase' in base.__name__ for base in model.__mro__):
        host = 'VLUNetPrior' if contract.takes_degradation else 'UnfoldLDM'
        name = f'{host}Phase{1 if contract.phase == 1 else 2}Model'
        message = (
            f'is {contract.phase}, which {model.__name__} cannot train: use model_type: {name}, or '
            'phase: inference, the form for models that give the network the image alone.'
        )
        yield Problem('network_g.phase', message)
    elif contract.takes_degradation and not hasattr(model, 'sections'):
        message = f'{kind} needs a degradation vector with every image: use model_type: VLUNetModel'
        yield Problem('network_g.type', f'{message} (or a class derived from it).')


def discriminators_are_there(run: Run, machine: Machine) -> Found:
    trainers = (SRGANModel, StyleGAN2Model, HiFaceGANModel)
    own = run.model is not None and run.model.__module__.startswith('basicsr.')
    if run.is_train and own and issubclass(run.model, trainers) and 'network_d' not in run.opt:
        yield Problem(
            'network_d', f'is missing: the discriminator that {run.model.__name__} trains.'
        )


def sections_name_their_type(run: Run, machine: Machine) -> Found:
    for name, section in section_values(run.opt, 'train').items():
        path = f'train.{name}'
        if not isinstance(section, Mapping):
            continue
        if (str(name).startswith('optim_') or name == 'scheduler') and 'type' not in section:
            yield Problem(f'{path}.type', f'is missing.{written_as("type", section)}')
        if str(name).endswith('_opt'):
            for key, value in section.items():
                negative = isinstance(value, int | float) and value < 0
                if negative and str(key).endswith('_weight'):
                    message = f'must not be negative, got {show(value)}.'
                    yield Problem(f'{path}.{key}', message)


def stock_training(run: Run, machine: Machine) -> Found:
    """BasicSR's own models keep some of BasicSR's traps."""
    if not run.is_train or run.model is None or not run.model.__module__.startswith('basicsr.'):
        return
    train = section_values(run.opt, 'train')
    if not any(str(name).endswith('_opt') and train[name] for name in train):
        yield Problem('train.pixel_opt', 'is missing: no loss is named, nothing would be learned.')
    for name in train:
        if str(name).startswith('optim_'):
            yield from _optimizer(f'train.{name}', train[name])
    yield from _schedule(run)
    network, averaged = run.networks.get('network_g'), bool(run.train.ema_decay)
    modules, buffers = (list(network.modules()), list(network.buffers())) if network else ([], [])
    if averaged and any(hasattr(m, 'running_mean') for m in modules):
        yield Problem(
            'train.ema_decay',
            f"{type(network).__name__} has running statistics, which BasicSR's own models leave "
            f'at zero in the average: remove it, {_INSTEAD}',
            'warning',
        )
    if not averaged and machine.processes > 1 and buffers:
        yield Problem(
            'train.ema_decay',
            f"is not set: {type(network).__name__} has buffers, and BasicSR's own models would "
            f'lose step with each other in the validation of several processes: set it, {_INSTEAD}',
        )
    if machine.processes > 1 and not torch.cuda.is_available():
        yield Problem(
            'model_type',
            "BasicSR's own models cannot train in several processes without GPUs: start one, "
            f'{_INSTEAD}',
        )


def _optimizer(path: str, section: object) -> Found:
    """BasicSR's models know one optimiser; the models of this package check their own."""
    if not isinstance(section, Mapping) or section.get('type') != 'Adam':
        kind = section.get('type') if isinstance(section, Mapping) else section
        yield Problem(
            f'{path}.type',
            f"BasicSR's own models know 'Adam' only, got {show(kind)}. "
            'model_type: RestorationModel takes every optimiser of torch.',
        )
        return
    yield from _arguments(path, torch.optim.Adam, section, ('params',))
    rate = section.get('lr', 1e-3)
    if isinstance(rate, (int, float)) and not rate >= 0:
        yield Problem(f'{path}.lr', f'must not be negative, got {show(rate)}.')


def _arguments(path: str, owner: type, section: Mapping, given: tuple[str, ...]) -> Found:
    try:
        read(options_of(owner, given), {k: v for k, v in section.items() if k != 'type'})
    except OptionError as error:
        for key, *rest in error.problems:
            yield Problem(f'{path}.{key}', *rest)


def _schedule(run: Run) -> Found:
    schedule, path = run.train.scheduler, 'train.scheduler'
    classes = {
        'MultiStepLR': lr_scheduler.MultiStepRestartLR,
        'MultiStepRestartLR': lr_scheduler.MultiStepRestartLR,
        'CosineAnnealingRestartLR': lr_scheduler.CosineAnnealingRestartLR,
    }
    kind = schedule.get('type')
    if not isinstance(kind, str) or kind not in classes:
        yield Problem(f'{path}.type', f'no schedule {show(kind)}.{did_you_mean(kind, classes)}')
        return
    given = ('optimizer', 'last_epoch')
    problems = list(_arguments(path, classes[kind], schedule, given))
    if problems:
        yield from problems
        return
    parameters = inspect.signature(classes[kind]).parameters
    steps = {n: schedule.get(n, p.default) for n, p in parameters.items() if n not in given}
    first = 'restarts' if 'restarts' in steps else 'periods'
    for name in ('milestones', first, 'restart_weights'):
        values = steps.get(name, ())
        if not isinstance(values, (list, tuple)) or any(isinstance(v, (str, bool)) for v in values):
            yield Problem(f'{path}.{name}', f'must be a list of numbers, got {show(values)}.')
            return
    weights, starts = len(steps['restart_weights']), len(steps[first])
    if weights != starts:
        yield Problem(f'{path}.restart_weights', f'{weights} values for {starts} {first}.')
    total, warmup = run.train.total_iter, run.train.warmup_iter
    if first == 'periods' and sum(steps['periods']) < total:
        yield Problem(
            f'{path}.periods',
            f'sum to {sum(steps["periods"])}, less than total_iter ({total}): '
            'the training would crash when they are over. Lengthen the last one.',
        )
    if warmup and warmup > 0 and kind.startswith('MultiStep'):
        yield Problem(
            'train.warmup_iter',
            f"with {kind}, BasicSR's own models would never leave {(warmup - 1) / warmup:.3g} of "
            f'the learning rate (the warm-up overwrites what this schedule multiplies): remove it, '
            f'{_INSTEAD}',
            'warning',
        )


def images_have_the_channels_of_the_network(run: Run, machine: Machine) -> Found:
    """Else the first step ends with an error of a convolution."""
    section = run.network_sections.get('network_g')
    cls = registered(ARCH_REGISTRY, section.get('type')) if section else None
    wanted = image_channels(cls, section) if cls else None
    for path, values in sets_of(run) if isinstance(wanted, int) else ():
        given = getattr(run.datasets.get(path.partition('.')[2]), 'channels', None)
        if given is None and values.get('type') != 'PairedImageDataset':
            continue  # of somebody else, who knows
        if given is None:
            given = 1 if values.get('color') == 'y' else 3
        if given != wanted and wanted in (1, 3):
            remedy = 'rgb' if wanted == 3 else 'grey (y in data sets of BasicSR)'
            message = f'gives {given} channels, but network_g takes {wanted}: set it to {remedy}.'
            yield Problem(f'{path}.color', message)
        elif given != wanted:
            message = f'network_g takes {wanted} channels; data sets give 3, or 1 with color: grey.'
            yield Problem('network_g', message)
            return
    embedding = run.network_sections.get('network_e') or {}
    kind = registered(ARCH_REGISTRY, embedding.get('type'))
    if isinstance(wanted, int) and kind and 'in_channels' in inspect.signature(kind).parameters:
        given = image_channels(kind, embedding)
        if given != wanted:
            message = f'is {given}, but network_g takes {wanted} channels: make them equal.'
            yield Problem('network_e.in_channels', message)


RULES = (
    sets_are_read,
    images_have_the_channels_of_the_network,
    sets_have_different_names,
    loader_keys_have_an_effect,
    validation_knows_no_training_keys,
    a_test_has_weights,
    ignored_networks_exist,
    folders_have_names,
    metrics_have_a_truth,
    loggers_are_installed,
    embedding_fits,
    scan_backend_is_of_use,
    networks_suit_the_model,
    discriminators_are_there,
    sections_name_their_type,
    stock_training,
)
