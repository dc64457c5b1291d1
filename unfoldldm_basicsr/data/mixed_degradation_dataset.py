"""Several datasets in one, for all-in-one restoration."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from basicsr.utils import get_root_logger
from basicsr.utils.registry import DATASET_REGISTRY
from torch.utils.data import Dataset

from unfoldldm_basicsr.common.registration import register
from unfoldldm_basicsr.common.suggest import did_you_mean, written_as
from unfoldldm_basicsr.data.paired_degradation_dataset import PairedDegradationDataset
from unfoldldm_basicsr.data.restoration_dataset import (
    LOADER_KEYS,
    PHASES,
    SET_KEYS,
    OptionKeys,
    Problems,
    RestorationDataset,
    errors_named,
    key_problems,
    raise_problems,
)
from unfoldldm_basicsr.data.synthetic_degradation_dataset import SyntheticDegradationDataset

_SET_CLASSES: dict[str, type[RestorationDataset]] = {
    'SyntheticDegradationDataset': SyntheticDegradationDataset,
    'PairedDegradationDataset': PairedDegradationDataset,
}
_INHERITED = (
    'phase', 'scale', 'io_backend', 'gt_size', 'use_hflip', 'use_rot', 'seed', 'center_crop',
    'crop_multiple',
)  # fmt: skip
_OF_ONE_SET = ('repeat', 'degradation_name')
_LARGEST_EPOCH = 5_000_000


@register(DATASET_REGISTRY)
class MixedDegradationDataset(Dataset):
    """An all-in-one mixture of synthetic and paired sets.

    Each entry of ``sets`` has the keys of its own dataset class, a ``degradation_name`` out of
    ``degradation_names``, and takes the common keys (``gt_size``, ``io_backend``, ``seed``, ...)
    from the mixture where it does not set them itself.

    An epoch is a fixed list of (set, image), so any sampler, number of workers and number of ranks
    draws from it without gaps or doubles. Its composition is either by ``repeat`` factors (every
    image of a set ``repeat`` times; the default 1), or by ``weight``: the sets' shares of the epoch
    are proportional to their weights, and the epoch is as long as it takes to see every image at
    least once. In validation every image occurs once, set after set.
    """

    option_keys: ClassVar[OptionKeys] = {
        **{key: value for key, value in SET_KEYS.items() if key not in _OF_ONE_SET},
        **LOADER_KEYS,
        'sets': ((list,), 'the sets: {type, degradation_name, repeat or weight, ...}'),
    }

    def __init__(self, opt: dict) -> None:
        title = f'dataset {opt.get("name", "without a name")} (MixedDegradationDataset)'
        raise_problems(title, key_problems(opt, self.option_keys) + self._set_problems(opt))
        self.opt = opt
        self.degradation_names = list(opt['degradation_names'])
        self.sets: list[RestorationDataset] = []
        for index, entry in enumerate(opt['sets']):
            with errors_named(f'{title}, sets[{index}]'):
                set_opt = _set_options(opt, entry)
                self.sets.append(_SET_CLASSES[set_opt['type']](set_opt))
        lengths = [len(part) for part in self.sets]
        weights = [entry.get('weight') for entry in opt['sets']]
        counts = lengths if weights[0] is None else weighted_counts(lengths, weights)
        if sum(counts) > _LARGEST_EPOCH:
            raise ValueError(
                f'{title}: the weights make an epoch of {sum(counts)} images, because a set of '
                f'many images has a small weight: raise it, or use repeat factors.'
            )
        self._ends = np.cumsum(counts)
        for part, length, count in zip(self.sets, lengths, counts, strict=True):
            get_root_logger().info(
                f'{opt.get("name", "mixture")}: {part.degradation_name} (class '
                f'{part.degradation}): {length} images, {count} per epoch '
                f'({100 * count / sum(counts):.1f} %)'
            )

    @classmethod
    def _set_problems(cls, opt: Mapping) -> Problems:
        """Problems with the structure of the mixture and the keys of its sets."""
        sets, names = opt.get('sets'), opt.get('degradation_names')
        problems: Problems = []
        if not isinstance(names, list):
            problems.append(('degradation_names', 'is missing: the classes in order of index.'))
        if not isinstance(sets, list) or not sets:
            return [*problems, ('sets', f'must be a list of at least one set, got {sets!r}.')]
        for index, entry in enumerate(sets):
            place = f'sets[{index}]'
            if not isinstance(entry, Mapping):
                problems.append((place, f'must be a mapping, got {entry!r}.'))
            elif 'type' not in entry:
                hint = written_as('type', entry)
                problems.append((f'{place}.type', f'is missing: the class of the set.{hint}'))
            elif entry['type'] not in _SET_CLASSES:
                hint = did_you_mean(entry.get('type'), _SET_CLASSES)
                problems.append((f'{place}.type', f"no set class '{entry.get('type')}'.{hint}"))
            else:
                problems += [(f'{place}.{key}', text) for key, text in _entry_problems(entry)]
        if problems:
            return problems
        weighted = ['weight' in entry for entry in sets]
        if any(weighted) and opt.get('phase') in PHASES[1:]:
            text = 'is for training; validation sees every image once.'
            problems.append((f'sets[{weighted.index(True)}].weight', text))
        elif any(weighted) and not all(weighted):
            problems.append(
                (f'sets[{weighted.index(False)}].weight', 'is missing: all sets need one, or none.')
            )
        return problems

    @classmethod
    def check_options(cls, opt: Mapping) -> Problems:
        """Problems with values, those of every set included: (key, message) pairs."""
        problems = cls._set_problems(opt)
        if problems:
            return problems
        for index, entry in enumerate(opt['sets']):
            set_opt = _set_options(opt, entry)
            set_opt.update({key: opt[key] for key in LOADER_KEYS if key in opt})
            for key, text in _SET_CLASSES[set_opt['type']].check_options(set_opt):
                shared = key not in entry and (key in _INHERITED or key in LOADER_KEYS)
                problem = (key if shared else f'sets[{index}].{key}', text)
                if problem not in problems:
                    problems.append(problem)
        return problems

    def __len__(self) -> int:
        return int(self._ends[-1])

    def label_of(self, index: int) -> int:
        """Index of an item's degradation, without loading the item."""
        return self.sets[self._part_of(index)].degradation

    def _part_of(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f'index {index} of a dataset of {len(self)} items')
        return int(np.searchsorted(self._ends, index, side='right'))

    def _index_within(self, part: int, index: int) -> int:
        start = int(self._ends[part - 1]) if part else 0
        return (index - start) % len(self.sets[part])

    def item_paths(self, index: int) -> list[str]:
        """Names of the files behind an item, without reading them."""
        part = self._part_of(index)
        return self.sets[part].item_paths(self._index_within(part, index))

    def fingerprint(self) -> dict[str, int | str]:
        """Number of images of all sets, and a hash of their names and sizes."""
        parts = [part.fingerprint() for part in self.sets]
        joint = hashlib.sha256('\n'.join(str(part['sha256']) for part in parts).encode())
        return {'images': sum(part['images'] for part in parts), 'sha256': joint.hexdigest()}

    def __getitem__(self, index: int) -> dict:
        part = self._part_of(index)
        return self.sets[part][self._index_within(part, index)]


