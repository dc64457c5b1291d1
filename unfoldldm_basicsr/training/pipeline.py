"""What BasicSR's train and test pipelines call in this package in place of their own functions.

Remedies of faults are in :mod:`..compat`; these are the ways of this package.
"""

import logging
import math

import basicsr
import basicsr.metrics
import basicsr.train
import basicsr.utils.options
from basicsr.models.base_model import BaseModel
from basicsr.utils.dist_util import get_dist_info
from basicsr.utils.registry import MODEL_REGISTRY

from unfoldldm_basicsr.common.errors import on_rank_0
from unfoldldm_basicsr.common.option_files import ordered_yaml, parse_value
from unfoldldm_basicsr.common.registration import KNOWN, registered, whose
from unfoldldm_basicsr.compat import replace
from unfoldldm_basicsr.data import loading
from unfoldldm_basicsr.metrics.calculate import calculate_metric
from unfoldldm_basicsr.options.run import SET_AT_START, reads_itself
from unfoldldm_basicsr.training import resume
from unfoldldm_basicsr.training.interruption import stop_request
from unfoldldm_basicsr.training.progress import progress
from unfoldldm_basicsr.training.start import build_dataset, dict2str, parse_options
from unfoldldm_basicsr.weights.loading import load_network


def install() -> None:
    """Puts the functions of this package into BasicSR's pipelines; again changes nothing."""
    for owner, name, replacement in (
        (basicsr.utils.options, 'ordered_yaml', ordered_yaml),
        (basicsr.utils.options, '_postprocess_yml_value', parse_value),
        (basicsr.utils.options, 'parse_options', parse_options),
        (basicsr.utils.options, 'dict2str', dict2str),
        (basicsr.data, 'build_dataset', build_dataset),
        (basicsr.train, 'train_pipeline', train_pipeline),
        (basicsr.utils, 'make_exp_dirs', make_exp_dirs),
        (basicsr.train, 'load_resume_state', resume.load_resume_state),
        (basicsr.train, 'create_train_val_dataloader', create_train_val_dataloader),
        (basicsr.metrics, 'calculate_metric', calculate_metric),
        (BaseModel, 'load_network', load_network),
    ):
        replace(owner, name, replacement)


def train_pipeline(root_path: str) -> None:
    """Replaces ``basicsr.train.train_pipeline``: gives the signals back, however it ends."""
    try:
        train_pipeline.replaces(root_path)
    finally:
        stop_request.remove()


def make_exp_dirs(opt: dict) -> None:
    """Replaces ``basicsr.utils.make_exp_dirs``, with which rank 0 moves older results away.

    The others wait for it, else their new images would be moved too. A key of ``path`` that is no
    folder of a run becomes one only where a model of a project may mean it.
    """
    path, model = opt['path'], registered(MODEL_REGISTRY, opt.get('model_type'))
    if whose(model) in KNOWN:
        path = {key: path[key] for key in SET_AT_START['path'] if key in path}
    rank, count = get_dist_info()  # a script of its own may not have set them
    here = {'dist': count > 1, 'rank': rank, 'world_size': count}
    on_rank_0(here, lambda: make_exp_dirs.replaces({**opt, 'path': path}))


def create_train_val_dataloader(opt: dict, logger: logging.Logger) -> tuple:
    """Replaces ``basicsr.train.create_train_val_dataloader``.

    Epochs are counted from the loader, which drops a last partial batch; the order of the images
    and their random numbers follow ``manual_seed``, and a resumed run goes on with the batch after
    the last one it used, reading none before it.

    Returns:
        ``(train_loader, train_sampler, val_loaders, total_epochs, total_iters)``.
    """
    # which a project may have replaced
    build_dataset, build_dataloader = basicsr.train.build_dataset, basicsr.train.build_dataloader
    settings = {'num_gpu': opt['num_gpu'], 'dist': opt['dist'], 'seed': opt['manual_seed']}
    sections, val_loaders = dict(opt['datasets']), []
    train = sections.pop('train')
    dataset, ratio = build_dataset(train), train.get('dataset_enlarge_ratio', 1)
    # New workers every epoch cost seconds each, but only they see what a project tells its data
    # set between epochs; torch refuses persistent ones without workers.
    persistent = train.get('persistent_workers', not reads_itself(type(dataset)))
    kept = train['num_worker_per_gpu'] > 0 and persistent
    train = {**train, 'persistent_workers': kept}
    sampler = loading.SeededSampler(
        dataset, opt['world_size'], opt['rank'], ratio, opt['manual_seed']
    )
    # as many loader processes as BasicSR counts
    workers = train['num_worker_per_gpu'] * (1 if opt['dist'] else max(opt['num_gpu'], 1))
    items = loading.TrainingItems(dataset, train, workers)
    loader = loading.TrainLoader(build_dataloader(items, train, sampler=sampler, **settings))
    progress.data = loading.fingerprint(dataset)
    for section in sections.values():  # val, val_2, ...
        dataset = build_dataset(section)
        val_loaders.append(build_dataloader(dataset, section, sampler=None, **settings))
        logger.info(f'Number of val images/folders in {section["name"]}: {len(dataset)}')

    steps, total_iters = len(loader), int(opt['train']['total_iter'])
    epochs = math.ceil(total_iters / steps)
    progress.steps_per_epoch, progress.val_loaders = steps, val_loaders
    resumed = progress.resumed
    if resumed is not None:
        first_epoch, used = divmod(resumed.state['iter'], steps)
        sampler.start_at(first_epoch, used * loader.batch_size)
        resumed.state['epoch'] = first_epoch
        resume.report_changes(opt, resumed.state)
    logger.info(
        f'Training statistics:\n\tNumber of train images: {len(loader.dataset)}'
        f'\n\tBatch size per process: {loader.batch_size}\n\tProcesses: {opt["world_size"]}'
        f'\n\tSteps per epoch: {steps}\n\tTotal epochs: {epochs}; iters: {total_iters}.'
    )
    return loader, sampler, val_loaders, epochs, total_iters
