"""Degraded and clean images in pairs, from folders or LMDBs."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

import numpy as np
from basicsr.utils.registry import DATASET_REGISTRY
from pydantic import field_validator

from unfoldldm_basicsr.common.declaration import OptionError
from unfoldldm_basicsr.common.registration import register
from unfoldldm_basicsr.data.listing import read_meta_info, without_extension
from unfoldldm_basicsr.data.options import DatasetOptions, Root, at_key
from unfoldldm_basicsr.data.patches import to_tensor
from unfoldldm_basicsr.data.restoration_dataset import RestorationDataset
from unfoldldm_basicsr.data.sources import FolderImages, ImageSource, open_source

_NUM_CHECKED_PAIRS = 16  # of folders, whose sizes are compared before a run; of LMDBs it is all


class PairedOptions(DatasetOptions):
    """Clean images and their degraded partners."""

    dataroot_gt: Root
    """Folder (searched recursively) or LMDB of clean images."""
    dataroot_lq: Root
    """Folder or LMDB of degraded images."""
    meta_info_file: str | None = None
    """Images of dataroot_gt to use, or "gt_name, lq_name" per line."""
    filename_tmpl: str = '{}'
    """Name of the degraded image, without extension; {} is that of the clean one."""

    @field_validator('filename_tmpl')
    @classmethod
    def _template(cls, template: str) -> str:
        try:
            usable = '{}' in template and template.format('x') is not None
        except (ValueError, LookupError):
            usable = False
        if not usable:
            raise ValueError(f"must hold {{}} once and no other braces, got '{template}'.")
        return template


@register(DATASET_REGISTRY)
class PairedDegradationDataset(RestorationDataset):
    """Pairs of equal size from two folders or two LMDBs.

    Pairs are found by relative path: ``a/1.png`` in ``dataroot_gt`` belongs to the file in folder
    ``a`` of ``dataroot_lq`` whose name without extension is ``filename_tmpl.format('1')``. A
    ``meta_info_file`` lists the clean images, or ``gt_name, lq_name`` pairs of any names. See
    :class:`.restoration_dataset.RestorationDataset` for the items and common options.
    """

    Options = PairedOptions

    def __init__(self, opt: Mapping[str, Any] | PairedOptions) -> None:
        super().__init__(opt)
        options, listed = self.options, {'dataroot_gt': None, 'dataroot_lq': None}
        if options.meta_info_file:
            with at_key(self.title, 'meta_info_file'):
                pairs = read_meta_info(options.meta_info_file)
            listed['dataroot_gt'] = [gt for gt, _ in pairs]
            listed['dataroot_lq'] = [
                lq or partner_name(gt, options.filename_tmpl) for gt, lq in pairs
            ]
        opened, problems, kind = [], [], options.io_backend.type
        for key, names in listed.items():
            try:
                with at_key(self.title, key):
                    opened.append(open_source(getattr(options, key), kind, names))
            except OptionError as error:
                problems += error.problems
        if problems:
            raise OptionError(self.title, problems)
        self.gt_images, self.lq_images = opened
        if options.meta_info_file:
            self.pairs = [*zip(self.gt_images.names, self.lq_images.names, strict=True)]
        else:
            key = 'dataroot_lq' if options.filename_tmpl == '{}' else 'filename_tmpl'
            with at_key(self.title, key):
                self.pairs = match_names(self.gt_images, self.lq_images, options.filename_tmpl)
        if options.on_error != 'skip':
            self._check_sizes()
        self._set_class(options.name)

    def _check_sizes(self) -> None:
        """Finds a wrong pairing before the run; images are decoded where headers differ."""
        pairs, sources = self.pairs, (self.gt_images, self.lq_images)
        if any(isinstance(source, FolderImages) for source in sources):
            pairs = pairs[:: max(1, len(pairs) // _NUM_CHECKED_PAIRS)][:_NUM_CHECKED_PAIRS]
        for pair in pairs:
            shapes = [source.shape(name) for source, name in zip(sources, pair, strict=True)]
            if None in shapes and any(not isinstance(s, FolderImages) for s in sources):
                continue  # an LMDB that does not tell
            if None in shapes or shapes[0] != shapes[1]:
                for key, source, name in zip(
                    ('dataroot_gt', 'dataroot_lq'), sources, pair, strict=True
                ):
                    with at_key(self.title, key):
                        source.read(name)
                with at_key(self.title, 'dataroot_lq'):
                    self._read_pair(*pair)

    def sources(self) -> list[tuple[ImageSource, list[str]]]:
        gt_names, lq_names = (list(names) for names in zip(*self.pairs, strict=True))
        return [(self.gt_images, gt_names), (self.lq_images, lq_names)]

    def __len__(self) -> int:
        return len(self.pairs) * self.options.repeat

    def _read_pair(self, gt_name: str, lq_name: str) -> tuple[np.ndarray, np.ndarray]:
        """Reads both images and compares their sizes."""
        gt, lq = self._read(self.gt_images, gt_name), self._read(self.lq_images, lq_name)
        if gt.shape[:2] != lq.shape[:2]:
            raise ValueError(
                f'the sizes of a pair differ: gt {self.gt_images.origin(gt_name)} is '
                f'{gt.shape[1]}x{gt.shape[0]}, lq {self.lq_images.origin(lq_name)} is '
                f'{lq.shape[1]}x{lq.shape[0]} (width x height). Both must be equal (scale 1): crop '
                'or remove this pair, or correct the pairing (filename_tmpl, meta_info_file).'
            )
        return gt, lq

    def __getitem__(self, index: int) -> dict:
        self.check_index(index)
        gt_name, lq_name = self.pairs[index % len(self.pairs)]
        gt, lq = self._read_pair(gt_name, lq_name)
        if self.is_train:
            (gt, lq), _ = self._training_patch([gt, lq], self._generator(index))
        else:
            gt, lq = self._validation_crop(gt), self._validation_crop(lq)
        return {
            'lq': to_tensor(self._float(lq)),
            'gt': to_tensor(self._float(gt)),
            'lq_path': self.lq_images.path(lq_name),
            'gt_path': self.gt_images.path(gt_name),
            'degradation': self.degradation,
            'degradation_name': self.degradation_name,
        }


def partner_name(gt_name: str, template: str) -> str:
    """``('a/1.png', '{}_x')`` -> ``'a/1_x.png'``."""
    folder, file = posixpath.split(gt_name)
    stem = without_extension(file)
    return posixpath.join(folder, template.format(stem) + file[len(stem) :])


def match_names(
    gt_images: ImageSource, lq_images: ImageSource, template: str
) -> list[tuple[str, str]]:
    """Pairs every clean image with its degraded one by name; extensions may differ.

    Raises:
        ValueError: images without a partner, or with several.
    """
    by_stem: dict[str, list[str]] = {}
    for name in lq_images.names:
        by_stem.setdefault(without_extension(name), []).append(name)
    pairs, unmatched, used = [], [], set()
    for gt in gt_images.names:
        wanted = partner_name(gt, template)
        candidates = by_stem.get(without_extension(wanted), [])
        if wanted not in candidates and len(candidates) > 1:
            raise ValueError(
                f'{gt_images.origin(gt)}: several partners in {lq_images.root}: '
                f'{", ".join(candidates)}. Remove all but one.'
            )
        if not candidates:
            unmatched.append((gt, wanted))
            continue
        partner = wanted if wanted in candidates else candidates[0]
        used.add(partner)
        pairs.append((gt, partner))
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
    return pairs
