"""The loss of NAFNet and its relatives: minus the PSNR in decibels.

    L = w (10 / ln 10) mean_b ln(MSE_b + 1e-8),  MSE_b over all values of image b,

for images in [0, 1]. "Simple Baselines for Image Restoration" (Chen et al., ECCV 2022) and
megvii-research/NAFNet, whose option files name it ``PSNRLoss``.
"""

import math

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

_LUMINANCE = (65.481, 128.553, 24.966)
_EPS = 1e-8  # limits the loss to -80 dB for equal images


@LOSS_REGISTRY.register()
class PSNRLoss(nn.Module):
    """Minus the mean PSNR of a batch, so the values in the log are negative and fall.

    Args:
        loss_weight: factor of the loss.
        reduction: only ``mean`` over the batch, kept for existing option files.
        toY: of the luminance (BT.601, 16 to 235 of 255) of RGB images.

    Raises ValueError: another reduction.
    """

    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean', toY: bool = False):
        super().__init__()
        if reduction != 'mean':
            raise ValueError(f"PSNRLoss reduction: only 'mean' is defined, got '{reduction}'.")
        self.loss_weight, self.to_y = loss_weight, toY

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Two (B, c, H, W) batches in [0, 1] -> scalar."""
        difference = pred - target
        if self.to_y:  # the offset of 16 cancels
            weights = difference.new_tensor(_LUMINANCE).view(3, 1, 1)
            difference = (difference * weights).sum(1, keepdim=True) / 255
        mse = difference.square().flatten(1).mean(1)
        return self.loss_weight * 10 / math.log(10) * (mse + _EPS).log().mean()
