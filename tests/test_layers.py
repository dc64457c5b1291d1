"""The shared layers: layouts, precisions, odd sizes; test_baselines.py has their formulas."""

import pytest
import torch

from unfoldldm_basicsr.archs.layers import feed_forward, strips
from unfoldldm_basicsr.archs.layers.attention import (
    TransposedSelfAttention,
    attend_and_project,
    channel_attention_map,
)
from unfoldldm_basicsr.archs.layers.feed_forward import GatedFeedForward
from unfoldldm_basicsr.archs.layers.norm import LayerNorm2d, mean_std
from unfoldldm_basicsr.archs.layers.resample import Unshuffle, pad_to_multiple

LAYOUTS = pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])


@LAYOUTS
@pytest.mark.parametrize('bias_free', [False, True])
def test_layer_norm_computes_in_fp32_for_half_inputs(layout, bias_free):
    norm = LayerNorm2d(8, bias_free=bias_free)
    x = (200 + torch.randn(1, 8, 4, 4)).half().contiguous(memory_format=layout)
    expected = norm(x.float())
    assert norm(x).dtype == torch.float16
    torch.testing.assert_close(norm(x).float(), expected, atol=2e-3, rtol=1e-3)


@LAYOUTS
def test_layers_keep_the_layout_of_their_input(layout):
    x = torch.randn(2, 8, 5, 6).contiguous(memory_format=layout)
    for layer in (LayerNorm2d(8), TransposedSelfAttention(8, 2), GatedFeedForward(8, bias=True)):
        assert layer(x).is_contiguous(memory_format=layout)


@LAYOUTS
def test_attention_of_a_black_image_has_finite_gradients(layout):
    attention = TransposedSelfAttention(4, 2)
    x = torch.zeros(1, 4, 4, 4).contiguous(memory_format=layout).requires_grad_()
    attention(x).sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in attention.parameters())


@LAYOUTS
@pytest.mark.parametrize('side', [1, 2, 3, 8])  # 3 x 3 positions are too many for a product of A v
@pytest.mark.parametrize('bias', [False, True])
def test_attention_is_applied_and_projected_in_either_order(layout, side, bias):
    attention = torch.randn(2, 4, 5, 5).softmax(-1).requires_grad_()
    v = torch.randn(2, 20, side, side).contiguous(memory_format=layout)
    projection = torch.nn.Conv2d(20, 24, 1, bias=bias)
    out = attend_and_project(attention, v, projection)
    expected = projection((attention @ v.reshape(2, 4, 5, -1)).reshape(2, 20, side, side))
    torch.testing.assert_close(out, expected)
    wanted = [attention, *projection.parameters()]
    got, right = (torch.autograd.grad(z.square().sum(), wanted) for z in (out, expected))
    torch.testing.assert_close(got, right)
    assert side == 1 or out.is_contiguous(memory_format=layout)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_attention_of_half_precision_survives_large_values(dtype):
    """256 positions of size 100: the plain product of queries and keys is beyond float16."""
    q, k = 100 * torch.rand(2, 1, 4, 16, 16)
    weights = channel_attention_map(q.to(dtype), k.to(dtype), torch.ones(1, 1, 1))
    expected = channel_attention_map(q, k, torch.ones(1, 1, 1))
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, expected, atol=5e-3, rtol=0)


def test_unshuffling_is_that_of_torch_and_can_be_undone():
    x = torch.randn(2, 3, 8, 12)
    unshuffle = Unshuffle(4)
    assert torch.equal(unshuffle(x), torch.nn.functional.pixel_unshuffle(x, 4))
    assert torch.equal(unshuffle.undo(unshuffle(x)), x)


def test_statistics_are_those_of_torch_in_fp32():
    x = 100 + torch.randn(2, 3, 8, 12)  # E x^2 - (E x)^2 would lose all digits
    std, mean = torch.std_mean(x.double(), (2, 3), correction=0)
    for given, tolerance in ((x, 1e-6), (x.bfloat16(), 2e-3)):
        own = mean_std(given, (2, 3), 0)
        assert own[0].dtype == own[1].dtype == torch.float32
        torch.testing.assert_close(own[0].double(), mean, rtol=tolerance, atol=0)
        if given is x:
            torch.testing.assert_close(own[1].double(), std, rtol=1e-5, atol=0)


def test_padding_reflects_where_possible_and_replicates_short_sides():
    padded, _ = pad_to_multiple(torch.arange(10.0).view(1, 1, 2, 5), 4)
    assert padded[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 3, 2, 1]
    assert padded[0, 0, :, 0].tolist() == [0, 5, 5, 5]


@pytest.mark.parametrize('bias', [False, True])
def test_filling_up_channels_changes_no_result(bias, monkeypatch):
    """8 x 2.66 = 21 channels are computed as 24; gradients too are those of the 21."""
    torch.manual_seed(0)
    net, x = feed_forward.GatedFeedForward(8, bias=bias).double(), torch.rand(2, 8, 5, 6).double()
    assert net.project_out.in_channels == 21
    assert feed_forward.quick_width(21, x) == 24
    assert feed_forward.quick_width(21, x.to('meta')) == 21
    results = []
    for width in (feed_forward.quick_width, lambda channels, x: channels):
        monkeypatch.setattr(feed_forward, 'quick_width', width)
        net.zero_grad()
        y = net(x)
        y.square().sum().backward()
        with torch.no_grad():
            assert torch.equal(net(x), y)
        results.append([y.detach(), *(p.grad for p in net.parameters())])
    for filled, plain in zip(*results, strict=True):
        torch.testing.assert_close(filled, plain, rtol=1e-12, atol=1e-12)


@LAYOUTS
@pytest.mark.parametrize('size', [(17, 5), (41, 33)])
def test_strips_of_rows_change_rounding_only(layout, size, monkeypatch):
    monkeypatch.setattr(strips, '_STRIP_ELEMENTS', 1)
    torch.manual_seed(0)
    net = GatedFeedForward(8, bias=True)
    x = torch.rand(2, 8, *size).to(memory_format=layout)
    heights = []
    net_parts = feed_forward.separable_parts

    def watched(part, *args, **kwargs):
        heights.append(part.shape[2])
        return net_parts(part, *args, **kwargs)

    monkeypatch.setattr(feed_forward, 'separable_parts', watched)
    with_gradients = net(x)
    assert heights == [size[0]]
    with torch.no_grad():
        in_strips = net(x)
    assert len(heights) > 2
    assert max(heights[1:]) <= 10
    torch.testing.assert_close(in_strips, with_gradients, rtol=1e-5, atol=1e-6)
    assert in_strips.stride() == with_gradients.stride()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        assert net(x).dtype == torch.bfloat16
