"""Datasets, registered with BasicSR by import, and the degradations they apply."""

from unfoldldm_basicsr.data import (  # noqa: F401
    mixed_degradation_dataset,
    paired_degradation_dataset,
    restoration_dataset,
)
