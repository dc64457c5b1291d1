"""Pairs whose degraded image is two views: the left and the right one of a dual-pixel sensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from basicsr.utils.registry import DATASET_REGISTRY

from unfoldldm_basicsr.common.registration import register
from unfoldldm_basicsr.data.options import Root, at_key
from unfoldldm_basicsr.data.paired_degradation_dataset import (
    PairedDegradationDataset,
    PairedOptions,
    match_names,
)
from unfoldldm_basicsr.data.patches import to_tensor
from unfoldldm_basicsr.data.sources import open_source


class DualPixelOptions(PairedOptions):
    """Clean images and two views of each; ``dataroot_lq`` holds the left ones."""

    dataroot_lq_right: Root
    """Folder or LMDB of the right views, named as the left ones."""

    @property
    def channels(self) -> int:
        """Of the degraded images."""
        return 2 * super().channels


@register(DATASET_REGISTRY)
class DualPixelDataset(PairedDegradationDataset):
    """Triples of equal size: ``lq`` has six channels, left before right, and ``gt`` three.

    For defocus deblurring as Restormer does it (``inp_channels: 6``, ``dual_pixel_task: true``).
    """

    Options = DualPixelOptions

    def __init__(self, opt: Mapping[str, Any] | DualPixelOptions) -> None:
        super().__init__(opt)
        with at_key(self.title, 'dataroot_lq_right'):
            kind = self.options.io_backend.type
            self.right_images = open_source(self.options.dataroot_lq_right, kind, None)
            found = dict(match_names(self.gt_images, self.right_images, self.options.filename_tmpl))
            missing = [gt for gt, _ in self.pairs if gt not in found]
            if missing:
                raise ValueError(f'{self.right_images} has no partner of {missing[0]}.')
        self.right_names = [found[gt] for gt, _ in self.pairs]

    def sources(self) -> list:
        return [*super().sources(), (self.right_images, self.right_names)]

    def __getitem__(self, index: int) -> dict:
        self.check_index(index)
        place = index % len(self.pairs)
        gt_name, lq_name = self.pairs[place]
        gt, left = self._read_pair(gt_name, lq_name)
        images = [gt, left, self._read(self.right_images, self.right_names[place])]
        if self.is_train:
            images, _ = self._training_patch(images, self._generator(index))
        else:
            images = [self._validation_crop(image) for image in images]
        gt, left, right = (to_tensor(self._float(image)) for image in images)
        return {
            'lq': torch.cat([left, right]),
            'gt': gt,
            'lq_path': self.lq_images.path(lq_name),
            'gt_path': self.gt_images.path(gt_name),
            'degradation': self.degradation,
            'degradation_name': self.degradation_name,
        }
