"""Data loading: real epoch lengths, fresh random numbers per epoch, errors that arrive."""

from __future__ import annotations

import copyreg
import hashlib
import importlib
import logging
import math
import os
import queue
import random
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch.utils.data import Dataset

from unfoldldm_basicsr.data.items import SeededIndex, TrainingItems, TrainLoader, draw_seed


def create_train_val_dataloader(opt: dict, logger: logging.Logger) -> tuple:
    """Replaces ``basicsr.train.create_train_val_dataloader``.

    BasicSR counts a last partial batch that its loader drops, so training ends before
    ``total_iter``, and after no step at all when a batch is larger than the data. Its sampler gives
    every seed the same order, and a resumed run starts the epoch anew. Here epochs are counted from
    the loader, the order of the images and their random numbers follow ``manual_seed``, and a
    resumed run goes on with the batch after the last one it used, reading none before it.

    Adds ``steps_per_epoch`` and ``data_fingerprint`` to ``opt``, for the training state.

    Returns:
        ``(train_loader, train_sampler, val_loaders, total_epochs, total_iters)``.

    Raises:
        ValueError: no images, no full batch, or a data set section of unknown phase.
    """
    from basicsr.data import build_dataloader, build_dataset

    resumed = opt.pop('resumed_run', None)
    train, val_loaders = None, []
    for phase, dataset_opt in opt['datasets'].items():
        dataset = build_dataset(dataset_opt)
        if len(dataset) == 0:
            raise ValueError(f'datasets.{phase}: no images found. Look at its dataroot keys.')
        settings = {'num_gpu': opt['num_gpu'], 'dist': opt['dist'], 'seed': opt['manual_seed']}
        if phase == 'train':
            ratio = dataset_opt.get('dataset_enlarge_ratio', 1)
            sampler = SeededSampler(
                dataset, opt['world_size'], opt['rank'], ratio, opt['manual_seed']
            )
            items = TrainingItems(dataset, dataset_opt, _workers(opt, dataset_opt))
            loader = build_dataloader(items, dataset_opt, sampler=sampler, **settings)
            train = TrainLoader(loader), sampler
            opt['data_fingerprint'] = fingerprint(dataset)
        elif phase.split('_')[0] == 'val':
            val_loaders.append(build_dataloader(dataset, dataset_opt, sampler=None, **settings))
            logger.info(f'Number of val images/folders in {dataset_opt["name"]}: {len(dataset)}')
        else:
            raise ValueError(
                f"datasets.{phase}: training knows 'train', 'val' and 'val_...' sections only."
            )
    if train is None:
        raise ValueError("datasets: there is no 'train' section.")

    loader, sampler = train
    steps, total_iters = len(loader), int(opt['train']['total_iter'])
    if steps == 0:
        message = no_full_batch(len(loader.dataset), len(sampler), loader.batch_size)
        raise ValueError(f'datasets.train.batch_size_per_gpu: {message}')
    epochs = math.ceil(total_iters / steps)
    opt['steps_per_epoch'] = steps
    if resumed is not None:
        first_epoch, used = divmod(resumed.state['iter'], steps)
        sampler.start_at(first_epoch, used * loader.batch_size)
        resumed.state.update(epoch=first_epoch, val_loaders=val_loaders)
        resumed.report(opt)
        resumed.set_aside_newer(opt)
    logger.info(
        'Training statistics:'
        f'\n\tNumber of train images: {len(loader.dataset)}'
        f'\n\tBatch size per process: {loader.batch_size}'
        f'\n\tProcesses: {opt["world_size"]}'
        f'\n\tSteps per epoch: {steps}'
        f'\n\tTotal epochs: {epochs}; iters: {total_iters}.'
    )
    return loader, sampler, val_loaders, epochs, total_iters


def no_full_batch(images: int, samples: int, batch: int) -> str:
    """Message for a batch that the data cannot fill."""
    factor = math.ceil(batch / max(samples, 1))
    return (
        f'{images} images give each process {samples} samples per epoch, less than one batch of '
        f'{batch}, so no step would be made. Lower it, or multiply dataset_enlarge_ratio by '
        f'{factor}.'
    )


def fingerprint(dataset: Dataset) -> dict[str, int | str]:
    """What tells one training set from another: number of images, and a hash of their names.

    Data sets of this package give theirs (``fingerprint()``), with sizes.
    """
    if hasattr(dataset, 'fingerprint'):
        return dataset.fingerprint()
    paths = getattr(dataset, 'paths', [])
    entries = [list(p.values()) if isinstance(p, Mapping) else [p] for p in paths]
    names = '\n'.join(os.path.basename(str(path)) for entry in entries for path in entry)
    return {'images': len(dataset), 'sha256': hashlib.sha256(names.encode()).hexdigest()}


