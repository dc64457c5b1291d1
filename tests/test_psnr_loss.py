"""NAFNet's loss against the PSNR of scikit-image."""

from __future__ import annotations

import pytest
import torch
from basicsr.losses import build_loss
from skimage.metrics import peak_signal_noise_ratio


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(3, 3, 12, 10, generator=generator)
    noise = torch.tensor([0.02, 0.1, 0.4]).view(3, 1, 1, 1)
    return target + noise * torch.randn(target.shape, generator=generator), target


def psnr(image, target):
    return peak_signal_noise_ratio(target.numpy(), image.numpy(), data_range=1)


def test_loss_is_minus_the_mean_psnr_of_the_images(pair):
    loss = build_loss({'type': 'PSNRLoss', 'loss_weight': 0.5, 'reduction': 'mean'})(*pair)
    expected = sum(psnr(a, b) for a, b in zip(*pair, strict=True)) / 3
    assert float(loss) == pytest.approx(-0.5 * expected, abs=1e-3)


def test_equal_images_give_a_finite_loss_and_gradient(pair):
    image = pair[1].clone().requires_grad_()
    loss = build_loss({'type': 'PSNRLoss'})(image, pair[1])
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-80, abs=1e-3)
    assert image.grad.isfinite().all()


def test_other_reductions_are_refused():
    with pytest.raises(ValueError, match="only 'mean' is defined, got 'sum'"):
        build_loss({'type': 'PSNRLoss', 'reduction': 'sum'})
