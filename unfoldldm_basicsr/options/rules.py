"""Rules about several keys of an option file that hold for BasicSR, whatever the model.

Rules of one model stand beside it, as ``rules``. Each gets the typed run and gives what is wrong.
"""

import re

import torch
from basicsr.utils.registry import ARCH_REGISTRY

from unfoldldm_basicsr.common.contract import contract_of, image_channels
from unfoldldm_basicsr.common.declaration import Problem, Problems, keys_of, show
from unfoldldm_basicsr.common.registration import KNOWN, registered, whose
from unfoldldm_basicsr.common.suggest import did_you_mean
from unfoldldm_basicsr.options.declared import needs_truth
from unfoldldm_basicsr.options.run import Run, constants, functions_of, is_read, section_values

_WEIGHTS = re.compile(r'.*\.(pth|pt|ckpt|bin|safetensors)').fullmatch
_INSTEAD = ', or, without scale and GAN, use model_type: RestorationModel.'


# ---- data sets ----------------------------------------------------------------------------------


def sets_are_read(run: Run) -> Problems:
    datasets = section_values(run.opt, 'datasets')
    if not datasets:
        needed = 'train and usually val' if run.is_train else 'test (or test_1, test_2, ...) or val'
        yield Problem('datasets', f'is missing or empty: write the sections {needed}.')
    elif run.is_train and 'train' not in datasets:
        yield Problem('datasets.train', 'is missing: the data to train on.')
    elif run.is_train and section_values(datasets, 'train').get('batch_size_per_gpu') is None:
        yield Problem('datasets.train.batch_size_per_gpu', 'is missing: batch size per GPU.')
    for phase in datasets:
        if not is_read(str(phase), run.is_train):
            reads = 'training reads train, val, val_2, ...'
            tests = 'a test reads val, val_2, ... and test, test_2, ...'
            message = f'is not read: {reads if run.is_train else tests}. Rename or remove it.'
            yield Problem(f'datasets.{phase}', message)


def sets_have_different_names(run: Run) -> Problems:
    names: dict[str, str] = {}
    for path, section in run.sets():
        name = str(section.get('name'))
        if path != 'datasets.train' and names.setdefault(name, path) != path:
            message = f'{show(name)} is the name of {names[name]} too, their results would mix.'
            yield Problem(f'{path}.name', message)


def images_have_the_channels_of_the_network(run: Run) -> Problems:
    """Else the first step, or the first validation, ends with an error of a convolution.

    A model of somebody else may add channels, and ``in_channels`` of a network mean others.
    """
    section = run.network_sections.get('network_g', {})
    cls = registered(ARCH_REGISTRY, section.get('type'))
    judged = whose(cls) in KNOWN and whose(run.model) in KNOWN
    wanted = image_channels(cls, section) if judged else None
    for path, values in run.sets() if isinstance(wanted, int) else ():
        paired = values.get('type') == 'PairedImageDataset'
        given = getattr(run.datasets.get(path), 'channels', None)
        if paired:
            given = 1 if values.get('color') == 'y' else 3
        if given in (None, wanted):  # None: of somebody else, who knows
            continue
        if wanted not in (1, 3):
            message = f'takes {wanted} channels; data sets give 3, or 1 with color: grey.'
            yield Problem('network_g', message)
            return
        remedy = 'rgb' if wanted == 3 else 'y' if paired else 'grey'
        message = f'gives {given} channels, but network_g takes {wanted}: set it to {remedy}.'
        yield Problem(f'{path}.color', message)


# ---- path, val, logger --------------------------------------------------------------------------


def a_test_has_weights(run: Run) -> Problems:
    theirs = whose(run.model) == 'theirs'  # which may name them otherwise
    if run.is_train or theirs or 'network_g' not in run.opt or run.path.pretrain_network_g:
        return
    network = run.networks.get('network_g')
    others = {f'pretrain_{key}' for key in run.network_sections}  # of discriminators, embeddings
    for key, owner in (('path', run.model), ('network_g', type(network))):
        values = section_values(run.opt, key) if whose(owner) not in KNOWN else {}
        if any(_WEIGHTS(str(v)) for k, v in values.items() if k not in others):
            return  # a class of the project may load it
    if network is None or any(True for _ in network.parameters()):  # bicubic upscaling has none
        yield Problem('path.pretrain_network_g', 'is empty: the test would score a random network.')


def ignored_networks_exist(run: Run) -> Problems:
    ignored = run.path.ignore_resume_networks
    if ignored and isinstance(ignored, str):  # in which BasicSR looks for names
        ignored = [name for name in run.network_sections if name in ignored] or [ignored]
    for name in ignored or ():
        if str(name) not in run.network_sections:
            hint = did_you_mean(name, run.network_sections)
            message = f'{show(name)} is no network of this file.{hint}'
            yield Problem('path.ignore_resume_networks', message)


def metrics_have_a_truth(run: Run) -> Problems:
    sets = {path: section for path, section in run.sets() if path != 'datasets.train'}
    lacking = [path for path, s in sets.items() if s.get('type') == 'SingleImageDataset']
    # Models of this package leave metrics out where there is no truth.
    if not lacking or (len(lacking) < len(sets) and whose(run.model) != 'basicsr'):
        return
    for name, metric in (run.val.metrics or {}).items():
        if needs_truth(metric.get('type')):
            message = f'compares with a ground truth, but {lacking[0]} has none: remove it'
            message += _INSTEAD if len(lacking) < len(sets) else '.'
            yield Problem(f'val.metrics.{name}', message)