def _workers(opt: Mapping, dataset_opt: Mapping) -> int:
    """Number of loader processes, as BasicSR counts it."""
    return dataset_opt['num_worker_per_gpu'] * (1 if opt['dist'] else max(opt['num_gpu'], 1))


class SeededSampler(torch.utils.data.Sampler):
    """Order of the images of each epoch, a function of seed and epoch only.

    Like BasicSR's ``EnlargedSampler`` (every rank its share of one permutation, the data repeated
    ``ratio`` times), except that ``seed`` takes part in the permutation, and that every index
    carries the seed of its own draw, a function of seed, epoch and place in the permutation.
    """

    def __init__(self, dataset: Dataset, num_replicas: int, rank: int, ratio: float, seed: int):
        self.dataset, self.num_replicas, self.rank, self.seed = dataset, num_replicas, rank, seed
        self.epoch = 0
        self.num_samples = math.ceil(len(dataset) * ratio / num_replicas)
        self._first = 0, 0

    def start_at(self, epoch: int, samples: int) -> None:
        """The run starts in ``epoch``, whose first ``samples`` (of each rank) are used already."""
        self.epoch = epoch
        self._first = epoch, samples

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch
        used = self._first[1] if epoch == self._first[0] else 0
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.num_samples * self.num_replicas, generator=generator)
        order %= len(self.dataset)
        for position in range(used * self.num_replicas + self.rank, len(order), self.num_replicas):
            yield SeededIndex(int(order[position]), draw_seed(self.seed, epoch, position))

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def worker_init_fn(worker_id: int, num_workers: int, rank: int, seed: int) -> None:
    """Replaces ``basicsr.data.worker_init_fn``, which gives every epoch the same crops and flips.

    torch seeds each worker from the main process's generator: differently for every epoch, worker
    and rank, and reproducibly. The generators of ``random`` and ``numpy`` follow it.
    """
    base = torch.initial_seed()
    random.seed(base)
    np.random.seed(base % 2**32)  # noqa: NPY002  (BasicSR's augmentations use the global generator)


class _Failure:
    """An exception on its way from the reading thread to the training loop."""

    def __init__(self, error: BaseException):
        self.error = error


def prefetch_run(self) -> None:
    """Replaces ``PrefetchGenerator.run``: an error in the thread used to hang the training."""
    try:
        for item in self.generator:
            self.queue.put(item)
    except BaseException as error:  # noqa: BLE001  (re-raised in the consuming thread)
        self.queue.put(_Failure(error))
    else:
        self.queue.put(None)


def prefetch_next(self) -> object:
    """Replaces ``PrefetchGenerator.__next__``: raises what the reading thread met.

    With an attribute ``timeout`` it waits no longer than so many seconds.
    """
    patience = getattr(self, 'timeout', None)
    try:
        item = self.queue.get(timeout=patience)
    except queue.Empty as error:
        raise RuntimeError(f'DataLoader timed out after {patience:g} seconds') from error
    if isinstance(item, _Failure):
        raise item.error
    if item is None:
        raise StopIteration
    return item


def cpu_prefetcher_init(self, loader) -> None:
    """Replaces ``CPUPrefetcher.__init__``, which started a set of workers that nobody reads.

    The training loop calls ``reset`` before every epoch, the first one included.
    """
    self.ori_loader = loader
    self.loader = iter(())


def make_stock_datasets_picklable() -> None:
    """BasicSR's data sets reach workers that were spawned, not forked.

    Such a worker unpickles the data set before it imports anything of this package, and importing
    BasicSR fails there. Pickled through :func:`_rebuild`, they bring this package along.
    """
    from basicsr.utils.registry import DATASET_REGISTRY

    for _, cls in DATASET_REGISTRY:
        if cls.__module__.startswith('basicsr.'):
            copyreg.pickle(cls, _reduce)


def _reduce(dataset: Dataset) -> tuple:
    cls = type(dataset)
    return _rebuild, (cls.__module__, cls.__qualname__, dataset.__dict__)


def _rebuild(module: str, name: str, state: dict) -> Dataset:
    cls = getattr(importlib.import_module(module), name)
    dataset = cls.__new__(cls)
    dataset.__dict__.update(state)
    return dataset
