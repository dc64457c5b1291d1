"""Scores and tables: the numbers are right."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from unfoldldm_basicsr.pictures import markdown_table, mean_row, measure, write_table


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


ROWS = [
    {'photo': 'cat', 'noisy PSNR': 20.125, 'PSNR (dB)': 28.5, 'SSIM': 0.81234, 'n': 3},
    {'photo': 'a|b', 'noisy PSNR': 19.0, 'PSNR (dB)': float('nan'), 'SSIM': 0.8, 'n': 4},
]


def test_a_markdown_table_has_protocol_alignment_and_usual_decimals():
    text = markdown_table(ROWS, 'Protocol: RGB.', best={'psnr': ['noisy PSNR', 'PSNR (dB)']})
    lines = text.splitlines()
    assert lines[:2] == ['Protocol: RGB.', '']
    assert lines[2] == '| photo | noisy PSNR | PSNR (dB) | SSIM | n |'
    assert lines[3] == '| --- | ---: | ---: | ---: | ---: |'
    assert lines[4] == '| cat | 20.12 | **28.50** | 0.8123 | 3 |'
    assert lines[5] == '| a\\|b | **19.00** | - | 0.8000 | 4 |'


def test_the_mean_is_over_numbers_and_leaves_text_empty():
    row = mean_row(ROWS[:1] * 2 + [{**ROWS[0], 'SSIM': 0.5, 'n': 9}], 'photo', 'average')
    assert row == {
        'photo': 'average',
        'noisy PSNR': 20.125,
        'PSNR (dB)': 28.5,
        'SSIM': pytest.approx(0.70822667, abs=1e-7),
        'n': 5,
    }
    assert list(row) == list(ROWS[0]), 'same order of columns'


def test_csv_keeps_full_precision_and_the_protocol_in_every_row(tmp_path):
    write_table(ROWS, tmp_path / 'x' / 't.md', tmp_path / 't.csv', protocol='sigma 25,\nseed 0')
    with open(tmp_path / 't.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [float(row['noisy PSNR']) for row in rows] == [20.125, 19.0]
    assert rows[1]['photo'] == 'a|b'
    assert {row['protocol'] for row in rows} == {'sigma 25, seed 0'}
    assert (tmp_path / 'x' / 't.md').read_text() == markdown_table(ROWS, 'sigma 25,\nseed 0')


def test_tables_without_meaning_are_refused():
    with pytest.raises(ValueError, match='needs a protocol'):
        markdown_table(ROWS, ' ')
    with pytest.raises(ValueError, match='at least one row'):
        markdown_table([], 'p')
    with pytest.raises(ValueError, match='Row 1 has the columns'):
        markdown_table([ROWS[0], {'photo': 'x'}], 'p')
    with pytest.raises(ValueError, match='unknown columns'):
        markdown_table(ROWS, 'p', best={'a': ['PSNR']})
