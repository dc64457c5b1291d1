"""Losses beside BasicSR's own; importing registers them."""

from unfoldldm_basicsr.losses.psnr_loss import PSNRLoss
from unfoldldm_basicsr.losses.unfoldldm_loss import ISDALoss, LatentDiffusionLoss

__all__ = ['ISDALoss', 'LatentDiffusionLoss', 'PSNRLoss']
