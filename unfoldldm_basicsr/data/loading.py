"""Training data on torch's DataLoader: reproducible items, and never a silent or nameless fault.

The random numbers of an item follow from ``manual_seed``, the epoch and the item's place in it:
:class:`SeededSampler` gives every index with its seed, :class:`TrainingItems` seeds the generators
with it, and :class:`TrainLoader` sees to it that no wait is without an end.
"""

import hashlib
import itertools
import logging
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.popen_fork import Popen

import cv2
import lmdb
import numpy as np
import torch
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.data.prefetch_dataloader import PrefetchDataLoader, PrefetchGenerator
from torch.utils.data import DataLoader, Dataset, get_worker_info

from unfoldldm_basicsr.common.errors import DEAD_WORKER, LOADER_ADVICE, DataFault, first_line
from unfoldldm_basicsr.common.sections import LoaderOptions
from unfoldldm_basicsr.data.images import read_picture
from unfoldldm_basicsr.data.pixels import ImageError

_log = logging.getLogger('basicsr')
_DEFAULTS = {key: field.default for key, field in LoaderOptions.model_fields.items()}
_FAULTS = (OSError, ValueError, cv2.error, lmdb.Error)
# BasicSR's data sets use what a failed decoder returned.
_STOCK_FAULTS = (*_FAULTS, AttributeError, TypeError, AssertionError)
# How the loss of a loader process shows: torch's own words, or a hand-over that broke off.
_TIMED_OUT = 'DataLoader timed out'
_DEAD_LOADER = (_TIMED_OUT, DEAD_WORKER)
_BROKEN_OFF = (ConnectionError, EOFError, FileNotFoundError)


class SeededSampler(EnlargedSampler):
    """Order of the images of each epoch, a function of seed and epoch only.

    As in ``EnlargedSampler``, every rank has its share of one permutation, the data repeated
    ``ratio`` times; but ``seed`` takes part in the permutation, and every index comes with the seed
    of its own draw, a function of seed, epoch and place in the permutation.
    """

    def __init__(self, dataset: Dataset, num_replicas: int, rank: int, ratio: float, seed: int):
        super().__init__(dataset, num_replicas, rank, ratio)
        self.seed, self._used = seed, {}  # epoch -> samples of each rank that are used already

    def start_at(self, epoch: int, samples: int) -> None:
        """The run starts in ``epoch``, whose first ``samples`` (of each rank) are used already."""
        self.epoch, self._used = epoch, {epoch: samples}

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, used = self.epoch, self._used.get(self.epoch, 0)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.total_size, generator=generator) % len(self.dataset)
        for position in range(used * self.num_replicas + self.rank, len(order), self.num_replicas):
            draw = hashlib.blake2b(f'{self.seed}/{epoch}/{position}'.encode(), digest_size=8)
            yield int(order[position]), int.from_bytes(draw.digest(), 'big') >> 1


def fingerprint(dataset: Dataset) -> dict[str, int | str]:
    """What tells one training set from another: number of images, and a hash of their names."""
    if hasattr(dataset, 'fingerprint'):
        return dataset.fingerprint()
    paths = getattr(dataset, 'paths', None)  # of somebody else it may be anything
    entries = map(_files_of, paths if isinstance(paths, Iterable) else ())
    names = '\n'.join(os.path.basename(path) for entry in entries for path in entry)
    content = names.encode('utf-8', 'surrogateescape')
    return {'images': len(dataset), 'sha256': hashlib.sha256(content).hexdigest()}


def _files_of(entry: object) -> list[str]:
    return [*map(str, entry.values() if isinstance(entry, Mapping) else [entry])]


