"""Metrics that BasicSR lacks; importing registers them."""

from unfoldldm_basicsr.metrics.lpips_metric import calculate_lpips

__all__ = ['calculate_lpips']