def uses_wandb(run: Run) -> bool:
    """Whether BasicSR starts W&B, which it does not for names with ``debug``."""
    project = getattr(getattr(run.logger, 'wandb', None), 'project', None)
    return bool(project) and 'debug' not in str(run.opt.get('name'))


def wandb_is_served(run: Run) -> Problems:
    wandb = getattr(run.logger, 'wandb', None)
    if uses_wandb(run) and not run.logger.use_tb_logger:
        yield Problem('logger.wandb', 'takes its values from TensorBoard: use_tb_logger: true.')
    for key in getattr(wandb, 'model_extra', None) or ():
        message = f'is not read.{did_you_mean(key, keys_of(type(wandb)))}'
        yield Problem(f'logger.wandb.{key}', message, 'warning')


# ---- networks and models ------------------------------------------------------------------------


def networks_suit_the_model(run: Run) -> Problems:
    """Networks of this package that a plain model would call without what they need."""
    net, model = run.networks.get('network_g'), run.model
    if net is None or model is None or whose(type(net)) != 'ours':
        return
    contract, kind = contract_of(net), type(net).__name__
    phases = contract.phase in (1, 'joint') or (contract.phase == 2 and run.is_train)
    if phases and not any('Phase' in base.__name__ for base in model.__mro__):
        name = f'UnfoldLDMPhase{1 if contract.phase == 1 else 2}Model'
        message = (
            f'is {contract.phase}, which {model.__name__} cannot train: use model_type: {name}, or '
            'phase: inference, the form for models that give the network the image alone.'
        )
        yield Problem('network_g.phase', message)
    elif contract.takes_degradation and not hasattr(model, 'sections'):
        message = f'{kind} needs a degradation vector with every image: use model_type: VLUNetModel'
        yield Problem('network_g.type', f'{message} (or a class derived from it).')


def scale_fits(run: Run) -> Problems:
    """Where the file has no scale of its own, each data set has."""
    for path, section in run.sets():
        if section.get('type') != 'PairedImageDataset':
            continue
        scale = section.get('scale', 1)
        place = 'scale' if run.opt.get('scale') == scale else f'{path}.scale'
        if not isinstance(scale, int) or scale < 1:
            yield Problem(place, f'must be a whole number, at least 1, got {show(scale)}.')
            continue
        size = getattr(run.datasets.get(path), 'gt_size', None)
        if path == 'datasets.train' and size and size % scale:
            message = f'is {size}, no multiple of scale ({scale}): patches would not fit together.'
            yield Problem(f'{path}.gt_size', message)
        if scale != 1 and whose(run.model) == 'ours':
            message = (
                f'is {show(scale)}, but {run.model.__name__} restores images in their own size: '
                "set it to 1, or use BasicSR's model_type: SRModel."
            )
            yield Problem(place, message)


def stock_models_can_train(run: Run) -> Problems:
    """BasicSR's own models keep some of BasicSR's traps."""
    if not run.is_train or whose(run.model) != 'basicsr':
        return
    train, read = section_values(run.opt, 'train'), constants(run.model)
    losses = {str(name) for name in train if str(name).endswith('_opt') and train[name]}
    optimisers = {str(name) for name in train if str(name).startswith('optim_')}
    patched = any(whose(f) == 'theirs' for base in run.model.__mro__ for f in functions_of(base))
    for name in () if patched else sorted((losses | optimisers) - read):
        message = (
            f'is read by no part of {run.model.__name__}: nothing comes of it. Remove it, or train '
            'with a model of your own that reads it.'
        )
        yield Problem(f'train.{name}', message, 'warning')
    network = run.networks.get('network_g') or torch.nn.Identity()
    if run.train.ema_decay and any(hasattr(m, 'running_mean') for m in network.modules()):
        message = (
            f"{type(network).__name__} has running statistics, which BasicSR's own models leave "
            f'at zero in the average: remove it{_INSTEAD}'
        )
        yield Problem('train.ema_decay', message, 'warning')
    if not run.train.ema_decay and run.processes > 1 and [*network.buffers()]:
        message = (
            f"is not set: {type(network).__name__} has buffers, and BasicSR's own models would "
            f'lose step with each other in the validation of several processes: set it{_INSTEAD}'
        )
        yield Problem('train.ema_decay', message)
    schedule, total = run.train.scheduler, run.train.total_iter
    if 'periods' in schedule and sum(schedule['periods']) < total:
        message = (
            f'sum to {sum(schedule["periods"])}, less than total_iter ({total}): '
            'the training would crash when they are over. Lengthen the last one.'
        )
        yield Problem('train.scheduler.periods', message)
    kind, warmup = str(schedule.get('type')), run.train.warmup_iter or 0
    if warmup > 0 and kind.startswith('MultiStep'):
        message = (
            f"with {kind}, BasicSR's own models would never leave {warmup - 1}/{warmup} of "
            'the learning rate (the warm-up overwrites what this schedule multiplies): remove it'
        )
        yield Problem('train.warmup_iter', message + _INSTEAD, 'warning')


RULES = (
    sets_are_read,
    images_have_the_channels_of_the_network,
    sets_have_different_names,
    a_test_has_weights,
    ignored_networks_exist,
    metrics_have_a_truth,
    wandb_is_served,
    networks_suit_the_model,
    scale_fits,
    stock_models_can_train,
)
