"""Metrics that BasicSR lacks; importing registers them."""

from unfoldldm_basicsr.metrics.gt_mean import calculate_psnr_gt_mean, calculate_ssim_gt_mean
from unfoldldm_basicsr.metrics.perceptual import calculate_lpips, calculate_pyiqa
from unfoldldm_basicsr.metrics.underwater import calculate_uciqe, calculate_uiqm

__all__ = [
    'calculate_lpips',
    'calculate_psnr_gt_mean',
    'calculate_pyiqa',
    'calculate_ssim_gt_mean',
    'calculate_uciqe',
    'calculate_uiqm',
]
