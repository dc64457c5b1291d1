"""calculate_lpips hands the right tensors to the package lpips (its weights need a download)."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_metric

from unfoldldm_basicsr.metrics import lpips_metric


@pytest.fixture
def fake_lpips(monkeypatch):
    """A stand-in whose distance shows order of channels, range and border."""

    class LPIPS(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            self.weights = torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1)

        def forward(self, a, b):
            assert a.shape == b.shape
            assert a.min() >= -1
            assert a.max() <= 1
            return ((a - b) * self.weights).mean() * a.shape[-1]

    monkeypatch.setitem(sys.modules, 'lpips', types.SimpleNamespace(LPIPS=LPIPS))
    lpips_metric._network.cache_clear()
    yield
    lpips_metric._network.cache_clear()


def measured(a, b, **options) -> float:
    return calculate_metric({'img': a, 'img2': b}, {'type': 'calculate_lpips', **options})


@pytest.mark.usefixtures('fake_lpips')
def test_images_arrive_as_rgb_in_minus_one_to_one():
    red = np.zeros((8, 12, 3), np.uint8)
    red[..., 2] = 255  # BGR
    black = np.zeros_like(red)
    assert measured(red, black) == pytest.approx(2 * 1.0 / 3 * 12)
    assert measured(red, red) == 0


@pytest.mark.usefixtures('fake_lpips')
def test_border_is_left_out():
    a = np.zeros((8, 12, 3), np.uint8)
    b = a.copy()
    b[0] = 255
    assert measured(a, b) != 0
    assert measured(a, b, crop_border=1) == 0


@pytest.mark.usefixtures('fake_lpips')
def test_other_images_are_refused():
    image = np.zeros((8, 12, 3), np.uint8)
    for other in (image[:7], image[..., 0], image.astype(np.float32)):
        with pytest.raises(ValueError, match='calculate_lpips'):
            measured(image, other)
    with pytest.raises(ValueError, match='alexnet'):
        measured(image, image, net='alexnet')


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'lpips', None)
    lpips_metric._network.cache_clear()
    image = np.zeros((8, 12, 3), np.uint8)
    with pytest.raises(ImportError, match=r'unfoldldm_basicsr\[metrics\]'):
        measured(image, image)
