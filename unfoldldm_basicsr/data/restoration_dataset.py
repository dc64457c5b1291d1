"""What the datasets share: option keys and their checks, cropping, and randomness.

Randomness. In training every item draws its seed from torch's generator, which the training loader
seeds for each item from ``manual_seed``, the epoch and the item's place in it
(:class:`.items.TrainingItems`): neither loader processes nor an interruption play a part.
In validation an item's seed is (``seed``, index): the same in every run and worker.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch.utils.data import Dataset

from unfoldldm_basicsr.common.suggest import did_you_mean
from unfoldldm_basicsr.data.image_source import ImageSource
from unfoldldm_basicsr.data.patches import (
    Window,
    center_crop,
    pad_to_size,
    random_flips,
    random_window,
)

OptionKeys = dict[str, tuple[tuple[type, ...], str]]
Problems = list[tuple[str, str]]

PHASES = ('train', 'val', 'test')
_NONE = type(None)

SET_KEYS: OptionKeys = {
    'name': ((str,), 'name in the log'),
    'type': ((str,), 'class of the dataset'),
    'phase': ((str,), 'train or val; set by BasicSR'),
    'scale': ((int,), 'set by BasicSR from the top level; only 1'),
    'io_backend': ((dict,), '{type: disk} (default) or {type: lmdb}'),
    'gt_size': ((int, _NONE), 'training: side of the patches in pixels'),
    'use_hflip': ((bool,), 'training: random mirroring (default true)'),
    'use_rot': ((bool,), 'training: random turns by 90 degrees (default true)'),
    'repeat': ((int,), 'training: how many times an epoch sees each image (default 1)'),
    'seed': ((int,), 'seed of the degradations in validation (default 0)'),
    'center_crop': ((int, _NONE), 'validation: use only the central square of this side'),
    'crop_multiple': ((int, _NONE), 'validation: crop centrally to a multiple of this size'),
    'degradation_name': ((str, _NONE), "this set's class, one of degradation_names"),
    'degradation_names': ((list, _NONE), 'all classes of the run, in order of their index'),
}

LOADER_KEYS: OptionKeys = {  # read by BasicSR's loader and training loop
    'num_worker_per_gpu': ((int,), 'loader processes per GPU'),
    'batch_size_per_gpu': ((int,), 'batch size per GPU'),
    'dataset_enlarge_ratio': ((int, float), 'passes over the data per epoch'),
    'use_shuffle': ((bool,), 'accepted for old files; BasicSR always shuffles training data'),
    'prefetch_mode': ((str, _NONE), '~, cuda or cpu'),
    'num_prefetch_queue': ((int,), 'queue length of prefetch_mode cpu'),
    'pin_memory': ((bool,), 'page-locked memory, for GPUs'),
    'persistent_workers': ((bool,), 'keep the loader processes between epochs'),
    'on_error': ((str,), 'unreadable images: raise (default) or skip, to take the next one'),
    'max_error_share': ((int, float), 'share of unreadable images that skip allows (0.01)'),
    'timeout': ((int, float), 'seconds after which an image counts as unreadable (300); 0: never'),
}
_ON_ERROR = ('raise', 'skip')
_NUM_FINGERPRINTED = 1000  # files per folder whose sizes are part of the fingerprint


def key_problems(opt: Mapping, keys: OptionKeys) -> Problems:
    """Unknown keys and values of a wrong type in a dataset's options."""
    problems = []
    for key, value in opt.items():
        if key not in keys:
            problems.append((key, f'is not an option here.{did_you_mean(key, keys)}'))
            continue
        types, meaning = keys[key]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            wanted = ' or '.join('~' if t is _NONE else t.__name__ for t in types)
            problems.append((key, f'must be {wanted} ({meaning}), got {value!r}.'))
    return problems


def raise_problems(dataset: str, problems: Problems) -> None:
    """Raises one ValueError that lists ``problems``, if there are any."""
    if problems:
        raise ValueError(f'{dataset}: ' + ' '.join(f'{key}: {text}' for key, text in problems))


