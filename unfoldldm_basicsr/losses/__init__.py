"""Losses beside BasicSR's own; importing registers them."""

from .isda_loss import ISDALoss
from .latent_diffusion_loss import LatentDiffusionLoss
from .psnr_loss import PSNRLoss

__all__ = ['ISDALoss', 'LatentDiffusionLoss', 'PSNRLoss']
