"""Pairs whose degraded image is two views: the left and the right one of a dual-pixel sensor."""

from __future__ import annotations

from basicsr.utils.registry import DATASET_REGISTRY

from unfoldldm_basicsr.common.registration import register
from unfoldldm_basicsr.data.options import Root
from unfoldldm_basicsr.data.paired_degradation_dataset import (
    PairedDegradationDataset,
    PairedOptions,
)


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
    keys = ('dataroot_gt', 'dataroot_lq', 'dataroot_lq_right')
