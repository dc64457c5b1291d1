"""Is one network better than another? Paired differences with bootstrap intervals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap

CONFIDENCE = 0.95
FEWEST_IMAGES = 8  # intervals of fewer leave zero out too often for a verdict
_RESAMPLES, _SEED = 9999, 0


class PairedDifference(NamedTuple):
    """Mean difference of two networks over the same images.

    Attributes:
        images: number of images, each with the mean over its seeds.
        mean: first minus second.
        low: lower end of the 95 % bootstrap interval over images (NaN for a single image).
        high: its upper end.
    """

    images: int
    mean: float
    low: float
    high: float

    def verdict(self, higher_is_better: bool = True) -> str:
        """'better' or 'worse' (the first) where the interval leaves out zero, else 'no verdict'."""
        if self.images < FEWEST_IMAGES:
            return f'no verdict (fewer than {FEWEST_IMAGES} images)'
        if not (self.low > 0 or self.high < 0):
            return 'no verdict'
        return 'better' if (self.low > 0) == higher_is_better else 'worse'


def paired_difference(first: np.ndarray, second: np.ndarray) -> PairedDifference:
    """Compares two networks on the same images.

    Args:
        first: scores (seeds, images) of one network.
        second: scores (seeds, images) of the other; its number of seeds may differ.

    Raises:
        ValueError: not the same number of images.
    """
    if first.shape[1] != second.shape[1]:
        raise ValueError(f'{first.shape[1]} images against {second.shape[1]}: nothing is paired.')
    gain = first.mean(0) - second.mean(0)
    if len(gain) < 2 or np.ptp(gain) == 0:  # nothing to resample
        value = float(gain.mean())
        ends = (value, value) if len(gain) > 1 else (np.nan, np.nan)
        return PairedDifference(len(gain), value, *ends)
    interval = bootstrap(
        (gain,), np.mean, n_resamples=_RESAMPLES, confidence_level=CONFIDENCE,
        method='BCa', rng=np.random.default_rng(_SEED),
    ).confidence_interval  # fmt: skip
    return PairedDifference(len(gain), float(gain.mean()), *map(float, interval))