def weighted_counts(lengths: list[int], weights: list[float]) -> list[int]:
    """Items per set of the shortest epoch with these shares that holds every image at least once.

    >>> weighted_counts([100, 10], [1, 1])
    [100, 100]
    """
    scale = max(length / weight for length, weight in zip(lengths, weights, strict=True))
    return [
        max(length, round(weight * scale)) for length, weight in zip(lengths, weights, strict=True)
    ]


def _set_options(opt: Mapping, entry: Mapping) -> dict:
    """Options of one set: its own, then the mixture's."""
    inherited = {key: opt[key] for key in _INHERITED if key in opt}
    own = {key: value for key, value in entry.items() if key != 'weight'}
    name = f'{opt.get("name", "mixture")}/{entry["degradation_name"]}'
    return {'name': name, **inherited, **own, 'degradation_names': opt['degradation_names']}


def _entry_problems(entry: Mapping) -> Problems:
    """Unknown keys, wrong types and weights of one set."""
    keys = {**_SET_CLASSES[entry['type']].option_keys, 'weight': ((int, float), 'share')}
    for key in ('degradation_names', 'phase', *LOADER_KEYS):
        del keys[key]
    problems = key_problems(entry, keys)
    if 'degradation_name' not in entry:
        problems.append(('degradation_name', 'is missing: one of degradation_names.'))
    weight = entry.get('weight')
    if isinstance(weight, int | float) and not weight > 0:
        problems.append(('weight', f'must be positive, got {weight}.'))
    if 'weight' in entry and 'repeat' in entry:
        problems.append(('weight', 'and repeat exclude each other.'))
    return problems
