"""Metrics that BasicSR lacks; importing registers them."""

from unfoldldm_basicsr.metrics import gt_mean, perceptual, underwater  # noqa: F401
