"""Clean images degraded on the fly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from basicsr.utils.registry import DATASET_REGISTRY

from unfoldldm_basicsr.common.registration import register
from unfoldldm_basicsr.data.degradations import DegradationChain, parse_steps
from unfoldldm_basicsr.data.image_source import (
    ImageSource,
    close_lmdbs,
    open_source,
    read_meta_info,
)
from unfoldldm_basicsr.data.patches import to_tensor
from unfoldldm_basicsr.data.pixels import to_float
from unfoldldm_basicsr.data.restoration_dataset import (
    OptionKeys,
    Problems,
    RestorationDataset,
    errors_named,
)


@register(DATASET_REGISTRY)
class SyntheticDegradationDataset(RestorationDataset):
    """Clean images from a folder or LMDB; the degraded input is made from a YAML list.

    Training patches are cut with a margin as wide as the blur reaches before they are degraded, so
    that they look like parts of a degraded photo. ``lq_path`` is the path of the clean image. See
    :class:`.restoration_dataset.RestorationDataset` for the items and common options.
    """

    option_keys: ClassVar[OptionKeys] = {
        **RestorationDataset.option_keys,
        'dataroot_gt': ((str,), 'folder (searched recursively) or LMDB of clean images'),
        'meta_info_file': ((str, type(None)), 'use only the images listed in this file'),
        'degradations': ((list,), 'steps in order: {type, prob, parameter: value or [low, high]}'),
        'lq_output': ((str,), 'clip (default) to [0, 1], uint8 (256 levels), or unclipped'),
    }

    def __init__(self, opt: dict) -> None:
        super().__init__(opt)
        with errors_named(self._title(opt)):
            self.images = self._open(opt)
            self.chain = DegradationChain(
                opt.get('degradations'), output=opt.get('lq_output', 'clip')
            )
        self._set_class(self.chain.name)

    @staticmethod
    def _open(opt: Mapping) -> ImageSource:
        meta = opt.get('meta_info_file')
        names = [gt for gt, _ in read_meta_info(meta)] if meta else None
        return open_source(opt.get('dataroot_gt'), opt.get('io_backend'), names)

    @classmethod
    def check_options(cls, opt: Mapping) -> Problems:
        problems = super().check_options(opt)
        steps, found = parse_steps(opt.get('degradations'))
        problems += found
        if steps and not found:
            try:
                DegradationChain(opt['degradations'], output=opt.get('lq_output', 'clip'))
            except ValueError as error:
                problems.append(('lq_output', str(error)))
        missing = cls._path_problems(opt, 'dataroot_gt')
        if missing:
            return problems + missing
        try:
            images = cls._open(opt)
            if opt.get('on_error') != 'skip':
                images.read(images.names[0])
        except (ValueError, OSError) as error:
            problems.append(('dataroot_gt', str(error)))
        finally:
            close_lmdbs()  # LMDB allows one open environment: leave none behind for other readers
        return problems

    def sources(self) -> list[tuple[ImageSource, list[str]]]:
        return [(self.images, self.images.names)]

    def __len__(self) -> int:
        return len(self.images.names) * self.repeat

    def __getitem__(self, index: int) -> dict:
        self.check_index(index)
        name = self.images.names[index % len(self.images.names)]
        rng = self._generator(index)
        image = self.images.read(name)
        if self.is_train:
            (patch,), window = self._training_patch([image], rng, self.chain.reach)
            gt = to_float(patch)
            lq = window.trim(self.chain(gt, rng))
            gt = window.trim(gt)
        else:
            gt = to_float(self._validation_crop(image))
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
