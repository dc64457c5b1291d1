"""The weights that come with the package: as published, small, described, and worth having."""

import numpy as np
import pytest
from skimage import data
from skimage.metrics import peak_signal_noise_ratio as psnr

from unfoldldm_basicsr.data.degradations import DegradationChain
from unfoldldm_basicsr.restoring import Restorer
from unfoldldm_basicsr.weights.packaged import FOLDER, packaged_file, packaged_weights

GAINS = {  # degradation of a photo that no training saw, and the decibels gained at least
    'denoise': ([{'type': 'gaussian_noise', 'sigma': 25}], 8),
    'denoise_deblur': (
        [{'type': 'gaussian_blur', 'sigma': 0.8}, {'type': 'gaussian_noise', 'sigma': 25}], 5,
    ),
    'denoise_deblur_nafnet': (
        [{'type': 'gaussian_blur', 'sigma': 0.8}, {'type': 'gaussian_noise', 'sigma': 25}], 5,
    ),
    'denoise_deblur_jpeg': (
        [
            {'type': 'gaussian_blur', 'sigma': 0.8}, {'type': 'gaussian_noise', 'sigma': 15},
            {'type': 'jpeg', 'quality': 60},
        ], 1.5,
    ),
    'lowlight': ([{'type': 'low_light', 'gamma': 2.2, 'gain': 0.65}], 6),
    'all_in_one': ([{'type': 'rain', 'density': 0.02, 'intensity': 0.8}], 8),
}  # fmt: skip


def test_every_weight_file_has_a_test_a_card_and_at_most_5_mb():
    assert set(packaged_weights()) == set(GAINS)
    assert {p.stem for p in FOLDER.glob('*.safetensors')} == set(GAINS)
    for found in packaged_weights().values():
        assert found.path.stat().st_size <= 5e6
        assert len(found.summary) > 20
        assert 'What it cannot do' in found.path.with_suffix('.md').read_text()


@pytest.mark.parametrize('name', GAINS)
def test_packaged_weights_restore_a_photo_that_they_have_not_seen(name):
    steps, gain = GAINS[name]
    truth = data.chelsea()[60:188, 120:248]
    chain = DegradationChain(degradations=steps, lq_output='uint8')
    degraded = chain((truth / 255).astype(np.float32), np.random.default_rng(0))
    degraded = (degraded * 255).round().astype(np.uint8)
    told = {'degradation': 'rain'} if name == 'all_in_one' else {}
    restored = Restorer(packaged_file(name), **told).restore(degraded)
    assert psnr(truth, restored) > psnr(truth, degraded) + gain