class ItemReader:
    """Reads items of a data set of any class in limited time, with errors that name their files."""

    def __init__(self, dataset: Dataset, options: Mapping):
        self.dataset = dataset
        self.name = f'dataset {options.get("name", "train")}'
        self.timeout = options.get('timeout', _DEFAULTS['timeout'])
        stock = type(dataset).__module__.startswith('basicsr.')
        self.faults = _STOCK_FAULTS if stock else _FAULTS  # what means an unreadable item

    def read(self, index: int) -> object:
        """One item. Raises DataFault where it cannot be read within ``timeout`` seconds."""
        try:
            with time_limit(self.timeout):
                return self.dataset[index]
        except self.faults as error:
            raise DataFault(f'{self.name}: {self.describe(index, error)}') from error

    def paths(self, index: int) -> list[str]:
        """Names of the files behind an item, as far as its class tells them."""
        known: object = getattr(self.dataset, 'paths', None)
        if hasattr(self.dataset, 'item_paths'):
            return [*map(str, self.dataset.item_paths(index))]
        if isinstance(known, list) and known:
            return _files_of(known[index % len(known)])
        return [f'item {index}']

    def describe(self, index: int, error: Exception) -> str:
        """One line with the files of an item and what is wrong with them."""
        cause = ' '.join(f'{error}'.split()) or type(error).__name__
        parts = self.paths(index)
        if any(part in cause for part in parts):
            return cause
        # BasicSR's data sets go on with what a failed decoder returned, and fail somewhere else.
        for path in [] if isinstance(error, OSError) else filter(os.path.isfile, parts):
            try:
                read_picture(path)
            except ImageError as damage:
                return str(damage)
        return f'{", ".join(parts)}: {type(error).__name__}: {cause}'


