"""Checks of the ``datasets`` section."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import cv2
import lmdb
import torch

from unfoldldm_basicsr.common.suggest import did_you_mean
from unfoldldm_basicsr.data.image_source import close_lmdbs, read_lmdb_index, stored_keys
from unfoldldm_basicsr.data.items import ItemReader, TrainingItems
from unfoldldm_basicsr.data.loaders import no_full_batch
from unfoldldm_basicsr.options.components import find_registered, registered
from unfoldldm_basicsr.options.problems import VALUE_ERRORS, Problems
from unfoldldm_basicsr.options.schema import IO_BACKENDS, dataset_keys
from unfoldldm_basicsr.options.values import show

_DATA_KEYS = ('dataroot', 'meta_info')  # beginnings of the keys that name files
_KEY_PARTS = re.compile(r'[^.\[\]]+')  # 'sets[0].dataroot_gt' -> sets, 0, dataroot_gt


# Keys that only the loader of the training data, and the patches of this package, make use of.
_OF_TRAINING = (
    'num_worker_per_gpu', 'batch_size_per_gpu', 'dataset_enlarge_ratio', 'use_shuffle',
    'persistent_workers',
)  # fmt: skip
_OF_LOADER = ('prefetch_mode', 'num_prefetch_queue', 'pin_memory')
_OF_PATCHES = ('gt_size', 'use_hflip', 'use_rot')


class Start(NamedTuple):
    """How a run is started.

    Attributes:
        is_train: training or test.
        here: whether the data must exist on this machine. Then the sets are built as well, so that
            nothing of them can fail later, and the training batch is compared with their size.
        processes: number of processes of the run.
        replicas: batches of ``batch_size_per_gpu`` that each process draws for a step.
    """

    is_train: bool
    here: bool
    processes: int = 1
    replicas: int = 1


def check_datasets(problems: Problems, options: Mapping, start: Start) -> None:
    """Checks every data set of an option dict.

    Args:
        problems: gets what is found.
        options: completed with defaults; ``phase`` and ``scale`` in each data set.
        start: how the run is started.
    """
    from basicsr.utils.registry import MODEL_REGISTRY

    is_train = start.is_train
    datasets = options.get('datasets')
    if not isinstance(datasets, Mapping) or not datasets:
        what = 'is missing' if datasets is None else 'holds no data set'
        needed = 'train and usually val' if is_train else 'test (or test_1, test_2, ...) or val'
        problems.add('datasets', f'{what}: write the sections {needed}.')
        return
    model = registered(MODEL_REGISTRY, options.get('model_type'))
    phases = ('train', 'val') if is_train else ('val', 'test')
    if is_train and 'train' not in datasets:
        problems.add('datasets.train', 'is missing: the data to train on.')
    names: dict[str, str] = {}
    for phase, section in datasets.items():
        path = f'datasets.{phase}'
        kind = str(phase).split('_')[0]
        if kind not in phases or (kind == 'train' and phase != 'train'):
            read = (
                'training reads train, val, val_2, ...'
                if is_train
                else ('a test reads val, val_2, ... and test, test_2, ...')
            )
            problems.add(path, f'is not read: {read}')
            continue
        check_dataset(problems, path, section, start, model)
        name = section.get('name') if isinstance(section, Mapping) else None
        if kind != 'train' and name is not None:
            if str(name) in names:
                problems.add(
                    f'{path}.name',
                    f'{show(name)} is the name of {names[str(name)]} too, their results would mix.',
                )
            names.setdefault(str(name), path)


def check_dataset(
    problems: Problems, path: str, section: object, start: Start, model: type | None
) -> None:
    """Checks one data set; ``model`` is the class that it is for, None if that is not known."""
    from basicsr.utils.registry import DATASET_REGISTRY

    here = start.here
    cls = find_registered(problems, path, section, DATASET_REGISTRY, 'data set')
    if cls is None:
        return
    keys, words = dataset_keys(cls)
    training = section.get('phase') == 'train'
    required = ['batch_size_per_gpu'] if training and 'batch_size_per_gpu' in keys else []
    own = {k: v for k, v in section.items() if k not in ('phase', 'scale')}
    problems.check_keys(path, own, keys, words, required)
    name = section.get('name')
    if isinstance(name, str) and (not name.strip('. ') or set(name) & set('/\\\0')):
        problems.add(f'{path}.name', f'{show(name)} becomes a folder: it cannot hold / or \\.')
    _check_backend(problems, path, section)
    _check_prefetch(problems, path, section, here)
    if not training:
        _check_training_keys(problems, path, section, cls, model)
    check_options = getattr(cls, 'check_options', None)
    if check_options is not None:

        def counts(key: str) -> bool:
            name = key.rsplit('.', 1)[-1]
            return here or not name.startswith(_DATA_KEYS) or not _value_at(section, key)

        problems.check_with(path, lambda: check_options(section), counts)
    elif here:
        _check_roots(problems, path, section)
    if here:
        _check_lmdbs(problems, path, section)
    if here and not problems.within(path):
        _build(problems, path, cls, section, start)


def _value_at(section: Mapping, key: str) -> object:
    """The value of a key path such as ``sets[0].dataroot_gt``, None where there is none."""
    value: object = section
    for part in _KEY_PARTS.findall(key):
        try:
            value = value[int(part)] if isinstance(value, list) else value.get(part)
        except (AttributeError, IndexError, ValueError):  # no section or list there
            return None
    return value


def _check_backend(problems: Problems, path: str, section: Mapping) -> None:
    backend = section.get('io_backend')
    if not isinstance(backend, Mapping):
        return  # a wrong type is found with the other keys
    if backend.get('type') not in IO_BACKENDS:
        problems.add(
            f'{path}.io_backend.type',
            f'unknown value {show(backend.get("type"))}.'
            f'{did_you_mean(backend.get("type"), IO_BACKENDS)} '
            '(others could import code from a folder named in the option file)',
        )
    for key in backend:
        if key != 'type':
            problems.add(f'{path}.io_backend.{key}', 'is not an option; only type is.')


def _check_training_keys(
    problems: Problems, path: str, section: Mapping, cls: type, model: type | None
) -> None:
    """Keys of a validation set that nothing reads.

    The models of this package take the images of a validation one by one from the data set;
    BasicSR's own ask its loader.
    """
    unread = set(_OF_TRAINING)
    if hasattr(model, 'option_keys'):
        unread.update(_OF_LOADER)
    if hasattr(cls, 'option_keys'):
        unread.update(_OF_PATCHES)
    message = 'has no effect here: it is for the training data. Remove it.'
    for key in section:
        if key in unread:
            problems.add(f'{path}.{key}', message)
    parts = section.get('sets')
    for index, part in enumerate(parts if isinstance(parts, list) else []):
        for key in part if isinstance(part, Mapping) else ():
            if key in _OF_PATCHES:
                problems.add(f'{path}.sets[{index}].{key}', message)


def _check_prefetch(problems: Problems, path: str, section: Mapping, here: bool) -> None:
    if 'num_prefetch_queue' in section and section.get('prefetch_mode') != 'cpu':
        problems.add(f'{path}.num_prefetch_queue', 'has no effect without prefetch_mode: cpu.')
    if section.get('prefetch_mode') != 'cuda' or section.get('phase') != 'train':
        return
    if section.get('pin_memory') is not True:
        problems.add(f'{path}.pin_memory', 'must be true with prefetch_mode: cuda.')
    if here and not torch.cuda.is_available():
        problems.add(
            f'{path}.prefetch_mode', "'cuda' needs a GPU, and none is seen here: set it to ~."
        )


def _check_roots(problems: Problems, path: str, section: Mapping) -> None:
    """Existence of what the keys of a stock data set name."""
    backend = section.get('io_backend')
    is_lmdb = isinstance(backend, Mapping) and backend.get('type') == 'lmdb'
    for key, value in section.items():
        if not isinstance(value, str) or not key.startswith(_DATA_KEYS):
            continue
        place = Path(os.path.expanduser(value))
        if key.startswith('meta_info'):
            if not place.is_file():
                problems.add(f'{path}.{key}', f'no such file: {value}.{_relative(place)}')
        elif not place.is_dir():
            problems.add(f'{path}.{key}', f'no such folder: {value}.{_relative(place)}')
        elif is_lmdb and not value.endswith('.lmdb'):
            problems.add(f'{path}.{key}', f"the name of an LMDB must end with '.lmdb': {value}.")


def _check_lmdbs(problems: Problems, path: str, section: Mapping) -> None:
    """Whether every LMDB of a data set, and of the parts of a mixture, is whole."""
    backend = section.get('io_backend')
    if isinstance(backend, Mapping) and backend.get('type') == 'lmdb':
        for key, value in section.items():
            place = Path(os.path.expanduser(value)) if isinstance(value, str) else None
            if str(key).startswith('dataroot') and place and (place / 'data.mdb').is_file():
                _check_lmdb(problems, f'{path}.{key}', str(place))
    parts = section.get('sets')
    for index, part in enumerate(parts if isinstance(parts, list) else []):
        if isinstance(part, Mapping):
            _check_lmdbs(problems, f'{path}.sets[{index}]', {'io_backend': backend, **part})


def _check_lmdb(problems: Problems, path: str, folder: str) -> None:
    """The list of an LMDB against what it holds; a truncated file is never touched."""
    try:
        listed, stored = read_lmdb_index(folder).keys(), stored_keys(folder)
    except (ValueError, OSError) as error:
        problems.add(path, str(error))
        return
    finally:
        close_lmdbs()
    lacking, extra = listed - stored, stored - listed
    if lacking or extra:
        kind, keys = ('lacks', lacking) if lacking else ('holds, but does not list,', extra)
        problems.add(
            path,
            f'{folder} {kind} {len(keys)} of {len(listed | stored)} images, the first is '
            f"'{min(keys)}': data.mdb and meta_info.txt do not belong together. Make it again with "
            'scripts/data/make_lmdb.py.',
        )


def _relative(place: Path) -> str:
    return '' if place.is_absolute() else f' Relative paths start at {Path.cwd()}.'


def _build(problems: Problems, path: str, cls: type, section: Mapping, start: Start) -> None:
    """Builds the set as BasicSR will, reads one item, and compares its size with the batch."""
    try:
        dataset = cls(deepcopy(dict(section)))
        images = len(dataset)
        if images and section.get('phase') == 'train':
            TrainingItems(dataset, section)[0]
        elif images:
            ItemReader(dataset, section).read(0)
    except (*VALUE_ERRORS, lmdb.Error, cv2.error) as error:
        kind = '' if isinstance(error, (ValueError, OSError)) else f'{type(error).__name__}: '
        problems.add(path, f'{cls.__name__} does not work with these values: {kind}{error}')
        return
    if images == 0:
        problems.add(path, 'holds no images. Look at its dataroot keys.')
    elif section.get('phase') == 'train':
        _check_batch(problems, path, section, start, images)


def _check_batch(
    problems: Problems, path: str, section: Mapping, start: Start, images: int
) -> None:
    batch = section['batch_size_per_gpu'] * start.replicas
    samples = math.ceil(images * section.get('dataset_enlarge_ratio', 1) / start.processes)
    if samples < batch:
        problems.add(f'{path}.batch_size_per_gpu', no_full_batch(images, samples, batch))
