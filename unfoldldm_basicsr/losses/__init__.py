"""Losses beside BasicSR's own; importing registers them."""

from .isda_loss import ISDALoss
from .latent_diffusion_loss import LatentDiffusionLoss

__all__ = ['ISDALoss', 'LatentDiffusionLoss']