class TrainingItems(ItemReader, Dataset):
    """Wraps the training set of any class.

    The random numbers of an item (``random``, ``numpy`` and ``torch``, global generators included)
    follow from the seed that comes with an index alone: neither loader processes nor what was read
    before plays a part.

    An item that cannot be read within ``timeout`` seconds is an error that names its files. With
    ``on_error: skip`` the next readable item takes its place, drawn with the same seed; each is
    logged once, and more than ``max_error_share`` of the set end the run.
    """

    def __init__(self, dataset: Dataset, options: Mapping, workers: int = 0):
        super().__init__(dataset, options)
        self.skip = options.get('on_error', 'raise') == 'skip'
        self.max_share = options.get('max_error_share', _DEFAULTS['max_error_share'])
        # In shared memory, because loader processes write to them.
        self.unreadable = torch.zeros(len(dataset) if self.skip else 0, dtype=torch.bool)
        self.reading = torch.full((max(workers, 1),), -1)
        self.unreadable.share_memory_()
        self.reading.share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> object:
        """What a project asks its data set: ``loader.dataset``, ``get_worker_info().dataset``."""
        if name == 'dataset':  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: object) -> None:
        """What a project tells it (``loader.dataset.level = 2``) is for its data set."""
        known = 'reading' in vars(self) and name not in vars(self)
        setattr(self.dataset, name, value) if known else super().__setattr__(name, value)

    def __getitem__(self, index: int | tuple[int, int]) -> object:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int | tuple[int, int]]) -> list:
        """The items of a batch; the process that trains gets its random numbers back."""
        worker = get_worker_info()
        seeded = isinstance(indices[0], tuple)
        with preserved_rng() if seeded and worker is None else nullcontext():
            return [self._item(index, worker.id if worker else 0) for index in indices]

    def _item(self, index: int | tuple[int, int], place: int) -> object:
        index, seed = index if isinstance(index, tuple) else (index, None)
        while True:
            self.reading[place] = index
            try:
                if seed is not None:
                    random.seed(seed)
                    np.random.seed(seed % 2**32)  # noqa: NPY002  (of BasicSR's augmentations)
                    torch.default_generator.manual_seed(seed)  # torch's own would seed GPUs too
                with time_limit(self.timeout):
                    return self.dataset[index]
            except self.faults as error:
                self._deal_with(index, error)
            finally:
                self.reading[place] = -1
            index = (index + 1) % len(self)

    def being_read(self) -> str:
        """Names of the files that are open at this moment."""
        paths = [path for i in self.reading.tolist() if i >= 0 for path in self.paths(i)]
        return ', '.join(paths) or 'none'

    def _deal_with(self, index: int, error: Exception) -> None:
        """Counts an unreadable item. Raises DataFault without ``skip``, or for too many."""
        message = self.describe(index, error)
        if not self.skip:
            hint = 'datasets.train.on_error: skip would leave such images out.'
            raise DataFault(f'{self.name}: {message} ({hint})') from error
        # Repeated draws of an image count as one.
        first = getattr(self.dataset, 'first_draw_of', int)(index)
        images = getattr(self.dataset, 'count_images', self.__len__)()
        first_time = not self.unreadable[first]
        self.unreadable[first] = True
        count = int(self.unreadable.sum())
        if count > self.max_share * images:
            raise DataFault(
                f'{self.name}: {count} of {images} images cannot be read, more than '
                f'datasets.train.max_error_share ({self.max_share}) allows. The last one: {message}'
            ) from error
        if first_time:
            # As an error, because BasicSR lets the other ranks say nothing less.
            text = f'left out, the next image takes its place (number {count} of {images})'
            _log.error('%s: %s: %s', self.name, text, message)


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Leaves the global generators on the CPU as they were, whatever the block draws."""
    states = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=()):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the block after ``seconds`` (0: never).

    The last tenth counts from when the process runs: one that was stopped for long has it again.
    Works in the main thread of a process on a POSIX system and does nothing elsewhere; there, and
    where the system call that hangs cannot be interrupted, :class:`TrainLoader` ends the wait.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not seconds or not in_main or not hasattr(signal, 'setitimer'):
        yield
        return
    ticks = itertools.count(1)

    def tick(signum, frame):  # the clock of a stopped process (Ctrl-Z, a scheduler) goes on
        if next(ticks) == 10:
            raise TimeoutError(f'no answer within {seconds:g} s (its option timeout)')

    previous = signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, seconds / 10, seconds / 10)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous or signal.SIG_DFL)


class TrainLoader:
    """The training loader: no wait without an end, and no loss of a process without a reason.

    A loader process that hangs where :func:`time_limit` cannot reach it, or that was killed, ends
    the run with the names of the files being read.
    """

    def __init__(self, loader: DataLoader):
        self.loader, self.items = loader, loader.dataset
        # Of the loader's own: batches draw nothing from the generator that the training uses.
        loader.generator = torch.Generator().manual_seed(0)
        self.patience = self.items.timeout * ((loader.batch_size or 1) + 1)
        # In two halves, as the clock of a stopped process goes on; a thread that prefetches has no
        # limit of its own, since it would end by it.
        if loader.num_workers and not isinstance(loader, PrefetchDataLoader):
            loader.timeout = self.patience / 2

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> object:
        if name == 'loader':  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator:
        with signals_blocked(self.loader):
            batches = iter(self.loader)
        source = batches
        if isinstance(batches, PrefetchGenerator):
            batches.timeout, source = self.patience / 2 or None, batches.generator
        for process in getattr(source, '_workers', ()):  # which SIGTERM does not reach
            process._popen.terminate = partial(_end, source, process._popen)
        late = False
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, *_BROKEN_OFF) as error:
                text = first_line(error)
                if text.startswith(_TIMED_OUT):
                    if not late:
                        late = True
                        continue
                    text = f'{_TIMED_OUT} after {self.patience:g} seconds'
                own = isinstance(error, RuntimeError) and not text.startswith(_DEAD_LOADER)
                if own or text.startswith('Caught '):  # what the data set raised, in torch's words
                    raise
                message = (
                    f'{self.items.name}: {text}. Files being read: {self.items.being_read()}. A '
                    'hanging disk: see whether it answers, or raise datasets.train.timeout. '
                    + LOADER_ADVICE
                )
                with suppress(RuntimeError):  # torch complains once more, then its list is empty
                    getattr(batches, '_shutdown_workers', lambda: None)()
                raise DataFault(message) from error
            late = False
            yield batch


def _end(batches: Iterator, process: Popen) -> None:
    """Ends a loader process, in peace if it can be: torch takes a killed one for a fault."""
    batches._shutdown_workers()
    process.kill()


@contextmanager
def signals_blocked(loader: DataLoader) -> Iterator[None]:
    """Loader processes that are started in the block never get SIGTERM and SIGINT.

    These ask the trainer to save and stop; until then it needs its loader processes: torch raises
    an error in the middle of a step when one of them dies.
    """
    if not loader.num_workers or not hasattr(signal, 'pthread_sigmask'):
        yield
        return
    context = loader.multiprocessing_context or multiprocessing.get_context()
    if context.get_start_method() != 'fork':
        resource_tracker.ensure_running()  # its start unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
