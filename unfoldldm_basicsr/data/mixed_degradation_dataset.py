"""Several datasets in one, for all-in-one restoration."""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from basicsr.utils import get_root_logger
from basicsr.utils.registry import DATASET_REGISTRY
from pydantic import Field, ValidationInfo, create_model, field_validator
from torch.utils.data import Dataset

from unfoldldm_basicsr.common.declaration import OptionError, Options, Problem, Tuple, read, show
from unfoldldm_basicsr.common.sections import LoaderOptions
from unfoldldm_basicsr.common.suggest import did_you_mean, written_as
from unfoldldm_basicsr.data.paired_degradation_dataset import PairedDegradationDataset
from unfoldldm_basicsr.data.restoration_dataset import (
    DatasetOptions,
    PhotoOptions,
    RestorationDataset,
    SyntheticDegradationDataset,
    at_key,
    title,
)

_SET_CLASSES: dict[str, type[RestorationDataset]] = {
    cls.__name__: cls for cls in (SyntheticDegradationDataset, PairedDegradationDataset)
}
_OF_THE_MIXTURE = {*LoaderOptions.model_fields} - {'type', 'io_backend'} | {'degradation_names'}
_HANDED_DOWN = {*PhotoOptions.model_fields} - {*LoaderOptions.model_fields} | {
    'phase', 'scale', 'io_backend', 'on_error',
}  # fmt: skip


class _Share(Options):
    weight: Annotated[float, Field(gt=0)] | None = None
    """Share of the epoch, in relation to those of the other sets; not with repeat."""


_SET_OPTIONS = {
    name: create_model(f'{name}Part', __base__=(_Share, cls.Options))
    for name, cls in _SET_CLASSES.items()
}
# where pickle looks for classes: loaders that spawn their processes send them the data set
globals().update({cls.__name__: cls for cls in _SET_OPTIONS.values()})


class MixedOptions(PhotoOptions):
    """A mixture of data sets; what is declared here counts for all of them."""

    degradation_names: Tuple[str]
    """All classes of the run, in order of their index."""
    sets: Annotated[list[Any], Field(min_length=1)]
    """The sets: {type, degradation_name, repeat or weight, ...}."""

    @field_validator('sets')
    @classmethod
    def _typed(cls, entries: list, info: ValidationInfo) -> list[DatasetOptions]:
        """Options of every set, with those of the mixture that it does not have itself."""
        common = {key: info.data[key] for key in _HANDED_DOWN if key in info.data}
        told = _HANDED_DOWN - common.keys()  # what is wrong with them
        common['name'] = str(info.data.get('name', 'mixture'))
        typed, problems = [], []
        for index, entry in enumerate(entries):
            try:
                typed.append(_read_set(entry, common))
            except OptionError as error:
                problems += [
                    Problem(f'{index}.{path}'.strip('.'), text)
                    for path, text, *_ in error.problems
                    if path not in told or path in entry
                ]
        weighted = [part.weight is not None for part in typed]
        if any(weighted) and info.data.get('phase') in ('val', 'test'):
            text = 'is for training; validation sees every image once.'
            problems.append(Problem(f'{weighted.index(True)}.weight', text))
        elif any(weighted) and not all(weighted) and not problems:
            text = 'is missing: all sets need one, or none.'
            problems.append(Problem(f'{weighted.index(False)}.weight', text))
        if problems:
            raise OptionError('sets', problems)
        return typed


def _read_set(entry: object, common: Mapping[str, Any]) -> DatasetOptions:
    if not isinstance(entry, Mapping):
        raise OptionError('set', [Problem('', f'must be a mapping, got {entry!r}.')])
    kind, wrong = entry.get('type'), [key for key in entry if key in _OF_THE_MIXTURE]
    problems = [Problem(key, 'is not an option of a set, but of the mixture.') for key in wrong]
    if str(kind) not in _SET_CLASSES:
        hint = did_you_mean(kind, _SET_CLASSES) if kind else written_as('type', entry)
        problems.append(Problem('type', f'must be the class of the set, got {show(kind)}.{hint}'))
    if 'weight' in entry and 'repeat' in entry:
        problems.append(Problem('weight', 'and repeat exclude each other.'))
    if problems:
        raise OptionError('set', problems)
    name = f'{common["name"]}: {entry.get("degradation_name")}'
    return read(_SET_OPTIONS[kind], {**common, 'name': name, **entry}, kind)


@DATASET_REGISTRY.register()
class MixedDegradationDataset(Dataset):
    """An all-in-one mixture of synthetic and paired sets.

    An epoch is a fixed list of (set, image), so any sampler, number of workers and ranks draws from
    it without gaps or doubles: by ``repeat`` factors (every image of a set ``repeat`` times), or by
    ``weight``, the sets' shares of the shortest epoch that sees every image at least once. In
    validation every image occurs once, set after set.
    """

    Options = MixedOptions

    def __init__(self, opt: Mapping[str, Any] | MixedOptions) -> None:
        owner = title(opt, type(self))
        self.opt = opt
        self.options = opt if isinstance(opt, Options) else read(MixedOptions, opt, owner)
        self.degradation_names = list(self.options.degradation_names)
        self.sets: list[RestorationDataset] = []
        for index, entry in enumerate(self.options.sets):
            with at_key(owner, f'sets.{index}'):
                self.sets.append(_SET_CLASSES[entry.type](entry))
        lengths = [len(part) for part in self.sets]
        weights = [entry.weight for entry in self.options.sets]
        counts = lengths if weights[0] is None else weighted_counts(lengths, weights)
        self._ends = np.cumsum(counts)
        for part, length, count in zip(self.sets, lengths, counts, strict=True):
            get_root_logger().info(
                f'{self.options.name}: {part.degradation_name} (class {part.degradation}): '
                f'{length} images, {count} per epoch ({100 * count / sum(counts):.1f} %)'
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def first_items(self) -> list[int]:
        """Index of the first item of each set."""
        return [0, *map(int, self._ends[:-1])]

    def _locate(self, index: int) -> tuple[RestorationDataset, int]:
        """The set of an item, and its index there."""
        if not 0 <= index < len(self):
            raise IndexError(f'index {index} of a dataset of {len(self)} items')
        place = int(np.searchsorted(self._ends, index, side='right'))
        start = int(self._ends[place - 1]) if place else 0
        return self.sets[place], (index - start) % len(self.sets[place])

    def __getitem__(self, index: int) -> dict:
        part, index = self._locate(index)
        return part[index]

    def label_of(self, index: int) -> int:
        """Index of an item's degradation, without loading the item."""
        return self._locate(index)[0].degradation

    def item_paths(self, index: int) -> list[str]:
        part, index = self._locate(index)
        return part.item_paths(index)

    def fingerprint(self) -> dict[str, int | str]:
        """Number of images of all sets, and a hash of their names and sizes."""
        parts = [part.fingerprint() for part in self.sets]
        joint = hashlib.sha256('\n'.join(str(part['sha256']) for part in parts).encode())
        return {'images': sum(part['images'] for part in parts), 'sha256': joint.hexdigest()}


def weighted_counts(lengths: list[int], weights: list[float]) -> list[int]:
    """Items per set of the shortest epoch with these shares that holds every image at least once.

    >>> weighted_counts([100, 10], [1, 1])
    [100, 100]
    """
    scale = max(length / weight for length, weight in zip(lengths, weights, strict=True))
    return [round(weight * scale) for weight in weights]
