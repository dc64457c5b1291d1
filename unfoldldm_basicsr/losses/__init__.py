"""Losses beside BasicSR's own; importing registers them."""

from unfoldldm_basicsr.losses.isda_loss import ISDALoss
from unfoldldm_basicsr.losses.latent_diffusion_loss import LatentDiffusionLoss
from unfoldldm_basicsr.losses.psnr_loss import PSNRLoss

__all__ = ['ISDALoss', 'LatentDiffusionLoss', 'PSNRLoss']
