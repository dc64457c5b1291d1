"""Degraded and clean images in pairs, from folders or LMDBs."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from basicsr.utils.registry import DATASET_REGISTRY

from unfoldldm_basicsr.common.registration import register
from unfoldldm_basicsr.data.image_source import (
    FolderImages,
    ImageSource,
    close_lmdbs,
    open_source,
    read_meta_info,
    without_extension,
)
from unfoldldm_basicsr.data.patches import to_tensor
from unfoldldm_basicsr.data.pixels import to_float
from unfoldldm_basicsr.data.restoration_dataset import (
    OptionKeys,
    Problems,
    RestorationDataset,
    errors_named,
)

_NUM_CHECKED_PAIRS = 16  # decoded before training; LMDBs tell all sizes without decoding


def _root_of(message: str, opt: Mapping) -> str:
    """The key whose folder a message begins with; that of the degraded images otherwise."""
    known = [key for key in ('dataroot_lq', 'dataroot_gt') if message.startswith(str(opt[key]))]
    return max(known, key=lambda key: len(str(opt[key])), default='dataroot_lq')


@register(DATASET_REGISTRY)
class PairedDegradationDataset(RestorationDataset):
    """Pairs of equal size from two folders or two LMDBs.

    Pairs are found by relative path: ``a/1.png`` in ``dataroot_gt`` belongs to the file in folder
    ``a`` of ``dataroot_lq`` whose name without extension is ``filename_tmpl.format('1')``. A
    ``meta_info_file`` lists the clean images, or ``gt_name, lq_name`` pairs of any names. See
    :class:`.restoration_dataset.RestorationDataset` for the items and common options.
    """

    option_keys: ClassVar[OptionKeys] = {
        **RestorationDataset.option_keys,
        'dataroot_gt': ((str,), 'folder (searched recursively) or LMDB of clean images'),
        'dataroot_lq': ((str,), 'folder or LMDB of degraded images'),
        'meta_info_file': (
            (str, type(None)),
            'images of dataroot_gt to use, or "gt_name, lq_name" per line',
        ),
        'filename_tmpl': ((str,), "name of the degraded image, without extension (default '{}')"),
    }

    def __init__(self, opt: dict) -> None:
        super().__init__(opt)
        with errors_named(self._title(opt)):
            self.gt_images, self.lq_images, self.pairs = self._open(opt)
            check_lmdb_sizes(self.gt_images, self.lq_images, self.pairs)
        self._set_class(opt.get('name', 'paired'))

    @staticmethod
    def _open(opt: Mapping) -> tuple[ImageSource, ImageSource, list[tuple[str, str]]]:
        roots = opt.get('dataroot_gt'), opt.get('dataroot_lq')
        for key, root in zip(('dataroot_gt', 'dataroot_lq'), roots, strict=True):
            if root is None:
                raise ValueError(f'{key} is missing.')
        template, backend = opt.get('filename_tmpl', '{}'), opt.get('io_backend')
        if '{}' not in template:
            raise ValueError(f"filename_tmpl '{template}' must contain {{}}.")
        meta = opt.get('meta_info_file')
        if meta:
            pairs = [(gt, lq or partner_name(gt, template)) for gt, lq in read_meta_info(meta)]
            gt_images = open_source(roots[0], backend, [gt for gt, _ in pairs])
            lq_images = open_source(roots[1], backend, [lq for _, lq in pairs])
            return gt_images, lq_images, list(zip(gt_images.names, lq_images.names, strict=True))
        gt_images, lq_images = (open_source(root, backend) for root in roots)
        return gt_images, lq_images, match_names(gt_images, lq_images, template)

    @classmethod
    def check_options(cls, opt: Mapping) -> Problems:
        problems = super().check_options(opt)
        missing = cls._path_problems(opt, 'dataroot_gt', 'dataroot_lq')
        if missing:
            return problems + missing
        try:
            gt_images, lq_images, pairs = cls._open(opt)
            check_lmdb_sizes(gt_images, lq_images, pairs)
            step = max(1, len(pairs) // _NUM_CHECKED_PAIRS)
            checked = [] if opt.get('on_error') == 'skip' else pairs[::step][:_NUM_CHECKED_PAIRS]
            for gt, lq in checked:
                read_pair(gt_images, gt, lq_images, lq)
        except (ValueError, OSError) as error:
            problems.append((_root_of(str(error), opt), str(error)))
        finally:
            close_lmdbs()  # LMDB allows one open environment: leave none behind for other readers
        return problems

    def sources(self) -> list[tuple[ImageSource, list[str]]]:
        gt_names, lq_names = (list(names) for names in zip(*self.pairs, strict=True))
        return [(self.gt_images, gt_names), (self.lq_images, lq_names)]

    def __len__(self) -> int:
        return len(self.pairs) * self.repeat

    def __getitem__(self, index: int) -> dict:
        self.check_index(index)
        gt_name, lq_name = self.pairs[index % len(self.pairs)]
        gt, lq = read_pair(self.gt_images, gt_name, self.lq_images, lq_name)
        if self.is_train:
            (gt, lq), _ = self._training_patch([gt, lq], self._generator(index))
        else:
            gt, lq = self._validation_crop(gt), self._validation_crop(lq)
        return {
            'lq': to_tensor(to_float(lq)),
            'gt': to_tensor(to_float(gt)),
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


def read_pair(
    gt_images: ImageSource, gt: str, lq_images: ImageSource, lq: str
) -> tuple[np.ndarray, np.ndarray]:
    """Reads both images and compares their sizes."""
    gt_image, lq_image = gt_images.read(gt), lq_images.read(lq)
    if gt_image.shape != lq_image.shape:
        _raise_sizes(gt_images.origin(gt), gt_image.shape, lq_images.origin(lq), lq_image.shape)
    return gt_image, lq_image


def check_lmdb_sizes(
    gt_images: ImageSource, lq_images: ImageSource, pairs: list[tuple[str, str]]
) -> None:
    """Compares the sizes that two LMDBs record; folders record none."""
    if isinstance(gt_images, FolderImages) or isinstance(lq_images, FolderImages):
        return
    for gt, lq in pairs:
        gt_shape, lq_shape = gt_images.shapes[gt], lq_images.shapes[lq]
        if gt_shape and lq_shape and gt_shape != lq_shape:
            _raise_sizes(gt_images.origin(gt), gt_shape, lq_images.origin(lq), lq_shape)


def _raise_sizes(gt: str, gt_shape: tuple, lq: str, lq_shape: tuple) -> None:
    raise ValueError(
        f'the sizes of a pair differ: gt {gt} is {gt_shape[1]}x{gt_shape[0]}, '
        f'lq {lq} is {lq_shape[1]}x{lq_shape[0]} (width x height). Both must be equal (scale 1): '
        'crop or remove this pair, or correct the pairing (filename_tmpl, meta_info_file).'
    )
