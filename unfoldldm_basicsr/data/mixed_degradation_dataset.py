"""Several datasets in one, for all-in-one restoration."""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping
from typing import Annotated, Any

from basicsr.utils import get_root_logger
from basicsr.utils.registry import DATASET_REGISTRY
from pydantic import BeforeValidator, Field, ValidationInfo
from torch.utils.data import ConcatDataset

from unfoldldm_basicsr.common.declaration import OptionError, Options, Problem, Tuple, read, show
from unfoldldm_basicsr.common.sections import LoaderOptions
from unfoldldm_basicsr.common.suggest import did_you_mean, written_as
from unfoldldm_basicsr.data.paired_degradation_dataset import PairedDegradationDataset
from unfoldldm_basicsr.data.restoration_dataset import (
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


def _read_set(entry: object, info: ValidationInfo) -> object:
    """Options of a set, with those of the mixture that it does not have itself."""
    if not isinstance(entry, Mapping):
        raise ValueError(f'must be a mapping, got {entry!r}.')
    kind, wrong = entry.get('type'), [key for key in entry if key in _OF_THE_MIXTURE]
    problems = [Problem(key, 'is not an option of a set, but of the mixture.') for key in wrong]
    if 'weight' in entry:
        problems.append(Problem('weight', 'is gone: give the sets a repeat factor each.'))
    if str(kind) not in _SET_CLASSES:
        hint = did_you_mean(kind, _SET_CLASSES) if kind else written_as('type', entry)
        problems.append(Problem('type', f'must be the class of the set, got {show(kind)}.{hint}'))
    if problems:
        raise OptionError('set', problems)
    common = {key: info.data[key] for key in _HANDED_DOWN if key in info.data}
    name = f'{info.data.get("name", "mixture")}: {entry.get("degradation_name")}'.replace('/', '-')
    try:
        return read(_SET_CLASSES[kind].Options, {**common, 'name': name, **entry}, kind)
    except OptionError as error:
        told = _HANDED_DOWN - common.keys()  # what is wrong with them
        own = [found for found in error.problems if found.path not in told or found.path in entry]
        if own:
            raise OptionError('set', own) from error
        return entry


class MixedOptions(PhotoOptions):
    """A mixture of data sets; what is declared here counts for all of them."""

    degradation_names: Tuple[str]
    """All classes of the run, in order of their index."""
    sets: Annotated[list[Annotated[Any, BeforeValidator(_read_set)]], Field(min_length=1)]
    """The sets: {type, degradation_name, repeat, ...}."""


@DATASET_REGISTRY.register()
class MixedDegradationDataset(ConcatDataset):
    """An all-in-one mixture of synthetic and paired sets.

    An epoch is a fixed list of (set, image), each image as often as the ``repeat`` of its set says,
    so any sampler, number of workers and ranks draws from it without gaps or doubles.
    """

    Options = MixedOptions

    def __init__(self, opt: Mapping[str, Any] | MixedOptions) -> None:
        owner = title(opt, type(self))
        self.opt = opt
        self.options = opt if isinstance(opt, Options) else read(MixedOptions, opt, owner)
        self.sets: list[RestorationDataset] = []
        for index, entry in enumerate(self.options.sets):
            with at_key(owner, f'sets.{index}'):
                self.sets.append(_SET_CLASSES[entry.type](entry))
        super().__init__(self.sets)
        for part in self.sets:
            get_root_logger().info(
                f'{self.options.name}: {part.degradation_name} (class {part.degradation}): '
                f'{len(part.items)} images, {len(part)} per epoch '
                f'({100 * len(part) / len(self):.1f} %)'
            )

    @property
    def first_items(self) -> list[int]:
        """Index of the first item of each set."""
        return [0, *self.cumulative_sizes[:-1]]

    def _locate(self, index: int) -> tuple[RestorationDataset, int]:
        """The set of an item, and its index there."""
        place = bisect_right(self.cumulative_sizes, index)
        return self.sets[place], index - self.first_items[place]

    def label_of(self, index: int) -> int:
        """Index of an item's degradation, without loading the item."""
        return self._locate(index)[0].degradation

    def first_draw_of(self, index: int) -> int:
        """Index of the first item of the same image in the same set."""
        part, inner = self._locate(index)
        return index - inner + part.first_draw_of(inner)

    def item_paths(self, index: int) -> list[str]:
        part, index = self._locate(index)
        return part.item_paths(index)

    def count_images(self) -> int:
        """Number of images, however often each is drawn."""
        return sum(part.count_images() for part in self.sets)

    def fingerprint(self) -> dict[str, int | str]:
        """Number of images of all sets, and a hash of their names and sizes."""
        parts = [part.fingerprint() for part in self.sets]
        joint = hashlib.sha256('\n'.join(str(part['sha256']) for part in parts).encode())
        return {'images': sum(part['images'] for part in parts), 'sha256': joint.hexdigest()}
