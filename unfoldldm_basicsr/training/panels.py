"""What a validation shows in TensorBoard: input, stages, output and truth side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unfoldldm_basicsr.training.batches import Batch

HEIGHT = 256  # pixels; larger images are reduced


class Panels:
    """Keeps the first ``logger.tb_images`` of a validation on rank 0 until they are written."""

    def __init__(self, opt: Mapping[str, Any]):
        logger = opt.get('logger') or {}
        wanted = opt.get('is_train') and opt.get('rank', 0) == 0 and logger.get('use_tb_logger')
        self.count = logger.get('tb_images', 2) if wanted else 0
        self.kept: dict[str, Tensor] = {}

    def keep(self, name: str, batch: Batch, output: Tensor, trace: Any) -> None:
        """Takes an image if there is room; with its stages where ``val.trace`` traced them."""
        if len(self.kept) < self.count and output.ndim == 4:  # not the scores of a classifier
            stages = () if trace is None else trace.stages[:-1]
            images = [batch['lq'], *(stage.x for stage in stages), output]
            images += [batch['gt']] if 'gt' in batch else []
            self.kept[name] = side_by_side(images)

    def write(self, tb_logger: Any, dataset: str, iteration: int) -> None:
        """Writes and forgets what was kept."""
        for name, panel in self.kept.items() if tb_logger is not None else ():
            tag = f'images/{dataset}/{name}'.encode(errors='backslashreplace').decode()  # no UTF-8
            tb_logger.add_image(tag, panel, iteration)
        self.kept.clear()


def side_by_side(images: list[Tensor]) -> Tensor:
    """Images (1, c, H, W) in [0, 1] as one (3, h, w); of several views the first."""
    height, width = images[0].shape[-2:]
    size = HEIGHT, max(1, round(width * HEIGHT / height))
    parts = []
    for image in images:
        part = image[:1, :3] if image.shape[1] >= 3 else image[:1, :1].expand(-1, 3, -1, -1)
        part = part[..., :height, :width].detach().float().cpu().clamp(0, 1)
        parts.append(F.interpolate(part, size, mode='area') if height > HEIGHT else part)
    return torch.cat(parts, -1)[0]
