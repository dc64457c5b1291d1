"""Clean images degraded on the fly."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from basicsr.utils.registry import DATASET_REGISTRY

from unfoldldm_basicsr.common.registration import register
from unfoldldm_basicsr.data.degradations import ChainOptions, DegradationChain
from unfoldldm_basicsr.data.listing import read_meta_info
from unfoldldm_basicsr.data.restoration_dataset import (
    DatasetOptions,
    RestorationDataset,
    Root,
    at_key,
)


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
    that they look like parts of a degraded photo. ``lq_path`` is the path of the clean image.
    """

    Options = SyntheticOptions

    def __init__(self, opt: Mapping[str, Any] | SyntheticOptions) -> None:
        super().__init__(opt)
        options, names = self.options, None
        if options.meta_info_file:
            with at_key(self.title, 'meta_info_file'):
                names = [gt for gt, _ in read_meta_info(options.meta_info_file)]
        self._open({'dataroot_gt': names})
        self.items = [(name,) for name in self.images[0].names]
        self.chain = DegradationChain(options)
        self.reach = self.chain.reach
        self._set_class(self.chain.name)

    def degraded(
        self, gt: np.ndarray, views: list[np.ndarray], rng: np.random.Generator
    ) -> np.ndarray:
        return self.chain(gt, rng)
