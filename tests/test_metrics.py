"""Metrics and the loss that BasicSR lacks: against formulas, loops, stand-ins of packages."""

import math
import sys
import types

import cv2
import numpy as np
import pytest
import torch
from basicsr.losses import build_loss
from basicsr.metrics import calculate_metric
from basicsr.utils.registry import METRIC_REGISTRY
from helpers import image_of
from skimage.color import rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from unfoldldm_basicsr.common.declaration import OptionError, read
from unfoldldm_basicsr.metrics import perceptual
from unfoldldm_basicsr.options.declared import options_of


def flat(*bgr: int, shape=(20, 20)) -> np.ndarray:
    return np.full((*shape, 3), bgr, np.uint8)


def measured(name: str, *images: np.ndarray, **options) -> float:
    data = dict(zip(('img', 'img2'), images, strict=False))
    return calculate_metric(data, {'type': f'calculate_{name}', **options})


@pytest.fixture
def stand_ins(monkeypatch):
    """Packages whose values show the order of channels, the range and the border."""

    class LPIPS(torch.nn.Module):
        metric_mode = 'FR'

        def __init__(self, net, verbose=False, device='cpu'):
            super().__init__()
            self.weights = torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1)
            self.low = 0 if net in ('pair', 'one') else -1

        def forward(self, a, b=0):
            assert a.min() >= self.low
            assert a.max() <= 1
            return ((a - b) * self.weights).mean() * a.shape[-1]

    class One(LPIPS):
        metric_mode = 'NR'

    pyiqa = types.SimpleNamespace(
        list_models=lambda: ['pair', 'one', 'fid'],
        create_metric=lambda name, device: (One if name == 'one' else LPIPS)(name),
    )
    monkeypatch.setitem(sys.modules, 'lpips', types.SimpleNamespace(LPIPS=LPIPS))
    monkeypatch.setitem(sys.modules, 'pyiqa', pyiqa)
    for cached in ('_lpips', '_pyiqa'):
        monkeypatch.setattr(perceptual, cached, getattr(perceptual, cached).__wrapped__)


PACKAGES = [('lpips', {}, 2), ('pyiqa', {'metric': 'pair'}, 1)]


@pytest.mark.usefixtures('stand_ins')
@pytest.mark.parametrize(('name', 'options', 'span'), PACKAGES)
def test_images_arrive_as_rgb_in_the_range_of_the_package(name, options, span):
    red, black = flat(0, 0, 255, shape=(8, 12)), flat(0, 0, 0, shape=(8, 12))
    expected = span * 1.0 / 3 * 12
    assert measured(name, red, black, **options) == pytest.approx(expected)
    data = {'img': red.astype(np.float64) + 3, 'img2': black}  # neither rounded nor clipped
    more = calculate_metric(data, {'type': f'calculate_{name}', **options}, rounded=False)
    assert more > expected
    assert measured(name, red, red, **options) == 0
    framed = black.copy()
    framed[0] = 255
    assert measured(name, framed, black, **options) != 0
    for border in (1, 1.0):
        assert measured(name, framed, black, crop_border=border, **options) == 0


@pytest.mark.usefixtures('stand_ins')
def test_a_metric_without_reference_gets_the_image_alone():
    red = flat(0, 0, 255, shape=(8, 12))
    assert measured('pyiqa', red, metric='one') == pytest.approx(4)
    assert measured('pyiqa', red, red, metric='one') == pytest.approx(4)
    with pytest.raises(ValueError, match="'pair' compares"):
        measured('pyiqa', red, metric='pair')


@pytest.mark.usefixtures('stand_ins')
def test_what_cannot_be_measured_is_refused():
    image = flat(0, 0, 0)
    for other in (image[:7], image[..., 0], image + 0.5):
        with pytest.raises(ValueError, match='calculate_lpips'):
            measured('lpips', image, other)
    for border in (-1, 4.5, '4'):
        with pytest.raises(ValueError, match='crop_border must be at least 0'):
            measured('psnr', image, image, crop_border=border)
    with pytest.raises(OptionError, match="Did you mean 'alex'"):
        read(options_of(perceptual.calculate_lpips, ('img', 'img2')), {'net': 'alexnet'}, 'x')
    with pytest.raises(ValueError, match=r"unknown value 'pai'.*'pair'"):
        measured('pyiqa', image, image, metric='pai')
    with pytest.raises(ValueError, match='pyiqa fid --target'):
        measured('pyiqa', image, image, metric='fid')


