"""What the datasets share: options, cropping, channels, and randomness; and the set of clean images
that are degraded on the fly.

In training every item draws its seed from torch's generator, which :class:`.loading.TrainingItems`
seeds for each. In validation it is (``seed``, index): the same in every run and worker.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from basicsr.utils.registry import DATASET_REGISTRY
from pydantic import Field, ValidationInfo, field_validator
from torch.utils.data import Dataset

from unfoldldm_basicsr.common.declaration import OptionError, Options, Problem, Tuple, count, read
from unfoldldm_basicsr.common.sections import LoaderOptions, Positive
from unfoldldm_basicsr.common.suggest import did_you_mean
from unfoldldm_basicsr.data import pixels
from unfoldldm_basicsr.data.degradations import ChainOptions, DegradationChain
from unfoldldm_basicsr.data.listing import read_meta_info
from unfoldldm_basicsr.data.sources import ImageSource, open_source

_NUM_FINGERPRINTED = 1000  # files per folder whose sizes are part of the fingerprint

RESERVED = ('average', 'wrong', 'auto')  # a row of tables; values of options that take a name


class PhotoOptions(LoaderOptions):
    """What a mixture of data sets may state for all of them."""

    color: Literal['rgb', 'grey', 'y'] = 'rgb'
    """Channels of the images: rgb; grey, one channel, grey files as they are and the luminance
    (0 to 255) of colour files; y, one channel, the luma (16 to 235) that BasicSR means by it."""
    gt_size: Positive | None = None
    """Training: side of the patches in pixels."""
    use_hflip: bool = True
    """Training: random mirroring."""
    use_rot: bool = True
    """Training: random turns by 90 degrees."""
    seed: count(ge=0) = 0
    """Seed of the degradations in validation."""
    center_crop: Positive | None = None
    """Validation: use only the central square of this side."""
    crop_multiple: Positive | None = None
    """Validation: crop centrally to a multiple of this size."""
    degradation_names: Tuple[str] | None = None
    """All classes of the run, in order of their index."""

    @property
    def channels(self) -> int:
        """Of the images that the data set gives."""
        return 3 if self.color == 'rgb' else 1

    @field_validator('scale')
    @classmethod
    def _equal_sizes(cls, scale: int) -> int:
        if scale != 1:
            raise ValueError(f'is {scale}, but these data sets give lq and gt of equal size: 1.')
        return scale

    @field_validator('center_crop', 'crop_multiple')
    @classmethod
    def _whole_images(cls, size: int | None, info: ValidationInfo) -> int | None:
        if size is not None and info.data.get('phase') == 'train':
            raise ValueError('is for validation; training patches have gt_size.')
        return size

    @field_validator('degradation_names')
    @classmethod
    def _classes(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and (not names or len(set(names)) < len(names)):
            raise ValueError(f'must be a list of different names, got {list(names)}.')
        if taken := [name for name in names or () if name in RESERVED]:
            raise ValueError(f'{", ".join(taken)}: means something else in tables and options.')
        return names


class DatasetOptions(PhotoOptions):
    """A data set of degraded and clean images of equal size."""

    most_draws: ClassVar[int | None] = None  # of an image in validation and tests

    dataroot_gt: Annotated[str, Field(min_length=1)]
    """Folder (searched recursively) or LMDB of clean images."""
    meta_info_file: str | None = None
    """Images of dataroot_gt to use, one per line; of pairs also "gt_name, lq_name"."""
    gt_size: Positive | None = Field(None, validate_default=True)
    """Training: side of the patches in pixels."""
    repeat: count(ge=1, le=10_000_000) = 1
    """How often an epoch, or a test of synthetic degradations, sees each image: other draws."""
    degradation_name: str | None = Field(None, validate_default=True)
    """Class of this set, one of degradation_names."""

    @field_validator('gt_size')
    @classmethod
    def _patches(cls, size: int | None, info: ValidationInfo) -> int | None:
        if size is None and info.data.get('phase') == 'train':
            raise ValueError('is missing: the side of the training patches in pixels.')
        return size

    @field_validator('repeat')
    @classmethod
    def _few(cls, repeat: int, info: ValidationInfo) -> int:
        most = cls.most_draws or repeat
        if repeat > most and info.data.get('phase') in ('val', 'test'):
            most = f'at most {most}' if most > 1 else 'pairs are the same every time'
            raise ValueError(f'is that of a training, {repeat} draws of each image: {most}.')
        return repeat

    @field_validator('degradation_name')
    @classmethod
    def _one_of_the_classes(cls, name: str | None, info: ValidationInfo) -> str | None:
        names = info.data.get('degradation_names')
        if names and name is None:
            raise ValueError(f'is missing: which of {", ".join(names)} this set is.')
        if names and name not in names:
            raise ValueError(f"'{name}' is no class.{did_you_mean(name, names)}")
        return name


def title(values: Any, cls: type) -> str:
    """What errors call a data set; ``values`` are options or a section."""
    name = values.name if isinstance(values, Options) else values.get('name')
    return f'dataset {name or "without a name"} ({cls.__name__})'


@contextmanager
def at_key(owner: str, key: str) -> Iterator[None]:
    """Raises what goes wrong in the block as OptionError at ``key`` of ``owner``."""
    try:
        yield
    except OptionError as error:
        problems = [Problem(f'{key}.{path}', text) for path, text, *_ in error.problems]
        raise OptionError(owner, problems) from error
    except (OSError, ValueError) as error:
        raise OptionError(owner, [Problem(key, str(error))]) from error


class RestorationDataset(Dataset):
    """Base of the datasets that return degraded and clean images of equal size.

    Items are dicts: ``lq``, ``gt`` (float32 C H W, RGB or one channel, [0, 1]), ``lq_path``,
    ``gt_path``, ``degradation`` (index in ``degradation_names``) and ``degradation_name``.

    Attributes:
        images: where the clean images come from, then those of the degraded ones.
        listed: (clean name, degraded name or None) of the lines of ``meta_info_file``.
        items: for each item its names in ``images``.
        reach: how many pixels around a training patch its degradation depends on.
        block: side of the squares that the degradation treats one by one, from the photo's corner.
    """

    Options: ClassVar[type[DatasetOptions]] = DatasetOptions
    items: list[tuple[str, ...]]
    reach, block = 0, 1

    def __init__(self, opt: Mapping[str, Any] | DatasetOptions) -> None:
        cls = type(self)
        self.opt, self.title = opt, title(opt, cls)
        self.options = opt if isinstance(opt, Options) else read(cls.Options, opt, self.title)
        self.is_train = self.options.phase == 'train'
        self.images: list[ImageSource] = []
        self.listed: list[tuple[str, str | None]] | None = None
        if self.options.meta_info_file:
            with at_key(self.title, 'meta_info_file'):
                self.listed = read_meta_info(self.options.meta_info_file)

    def degraded(self, images: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """The degraded image, float32 H W C, from the images of an item, clean first."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.items) * self.options.repeat

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):  # so that iterating over the set ends
            raise IndexError(f'index {index} of a dataset of {len(self)} items')
        names = self.items[index % len(self.items)]
        draw = int(torch.randint(2**63 - 1, (1,)).item()) if self.is_train else index
        rng = np.random.default_rng([self.options.seed, draw])  # see the module docstring
        images = self._read(names)
        if self.is_train:
            images, inside = self._training_patch(images, rng)
        else:
            images, inside = [self._validation_crop(image) for image in images], np.s_[:, :]
        images = [*map(self._float, images)]
        paths = [source.path(name) for source, name in zip(self.images, names, strict=True)]
        return {
            'lq': pixels.to_tensor(self.degraded(images, rng)[inside]),
            'gt': pixels.to_tensor(images[0][inside]),
            'lq_path': paths[min(1, len(paths) - 1)],
            'gt_path': paths[0],
            'degradation': self.degradation,
            'degradation_name': self.degradation_name,
        }

    def _open(self, listed: Mapping[str, list[str] | None]) -> None:
        """Opens the folders or LMDBs under these keys, of each only the listed images."""
        problems: list[Problem] = []
        for key, names in listed.items():
            try:
                with at_key(self.title, key):
                    kind = self.options.io_backend.type
                    self.images.append(open_source(getattr(self.options, key), kind, names))
            except OptionError as error:
                problems += error.problems
        if problems:
            raise OptionError(self.title, problems)

    def _set_class(self, default_name: str) -> None:
        name = self.options.degradation_name or default_name
        names = self.options.degradation_names or (name,)
        self.degradation, self.degradation_name = names.index(name), name

    def label_of(self, index: int) -> int:
        """Index of an item's degradation, without loading the item."""
        return self.degradation

    def first_draw_of(self, index: int) -> int:
        """Index of the first item of the same image; see ``repeat``."""
        return index % len(self.items)

    def count_images(self) -> int:
        """Number of images, however often each is drawn."""
        return len(self.items)

    def sources(self) -> list[tuple[ImageSource, list[str]]]:
        """Where the images come from, with their names in the order of the items."""
        columns = map(list, zip(*self.items, strict=True))
        return [*zip(self.images, columns, strict=True)]

    def item_paths(self, index: int) -> list[str]:
        """Names of the files behind an item, without reading them."""
        names = self.items[index % len(self.items)]
        return [source.origin(name) for source, name in zip(self.images, names, strict=True)]

    def fingerprint(self) -> dict[str, int | str]:
        """Number of images, and a hash of names and sizes (reading the contents would be slow)."""
        digest = hashlib.sha256()
        for source, names in self.sources():
            step = max(1, len(names) // _NUM_FINGERPRINTED)
            for index, name in enumerate(names):
                size = '' if index % step else source.size(name)
                digest.update(f'{name}\0{size}\n'.encode('utf-8', 'surrogateescape'))
        return {'images': len(self.items), 'sha256': digest.hexdigest()}

    def _read(self, names: Sequence[str]) -> list[np.ndarray]:
        """The images of an item: integers, H W 3, or H W 1 for grey files that stay grey."""
        images = []
        for source, name in zip(self.images, names, strict=True):
            image = source.read(name)
            keep = image.ndim == 2 and self.options.color == 'grey'
            images.append(image[..., None] if keep else pixels.with_three_channels(image))
            if image.shape[:2] != images[0].shape[:2]:
                (height, width), (gt_height, gt_width) = image.shape[:2], images[0].shape[:2]
                raise ValueError(
                    f'the sizes of a pair differ: gt {self.images[0].origin(names[0])} is '
                    f'{gt_width}x{gt_height}, lq {source.origin(name)} is {width}x{height} (width x'
                    f' height). Both must be equal (scale 1): crop or remove this pair, or correct'
                    f' the pairing (filename_tmpl, meta_info_file).'
                )
        return images

    def _float(self, image: np.ndarray) -> np.ndarray:
        """float32 H W C in [0, 1] of the channels that ``color`` asks for."""
        image, color = pixels.to_float(image), self.options.color
        return image if color == 'rgb' else pixels.one_channel(image, color)

    def _training_patch(
        self, images: list[np.ndarray], rng: np.random.Generator
    ) -> tuple[list[np.ndarray], tuple[slice, slice]]:
        """The same random crop and flip of every image, still in its integer type: patches with up
        to ``reach`` pixels around them, to the edges of blocks, and their place in that.
        """
        size, reach, block = self.options.gt_size, self.reach, self.block
        images = [pixels.pad_to_size(image, size) for image in images]
        top, left = (int(rng.integers(s - size, endpoint=True)) for s in images[0].shape[:2])
        first = [max(0, start - reach) // block * block for start in (top, left)]
        last = [-(-(start + size + reach) // block) * block for start in (top, left)]
        window = tuple(map(slice, first, last))
        above, before = top - first[0], left - first[1]
        height, width = images[0][window].shape[:2]
        # BasicSR's augmentation: use_hflip mirrors, use_rot turns over and transposes.
        allowed = self.options.use_hflip, self.options.use_rot, self.options.use_rot
        flips = horizontal, vertical, transpose = (rng.random(3) < 0.5) & allowed
        patches = [np.ascontiguousarray(pixels.flipped(image[window], *flips)) for image in images]
        if horizontal:
            before = width - size - before
        if vertical:
            above = height - size - above
        if transpose:
            above, before = before, above
        return patches, np.s_[above : above + size, before : before + size]

    def _validation_crop(self, image: np.ndarray) -> np.ndarray:
        side, multiple = self.options.center_crop, self.options.crop_multiple
        if side:
            image = pixels.center_crop(image, side, side)
        if multiple:
            height, width = (s - s % multiple or s for s in image.shape[:2])
            image = pixels.center_crop(image, height, width)
        return np.ascontiguousarray(image)


class SyntheticOptions(ChainOptions, DatasetOptions):
    """Clean images, and what degrades them."""

    most_draws: ClassVar[int] = 50


@DATASET_REGISTRY.register()
class SyntheticDegradationDataset(RestorationDataset):
    """Clean images from a folder or LMDB; the degraded input is made from a YAML list.

    Training patches are cut with a margin as wide as blur and blocks of JPEG reach before they are
    degraded, so that they look like parts of a degraded photo. ``lq_path`` is that of the clean
    image.
    """

    Options = SyntheticOptions

    def __init__(self, opt: Mapping[str, Any] | SyntheticOptions) -> None:
        super().__init__(opt)
        self._open({'dataroot_gt': self.listed and [gt for gt, _ in self.listed]})
        self.items = [(name,) for name in self.images[0].names]
        self.chain = DegradationChain(self.options)
        self.reach, self.block = self.chain.reach, self.chain.block
        self._set_class(self.chain.name)

    def degraded(self, images: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        return self.chain(images[0], rng)
