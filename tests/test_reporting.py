"""Scores of single images: the numbers are right."""

from __future__ import annotations

import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from unfoldldm_basicsr.pictures import measure


def photo(height=40, width=60, seed=0):
    """Noise, so that no two regions are alike."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize('grey', [False, True])
def test_eight_bit_scores_equal_scikit_image(grey):
    pair = [photo(seed=s)[..., 0] if grey else photo(seed=s) for s in (0, 1)]
    score = measure(*pair)
    assert score.domain == '8-bit'
    assert score.psnr == pytest.approx(peak_signal_noise_ratio(pair[1], pair[0]), abs=1e-9)
    # both leave out the rim of half a window
    expected = structural_similarity(
        *pair,
        channel_axis=None if grey else 2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
    )
    assert score.ssim == pytest.approx(expected, abs=1e-6)


def test_the_same_images_score_the_same_in_every_depth():
    pair = [photo(seed=s) for s in (0, 1)]
    shallow = measure(*pair)
    deep = measure(*(image.astype(np.uint16) * 257 for image in pair))
    floats = measure(*(image / 255 for image in pair))
    assert deep[:2] == pytest.approx(shallow[:2], abs=1e-6)
    assert floats[:2] == pytest.approx(shallow[:2], abs=1e-6)


def test_deeper_images_are_compared_without_rounding_to_eight_bit():
    truth = photo()
    deep, near = truth.astype(np.uint16) * 257, truth.astype(np.uint16) * 257 + 1 - 2 * (truth > 9)
    score = measure(near.astype(np.uint16), deep)
    assert score.domain == '16-bit'
    assert score.psnr == pytest.approx(20 * math.log10(65535), abs=1e-6)
    floats = measure(near.astype(np.uint16) / 65535, deep / 65535)
    assert floats.domain == 'float'
    assert floats[:2] == pytest.approx(score[:2], abs=1e-9)


def test_equal_and_tiny_images_are_scored_without_nonsense():
    assert measure(photo(), photo())[:2] == (math.inf, pytest.approx(1))
    small = measure(photo(8, 60), photo(8, 60, 1))
    assert math.isfinite(small.psnr)
    assert math.isnan(small.ssim)


def test_images_that_cannot_be_compared_are_refused():
    for other in (photo(41), photo() / 255.0, photo()[..., :2]):
        with pytest.raises(ValueError, match='Cannot compare'):
            measure(photo(), other)
    with pytest.raises(ValueError, match='int64'):
        measure(photo().astype(np.int64), photo().astype(np.int64))