def test_a_metric_without_reference_minds_no_leftover_truth():
    image = image_of((96, 192, 3))
    expected = measured('niqe', image, crop_border=0)
    assert measured('niqe', image, flat(0, 0, 0), crop_border=0) == expected


def test_a_metric_of_a_project_measures_what_it_likes(monkeypatch):
    options = {'type': 'calculate_uiqm', 'better': 7}
    for metric in (lambda sr, gt: sr - gt, lambda sr, gt, better: better - 5.0):
        monkeypatch.setitem(METRIC_REGISTRY._obj_map, 'calculate_uiqm', metric)
        assert calculate_metric({'sr': 3.0, 'gt': 1.0}, options) == 2.0


@pytest.mark.parametrize(('name', 'options'), [('lpips', {}), ('pyiqa', {'metric': 'one'})])
def test_without_the_package_the_extra_is_named(monkeypatch, name, options):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'pip install unfoldldm_basicsr\['):
        measured(name, flat(0, 0, 0), flat(0, 0, 0), **options)


def test_gt_mean_undoes_a_wrong_exposure_and_nothing_else():
    truth = image_of((24, 24, 3)) // 4 * 2  # even, at most 126
    dark = (truth // 2).astype(np.uint8)
    assert measured('psnr', dark, truth, crop_border=0) < 20
    assert measured('psnr_gt_mean', dark, truth) == math.inf
    assert measured('ssim_gt_mean', dark, truth) == pytest.approx(1)
    assert measured('psnr_gt_mean', np.zeros_like(truth), truth) < 20  # black has no exposure
    assert math.isnan(measured('ssim_gt_mean', truth[:8], truth[:8]))
    for one in (truth[..., :1], truth[..., 0]):  # channel
        assert measured('psnr_gt_mean', one // 2, one) == math.inf


@pytest.mark.parametrize(('options', 'part'), [
    ({}, lambda x: x), ({'crop_border': 4}, lambda x: x[4:-4, 4:-4]),
    ({'test_y_channel': True}, lambda x: 16 + x @ [24.966, 128.553, 65.481] / 255),
])  # fmt: skip
def test_gt_mean_scales_the_whole_image_clips_it_and_compares_the_part_asked_for(options, part):
    truth, image = image_of((24, 24, 3)), image_of((24, 24, 3), seed=1) // 2
    image[6:9] = 200  # more than can be shown when it is scaled
    grey = [x @ [0.114, 0.587, 0.299] for x in (image.astype(float), truth.astype(float))]
    scaled = np.clip(image * grey[1].mean() / grey[0].mean(), 0, 255)
    pair = part(scaled), part(truth.astype(float))
    expected = peak_signal_noise_ratio(*pair[::-1], data_range=255)
    assert measured('psnr_gt_mean', image, truth, **options) == pytest.approx(expected)
    kind = {'gaussian_weights': True, 'use_sample_covariance': False, 'full': True}
    axis = -1 if pair[0].ndim == 3 else None
    _, values = structural_similarity(*pair, data_range=255, channel_axis=axis, **kind)
    expected = values[5:-5, 5:-5].mean()
    assert measured('ssim_gt_mean', image, truth, **options) == pytest.approx(expected, rel=1e-4)


def test_uciqe_of_two_colours_follows_the_formula():
    image = flat(0, 0, 0)
    image[:10] = 255  # half black, half white: contrast 1, no chroma
    assert measured('uciqe', image) == pytest.approx(0.2745, abs=1e-4)
    image[:10] = (0, 0, 255)
    lightness, a, b = rgb2lab(np.array([[[1.0, 0, 0]]]))[0, 0] / 100
    chroma = math.hypot(a, b)
    expected = 0.4680 * chroma / 2 + 0.2745 * lightness
    expected += 0.2576 * chroma / math.hypot(chroma, lightness) / 2
    assert measured('uciqe', image) == pytest.approx(expected, rel=1e-6)
    levels = np.repeat([0, 60, 120, 180, 255], [2, 6, 384, 6, 2])  # 0.5 % and 2 % of the pixels
    low, high = rgb2lab(np.full((1, 2, 3), [[[60], [180]]]) / 255)[0, :, 0] / 100
    image[:] = levels.reshape(20, 20, 1)
    assert measured('uciqe', image) == pytest.approx(0.2745 * (high - low), abs=1e-4)


def uiqm_by_loops(image: np.ndarray) -> float:
    height, width = image.shape[:2]
    rgb = image[..., ::-1].astype(float)
    rg = [r - g for r, g, _ in rgb.reshape(-1, 3)]
    yb = [(r + g) / 2 - b for r, g, b in rgb.reshape(-1, 3)]
    cut, moments = len(rg) // 10, []
    for values in (rg, yb):
        mean = np.mean(sorted(values)[cut:-cut])
        moments.append((mean, np.mean([(v - mean) ** 2 for v in values])))
    (m1, v1), (m2, v2) = moments
    uicm = -0.0268 * math.hypot(m1, m2) + 0.1586 * math.sqrt(v1 + v2)
    places = [np.s_[y : y + 10, x : x + 10] for y in range(0, height - 9, 10)
              for x in range(0, width - 9, 10)]  # fmt: skip
    uism = uiconm = 0.0
    for weight, channel in zip((0.299, 0.587, 0.114), np.moveaxis(rgb, -1, 0), strict=True):
        slopes = (
            cv2.Sobel(channel, -1, *d, borderType=cv2.BORDER_REFLECT) for d in ((1, 0), (0, 1))
        )
        edges = np.hypot(*slopes)
        for block in (channel[place] * edges[place] * 255 / edges.max() for place in places):
            if block.min() > 0:
                uism += weight * 2 / len(places) * math.log(block.max() / block.min())
    for block in (rgb[place] for place in places):
        ratio = np.ptp(block) / (block.max() + block.min() or 1)
        uiconm -= ratio * math.log(ratio) / len(places) if ratio else 0
    return 0.0282 * uicm + 0.2953 * uism + 3.5753 * uiconm


def test_uiqm_agrees_with_its_formulas_pixel_by_pixel():
    image = image_of((33, 27, 3))
    image[:10, :10] = 77  # a flat block
    assert measured('uiqm', image) == pytest.approx(uiqm_by_loops(image), rel=1e-9)
    image[..., 0] //= 3
    expected = uiqm_by_loops(image[3:-3, 3:-3])
    assert measured('uiqm', image, crop_border=3) == pytest.approx(expected, rel=1e-9)


def test_uiqm_of_a_flat_image_is_its_cast_and_the_contrast_of_its_channels():
    cast, contrast = -0.0268 * math.hypot(60, 30), 0.5 * math.log(2)
    assert measured('uiqm', flat(30, 90, 30)) == pytest.approx(0.0282 * cast + 3.5753 * contrast)
    assert measured('uiqm', flat(50, 50, 50)) == 0
    assert math.isnan(measured('uiqm', flat(0, 0, 0, shape=(9, 40))))


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
    weights = np.array([65.481, 128.553, 24.966]) / 255
    grey = [torch.from_numpy(np.tensordot(weights, image.numpy(), (0, 1))) for image in pair]
    expected = sum(psnr(a, b) for a, b in zip(*grey, strict=True)) / 3
    assert float(build_loss({'type': 'PSNRLoss', 'toY': True})(*pair)) == pytest.approx(
        -expected, abs=1e-3
    )


def test_equal_images_give_a_finite_loss_and_gradient(pair):
    image = pair[1].clone().requires_grad_()
    loss = build_loss({'type': 'PSNRLoss'})(image, pair[1])
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-80, abs=1e-3)
    assert image.grad.isfinite().all()


def test_other_reductions_are_refused():
    with pytest.raises(ValueError, match="only 'mean' is defined, got 'sum'"):
        build_loss({'type': 'PSNRLoss', 'reduction': 'sum'})
