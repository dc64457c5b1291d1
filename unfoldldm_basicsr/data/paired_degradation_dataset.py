"""Degraded and clean images in pairs, or two degraded views of each, from folders or LMDBs."""

import posixpath
import re
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from basicsr.utils.registry import DATASET_REGISTRY
from pydantic import Field, field_validator

from unfoldldm_basicsr.data.listing import without_extension
from unfoldldm_basicsr.data.restoration_dataset import DatasetOptions, RestorationDataset, at_key
from unfoldldm_basicsr.data.sources import FolderImages, ImageSource

_NUM_CHECKED_PAIRS = 16  # of folders, whose sizes are compared before a run; of LMDBs it is all


class PairedOptions(DatasetOptions):
    """Clean images and their degraded partners."""

    most_draws: ClassVar[int] = 1

    dataroot_lq: Annotated[str, Field(min_length=1)]
    """Folder or LMDB of degraded images."""
    filename_tmpl: str = '{}'
    """Name of the degraded image, without extension; {} is that of the clean one."""

    @field_validator('filename_tmpl')
    @classmethod
    def _template(cls, template: str) -> str:
        if re.sub('[^{}]', '', template) != '{}' or '{}' not in template:
            raise ValueError(f"must hold {{}} once and no other braces, got '{template}'.")
        return template


@DATASET_REGISTRY.register()
class PairedDegradationDataset(RestorationDataset):
    """Pairs of equal size from two folders or two LMDBs.

    Pairs are found by relative path: ``a/1.png`` in ``dataroot_gt`` belongs to the file in folder
    ``a`` of ``dataroot_lq`` whose name without extension is ``filename_tmpl.format('1')``. A
    ``meta_info_file`` lists the clean images, or ``gt_name, lq_name`` pairs of any names.
    """

    Options = PairedOptions
    keys = ('dataroot_gt', 'dataroot_lq')

    def __init__(self, opt: Mapping[str, Any] | PairedOptions) -> None:
        super().__init__(opt)
        template, (gt_key, *lq_keys) = self.options.filename_tmpl, self.keys
        names: dict[str, list[str] | None] = dict.fromkeys(self.keys)
        if self.listed:
            lq_names = [lq or partner_name(gt, template) for gt, lq in self.listed]
            names = {gt_key: [gt for gt, _ in self.listed], **dict.fromkeys(lq_keys, lq_names)}
        self._open(names)
        clean, *views = self.images
        columns = [clean.names]
        for key, images in zip(lq_keys, views, strict=True):
            with at_key(self.title, key if template == '{}' else 'filename_tmpl'):
                partners = images.names if self.listed else match_names(clean, images, template)
            columns.append(partners)
        self.items = [*zip(*columns, strict=True)]
        if self.options.on_error != 'skip':
            self._check_sizes()
        self._set_class(self.options.name)

    def _check_sizes(self) -> None:
        """Finds a wrong pairing before the run; images are decoded where headers differ."""
        items, in_folders = self.items, isinstance(self.images[0], FolderImages)
        if in_folders:
            items = items[:: max(1, len(items) // _NUM_CHECKED_PAIRS)][:_NUM_CHECKED_PAIRS]
        for names in items:
            sources = [*zip(self.images, names, strict=True)]
            shapes = {source.shape(name) for source, name in sources}
            if None in shapes and not in_folders:
                continue  # an LMDB that does not tell
            if None in shapes or len(shapes) > 1:
                for key, (source, name) in zip(self.keys, sources, strict=True):
                    with at_key(self.title, key):
                        source.read(name)
                with at_key(self.title, 'dataroot_lq'):
                    self._read(names)

    def degraded(self, images: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """All views, one after the other."""
        return np.concatenate(images[1:], -1) if len(images) > 2 else images[1]


class DualPixelOptions(PairedOptions):
    """Clean images and two views of each; ``dataroot_lq`` holds the left ones."""

    dataroot_lq_right: Annotated[str, Field(min_length=1)]
    """Folder or LMDB of the right views, named as the left ones."""

    @property
    def channels(self) -> int:
        """Of the degraded images."""
        return 2 * super().channels


@DATASET_REGISTRY.register()
class DualPixelDataset(PairedDegradationDataset):
    """Triples of equal size: ``lq`` has six channels, left before right, and ``gt`` three.

    For defocus deblurring as Restormer does it (``inp_channels: 6``, ``dual_pixel_task: true``).
    """

    Options = DualPixelOptions
    keys = ('dataroot_gt', 'dataroot_lq', 'dataroot_lq_right')


def partner_name(gt_name: str, template: str) -> str:
    """``('a/1.png', '{}_x')`` -> ``'a/1_x.png'``."""
    folder, file = posixpath.split(gt_name)
    stem = without_extension(file)
    return posixpath.join(folder, template.format(stem) + file[len(stem) :])


def match_names(gt_images: ImageSource, lq_images: ImageSource, template: str) -> list[str]:
    """The degraded image of every clean one by name; extensions may differ.

    Raises ValueError for images without a partner, with several, or with that of another.
    """

    def stem(name: str) -> str:  # systems write an accent as one letter or as two
        return unicodedata.normalize('NFC', without_extension(name))

    by_stem: dict[str, list[str]] = {}
    for name in lq_images.names:
        by_stem.setdefault(stem(name), []).append(name)
    used: dict[str, str] = {}  # partner -> clean image
    unmatched = []
    for gt in gt_images.names:
        wanted = partner_name(gt, template)
        candidates = by_stem.get(stem(wanted), [])
        if wanted not in candidates and len(candidates) > 1:
            raise ValueError(
                f'{gt_images.origin(gt)}: several partners in {lq_images.root}: '
                f'{", ".join(candidates)}. Remove all but one.'
            )
        if not candidates:
            unmatched.append((gt, wanted))
            continue
        partner = wanted if wanted in candidates else candidates[0]
        if used.setdefault(partner, gt) != gt:  # names that differ in their ending
            raise ValueError(
                f'{lq_images.origin(partner)}: partner of {used[partner]} and of {gt} in '
                f'{gt_images.root}. Remove one, or list the pairs in a meta_info_file.'
            )
    if unmatched:
        raise ValueError(
            f'{len(unmatched)} of {len(gt_images.names)} images in {gt_images.root} have no '
            f'partner in {lq_images.root}, the first is {unmatched[0][0]} (looked for '
            f'{unmatched[0][1]}). Set filename_tmpl, or list the pairs in a meta_info_file.'
        )
    extra = [name for name in lq_images.names if name not in used]
    if extra:
        raise ValueError(
            f'{len(extra)} of {len(lq_images.names)} images in {lq_images.root} have no partner '
            f'in {gt_images.root}, the first is {extra[0]}. Remove them, or list the pairs in a '
            f'meta_info_file ("gt_name, lq_name" per line).'
        )
    return [*used]
