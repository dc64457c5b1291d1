"""Loader processes and prefetching: fresh random numbers per epoch, and errors that arrive."""

from __future__ import annotations

import copyreg
import importlib
import queue
import random

import numpy as np
import torch
from torch.utils.data import Dataset


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