@contextmanager
def errors_named(dataset: str) -> Iterator[None]:
    """Puts the dataset's name in front of the errors of the block."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{dataset}: {error}') from error
    except OSError as error:
        raise OSError(f'{dataset}: {error}') from error
    except ValueError as error:
        raise ValueError(f'{dataset}: {error}') from error


class RestorationDataset(Dataset):
    """Base of the datasets that return degraded and clean images of equal size.

    Items are dicts: ``lq``, ``gt`` (float32 C H W, RGB, [0, 1]), ``lq_path``, ``gt_path``,
    ``degradation`` (index in ``degradation_names``) and ``degradation_name``.

    Args:
        opt: the dataset's part of the option file, as BasicSR hands it over.

    Raises:
        ValueError, FileNotFoundError: what is wrong with which key.
    """

    option_keys: ClassVar[OptionKeys] = {**SET_KEYS, **LOADER_KEYS}

    def __init__(self, opt: dict) -> None:
        problems = key_problems(opt, self.option_keys) + self._value_problems(opt)
        if opt.get('phase') not in PHASES:
            problems.append(('phase', f'must be one of {", ".join(PHASES)}.'))
        raise_problems(self._title(opt), problems)
        self.opt = opt
        self.is_train = opt['phase'] == 'train'
        self.seed = opt.get('seed', 0)
        self.repeat = opt.get('repeat', 1)

    @classmethod
    def _title(cls, opt: Mapping) -> str:
        return f'dataset {opt.get("name", "without a name")} ({cls.__name__})'

    @classmethod
    def _value_problems(cls, opt: Mapping) -> Problems:
        """Wrong values of the common keys; says nothing on values of a wrong type."""
        problems: Problems = []
        phase = opt.get('phase')
        backend = opt.get('io_backend')
        if isinstance(backend, dict):
            for key in backend.keys() - {'type'}:
                problems.append((f'io_backend.{key}', 'is not an option; only type is.'))
        problems += cls._fault_problems(opt)
        if opt.get('scale', 1) != 1:
            problems.append(
                ('scale', f'is {opt["scale"]}, but these datasets give lq and gt of equal size: 1.')
            )
        for key in ('gt_size', 'repeat', 'center_crop', 'crop_multiple'):
            value = opt.get(key)
            if isinstance(value, int) and value < 1:
                problems.append((key, f'must be at least 1, got {value}.'))
        if isinstance(opt.get('seed'), int) and opt['seed'] < 0:
            problems.append(('seed', f'must not be negative, got {opt["seed"]}.'))
        if phase == 'train' and opt.get('gt_size') is None:
            problems.append(('gt_size', 'is missing: the side of the training patches in pixels.'))
        for key in ('center_crop', 'crop_multiple'):
            if phase == 'train' and opt.get(key) is not None:
                problems.append((key, 'is for validation; training patches have gt_size.'))
        if phase in PHASES[1:] and opt.get('repeat', 1) != 1:
            problems.append(('repeat', 'is for training; validation sees every image once.'))
        return problems + cls._class_problems(opt)

    @staticmethod
    def _fault_problems(opt: Mapping) -> Problems:
        """Wrong values of the keys about unreadable images."""
        problems: Problems = []
        policy, share, timeout = (opt.get(k) for k in ('on_error', 'max_error_share', 'timeout'))
        if isinstance(policy, str) and policy not in _ON_ERROR:
            problems.append(
                ('on_error', f"'{policy}' is unknown.{did_you_mean(policy, _ON_ERROR)}")
            )
        if policy == 'skip' and opt.get('phase') in PHASES[1:]:
            problems.append(
                ('on_error', 'a validation measures every image: skip is for training.')
            )
        if isinstance(share, int | float) and not 0 <= share < 1:
            problems.append(('max_error_share', f'must lie in [0, 1), got {share}.'))
        if share is not None and policy != 'skip':
            problems.append(('max_error_share', 'has no effect without on_error: skip.'))
        if isinstance(timeout, int | float) and timeout < 0:
            problems.append(('timeout', f'must not be negative, got {timeout}.'))
        return problems

    @classmethod
    def _class_problems(cls, opt: Mapping) -> Problems:
        names, name = opt.get('degradation_names'), opt.get('degradation_name')
        if not isinstance(names, list):
            return []
        if not names or not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
            return [('degradation_names', f'must be a list of different names, got {names!r}.')]
        if name is None:
            return [('degradation_name', f'is missing: which of {", ".join(names)} this set is.')]
        if name not in names:
            return [('degradation_name', f"'{name}' is no class.{did_you_mean(name, names)}")]
        return []

    @classmethod
    def check_options(cls, opt: Mapping) -> Problems:
        """Problems with values, found before anything is built: (key, message) pairs."""
        problems = cls._value_problems(opt)
        if opt.get('phase') == 'train':
            for key in ('batch_size_per_gpu', 'num_worker_per_gpu'):
                if key not in opt:
                    problems.append((key, 'is missing; BasicSR needs it to load training data.'))
        return problems

    @staticmethod
    def _path_problems(opt: Mapping, *roots: str) -> Problems:
        """Data folders and lists that are missing."""
        problems: Problems = []
        for key in roots:
            root = opt.get(key)
            if not isinstance(root, str) or not root:
                problems.append((key, f'must name a folder or an LMDB, got {root!r}.'))
            elif not Path(root).expanduser().is_dir():
                problems.append((key, f'{root}: no such folder (current folder: {Path.cwd()}).'))
        meta = opt.get('meta_info_file')
        if isinstance(meta, str) and not Path(meta).expanduser().is_file():
            problems.append(
                ('meta_info_file', f'{meta}: no such file (current folder: {Path.cwd()}).')
            )
        return problems

    def _set_class(self, default_name: str) -> None:
        names = self.opt.get('degradation_names')
        name = self.opt.get('degradation_name') or default_name
        self.degradation_names = list(names) if names else [name]
        self.degradation_name = name
        self.degradation = self.degradation_names.index(name)

    def label_of(self, index: int) -> int:
        """Index of an item's degradation, without loading the item."""
        return self.degradation

    def sources(self) -> list[tuple[ImageSource, list[str]]]:
        """Where the images come from, with their names in the order of the items."""
        raise NotImplementedError

    def check_index(self, index: int) -> None:
        """Raises IndexError where there is no such item, so that iterating over the set ends."""
        if not 0 <= index < len(self):
            raise IndexError(f'index {index} of a dataset of {len(self)} items')

    def item_paths(self, index: int) -> list[str]:
        """Names of the files behind an item, without reading them."""
        return [source.origin(names[index % len(names)]) for source, names in self.sources()]

    def fingerprint(self) -> dict[str, int | str]:
        """Number of images, and a hash of names and sizes (reading the contents would be slow)."""
        digest, images = hashlib.sha256(), 0
        for source, names in self.sources():
            images = len(names)
            step = max(1, len(names) // _NUM_FINGERPRINTED)
            measured = set(range(0, len(names), step))
            for index, name in enumerate(names):
                size = source.size(name) if index in measured else ''
                digest.update(f'{name}\0{size}\n'.encode())
        return {'images': images, 'sha256': digest.hexdigest()}

    def _generator(self, index: int) -> np.random.Generator:
        """The source of all randomness of one item (see the module docstring)."""
        if self.is_train:
            draw = int(torch.randint(2**63 - 1, (1,)).item())
            return np.random.default_rng([self.seed, draw])
        return np.random.default_rng([self.seed, index])

    def _training_patch(
        self, images: list[np.ndarray], rng: np.random.Generator, margin: int = 0
    ) -> tuple[list[np.ndarray], Window]:
        """The same random crop and flip of every image, still in its integer type.

        Returns:
            The patches with up to ``margin`` pixels around them, and the window that trims them.
        """
        size = self.opt['gt_size']
        images = [pad_to_size(image, size) for image in images]
        window = random_window(*images[0].shape[:2], size, rng, margin)
        flips = random_flips(
            rng, hflip=self.opt.get('use_hflip', True), rot=self.opt.get('use_rot', True)
        )
        patches = [np.ascontiguousarray(flips.apply(window.cut(image))) for image in images]
        return patches, flips.apply_to_margins(window)

    def _validation_crop(self, image: np.ndarray) -> np.ndarray:
        side, multiple = self.opt.get('center_crop'), self.opt.get('crop_multiple')
        if side:
            image = center_crop(image, side, side)
        if multiple:
            height, width = (s - s % multiple or s for s in image.shape[:2])
            image = center_crop(image, height, width)
        return np.ascontiguousarray(image)
