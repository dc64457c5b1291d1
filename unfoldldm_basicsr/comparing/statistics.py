"""Is one network better than another? Paired differences with bootstrap intervals."""

from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap

FEWEST_IMAGES = 8  # intervals of fewer leave zero out too often for a verdict


class PairedDifference(NamedTuple):
    """Mean difference (first minus second) of two networks over ``images``, and the ends of its 95
    % bootstrap interval over images (NaN for a single one).
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


def paired_difference(gains: np.ndarray, resamples: int = 9999) -> PairedDifference:
    """Mean of the gains (score of the first minus the second for each image) and its interval.

    Gains that are not finite are left out.
    """
    gains = np.asarray(gains, float)
    gains = gains[np.isfinite(gains)]
    count, mean = len(gains), float(gains.mean()) if len(gains) else np.nan
    if count < 2 or np.ptp(gains) == 0:  # nothing to resample
        end = mean if count > 1 else np.nan
        return PairedDifference(count, mean, end, end)
    rng = np.random.default_rng(0)
    found = bootstrap((gains,), np.mean, n_resamples=resamples, method='BCa', rng=rng)  # 95 %
    return PairedDifference(count, mean, *map(float, found.confidence_interval))
