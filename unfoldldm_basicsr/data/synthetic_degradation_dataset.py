"""Clean images degraded on the fly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from basicsr.utils.registry import DATASET_REGISTRY

from unfoldldm_basicsr.common.registration import register
from unfoldldm_basicsr.data.degradations import ChainOptions, DegradationChain
from unfoldldm_basicsr.data.listing import read_meta_info
from unfoldldm_basicsr.data.options import DatasetOptions, Root, at_key
from unfoldldm_basicsr.data.patches import to_tensor
from unfoldldm_basicsr.data.restoration_dataset import RestorationDataset
from unfoldldm_basicsr.data.sources import ImageSource, open_source


class SyntheticOptions(ChainOptions, DatasetOptions):
    """Clean images, and what degrades them."""

    dataroot_gt: Root
    """Folder (searched recursively) or LMDB of clean images."""
    meta_info_file: str | None = None
    """Use only the images listed in this file."""


@register(DATASET_REGISTRY)
class SyntheticDegradationDataset(RestorationDataset):
    """Clean images from a folder or LMDB; the degraded input is made from a YAML list.

    Training patches are cut with a margin as wide as the blur reaches before they are degraded, so
    that they look like parts of a degraded photo. ``lq_path`` is the path of the clean image. See
    :class:`.restoration_dataset.RestorationDataset` for the items and common options.
    """

    Options = SyntheticOptions

    def __init__(self, opt: Mapping[str, Any] | SyntheticOptions) -> None:
        super().__init__(opt)
        options, names = self.options, None
        if options.meta_info_file:
            with at_key(self.title, 'meta_info_file'):
                names = [gt for gt, _ in read_meta_info(options.meta_info_file)]
        with at_key(self.title, 'dataroot_gt'):
            self.images = open_source(options.dataroot_gt, options.io_backend.type, names)
        self.chain = DegradationChain(options)
        self._set_class(self.chain.name)

    def sources(self) -> list[tuple[ImageSource, list[str]]]:
        return [(self.images, self.images.names)]

    def __len__(self) -> int:
        return len(self.images.names) * self.options.repeat

    def __getitem__(self, index: int) -> dict:
        self.check_index(index)
        name = self.images.names[index % len(self.images.names)]
        rng = self._generator(index)
        image = self._read(self.images, name)
        if self.is_train:
            (patch,), window = self._training_patch([image], rng, self.chain.reach)
            gt = self._float(patch)
            lq = window.trim(self.chain(gt, rng))
            gt = window.trim(gt)
        else:
            gt = self._float(self._validation_crop(image))
            lq = self.chain(gt, rng)
        path = self.images.path(name)
        return {
            'lq': to_tensor(lq),
            'gt': to_tensor(gt),
            'lq_path': path,
            'gt_path': path,
            'degradation': self.degradation,
            'degradation_name': self.degradation_name,
        }
