"""Tiling: windows sum to one, local operators come out exactly."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from unfoldldm_basicsr.ops.image_statistics import image_statistic
from unfoldldm_basicsr.restoring.tiling import (
    check_tile,
    sample_tiles,
    tile_spans,
    tiled_forward,
    with_image_statistics,
)


def local_maximum(image: torch.Tensor) -> torch.Tensor:
    """A local operator of 7 x 7 pixels without rounding, so that equality can be exact."""
    return F.max_pool2d(image, 7, stride=1, padding=3) * 0.3


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 300),
    tile=st.integers(9, 120),
    overlap=st.integers(0, 60),
    multiple=st.sampled_from([1, 2, 4, 8]),
)
def test_windows_sum_to_one_and_tiles_fit(size, tile, overlap, multiple):
    if tile // multiple * multiple <= -(-overlap // multiple) * multiple:
        with pytest.raises(ValueError, match='not larger than its overlap'):
            tile_spans(size, tile, overlap, multiple)
        return
    spans = tile_spans(size, tile, overlap, multiple)
    total = torch.zeros(size, dtype=torch.float64)
    for start, stop, weight in spans:
        assert 0 <= start < stop <= size
        assert stop - start <= tile
        assert start % multiple == 0
        assert weight.min() >= 0
        total[start:stop] += weight
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-15)
    for first, second in itertools.pairwise(spans):
        assert first.stop - second.start >= overlap, 'neighbours share at least the overlap'


def test_the_rim_of_a_tile_has_no_weight_and_the_ramp_is_smooth():
    weight = tile_spans(200, 64, 32)[1].weight
    assert weight[:8].sum() == 0
    assert weight[-8:].sum() == 0
    assert weight[32 - 8 : 32].min() == 1, 'outside the ramp a tile counts fully'
    assert weight.diff().abs().max() < 0.11, 'a step would show as a seam'


@pytest.mark.parametrize('size', [(97, 61), (65, 200), (1, 150)])
@pytest.mark.parametrize(('tile', 'overlap', 'multiple'), [(48, 16, 1), (40, 16, 8)])
def test_a_local_operator_gives_exactly_the_untiled_result(size, tile, overlap, multiple):
    image = torch.rand(2, 3, *size)
    tiled = tiled_forward(local_maximum, image, tile=tile, overlap=overlap, size_multiple=multiple)
    assert torch.equal(tiled, local_maximum(image))


def test_operators_on_a_grid_keep_their_phase():
    def blocks(image):
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % 8, 0, -height % 8), mode='replicate')
        return F.interpolate(F.avg_pool2d(padded, 8), scale_factor=8)[..., :height, :width]

    image = torch.rand(1, 1, 83, 130)
    tiled = tiled_forward(blocks, image, tile=50, overlap=16, size_multiple=8)
    torch.testing.assert_close(tiled, blocks(image), rtol=0, atol=1e-6)


def test_an_operator_that_changes_the_size_is_refused():
    with pytest.raises(ValueError, match='size of its input'):
        tiled_forward(lambda x: x[..., ::2], torch.rand(1, 3, 100, 100), tile=40, overlap=8)


@pytest.mark.parametrize(
    ('tile', 'overlap', 'multiple', 'message'),
    [(32, 32, 1, 'at least 33'), (7, 0, 8, 'at least 8'), (64, -1, 1, '0 or more')],
)
def test_useless_tile_sizes_are_refused(tile, overlap, multiple, message):
    with pytest.raises(ValueError, match=message):
        check_tile(tile, overlap, multiple)


def scaled_by_quantiles(image: torch.Tensor) -> torch.Tensor:
    """Sees minimum, median and maximum of an image, and the mean of what it makes of them."""
    order = image.flatten(2).sort(2).values
    ranks = [round(i / 20 * (order.shape[2] - 1)) for i in range(21)]
    order = image_statistic(order[:, :, ranks], 'sorted')
    low, middle, high = order[:, :, [0, 10, 20], None].unbind(2)
    scaled = (image - low[..., None]) / (high - low)[..., None] + middle[..., None]
    return scaled * image_statistic(scaled.mean((2, 3), keepdim=True))


def test_quantiles_of_tiles_and_what_follows_from_them_are_those_of_the_image():
    """The mean of the tiles' maxima would be dark: there is one bright patch."""
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 0.1
    image[..., 40:52, 70:82] += 0.9
    fixed = with_image_statistics(scaled_by_quantiles, image, tile=32)
    whole, tiled = scaled_by_quantiles(image), tiled_forward(fixed, image, tile=32, overlap=0)
    torch.testing.assert_close(tiled, whole, rtol=0.01, atol=0.001)


def test_samples_of_tiles_are_drawn_once():
    assert len(sample_tiles(520, 520, 512, 16)) == 1
    assert len(set(map(str, sample_tiles(1200, 560, 512, 16)))) == 3 * 2
