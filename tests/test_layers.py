"""The shared layers: formulas against plain restatements, layouts, precisions, odd sizes."""

from __future__ import annotations

import pytest
import torch
from released import randomise
from torch import nn
from torch.nn import functional as F

from unfoldldm_basicsr.archs.layers import feed_forward, strips
from unfoldldm_basicsr.archs.layers.attention import (
    TransposedSelfAttention,
    attend_and_project,
    channel_attention_map,
)
from unfoldldm_basicsr.archs.layers.convolution import separable_parts
from unfoldldm_basicsr.archs.layers.feed_forward import GatedFeedForward
from unfoldldm_basicsr.archs.layers.norm import LayerNorm, LayerNorm2d
from unfoldldm_basicsr.archs.layers.resample import (
    Downsample,
    Upsample,
    crop_to,
    pad_to_multiple,
)
from unfoldldm_basicsr.archs.layers.transformer import BlockOptions, TransformerBlock

CHANNELS_LAST = torch.channels_last
LAYOUTS = pytest.mark.parametrize('layout', [torch.contiguous_format, CHANNELS_LAST])


def plain_attention(q, k, v, temperature):
    """The formula of the paper, heads one by one."""
    out = []
    heads = len(temperature)
    parts = zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), temperature, strict=True)
    for q_h, k_h, v_h, t in parts:
        q_h, k_h = F.normalize(q_h.flatten(2), dim=-1), F.normalize(k_h.flatten(2), dim=-1)
        weights = torch.softmax(t * torch.einsum('bcn,bdn->bcd', q_h, k_h), -1)
        out.append(torch.einsum('bcd,bdhw->bchw', weights, v_h))
    return torch.cat(out, 1)


@LAYOUTS
def test_layer_norm_equals_torch_over_channels(layout):
    norm = randomise(LayerNorm2d(6, eps=1e-3))
    x = torch.randn(2, 6, 5, 7).contiguous(memory_format=layout)
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (6,), norm.weight, norm.bias, 1e-3)
    out = norm(x)
    torch.testing.assert_close(out, expected.permute(0, 3, 1, 2))
    assert out.is_contiguous(memory_format=layout)


@LAYOUTS
def test_bias_free_norm_keeps_the_mean_and_has_no_bias(layout):
    norm = randomise(LayerNorm(6, 'BiasFree'))
    x = (3 + torch.randn(2, 6, 5, 7)).contiguous(memory_format=layout)
    expected = x / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5)
    torch.testing.assert_close(norm(x), expected * norm.body.weight.view(-1, 1, 1))
    assert list(norm.state_dict()) == ['body.weight']


@LAYOUTS
@pytest.mark.parametrize('bias_free', [False, True])
def test_layer_norm_computes_in_fp32_for_half_inputs(layout, bias_free):
    norm = LayerNorm2d(8, bias_free=bias_free)
    x = (200 + torch.randn(1, 8, 4, 4)).half().contiguous(memory_format=layout)
    expected = norm(x.float())
    assert norm(x).dtype == torch.float16
    torch.testing.assert_close(norm(x).float(), expected, atol=2e-3, rtol=1e-3)


@LAYOUTS
@pytest.mark.parametrize(('bias', 'heads'), [(True, 1), (False, 4)])
def test_self_attention_equals_its_convolutions_and_the_formula(layout, bias, heads):
    attention = randomise(TransposedSelfAttention(8, heads, bias=bias))
    x = torch.randn(2, 8, 5, 6).contiguous(memory_format=layout)
    q, k, v = attention.qkv_dwconv(attention.qkv(x)).chunk(3, 1)
    expected = attention.project_out(plain_attention(q, k, v, attention.temperature))
    out = attention(x)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    assert out.is_contiguous(memory_format=layout)


@LAYOUTS
def test_attention_gradients_equal_finite_differences(layout):
    attention = randomise(TransposedSelfAttention(4, 2, bias=True)).double()
    x = torch.randn(2, 4, 2, 3, dtype=torch.float64).contiguous(memory_format=layout)
    assert torch.autograd.gradcheck(attention, x.requires_grad_())


@LAYOUTS
def test_attention_of_a_black_image_has_finite_gradients(layout):
    attention = TransposedSelfAttention(4, 2)
    x = torch.zeros(1, 4, 4, 4).contiguous(memory_format=layout).requires_grad_()
    attention(x).sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in attention.parameters())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_attention_of_half_precision_survives_large_values(dtype):
    """256 positions of size 100: the plain product of queries and keys is beyond float16."""
    q, k = 100 * torch.rand(2, 1, 4, 16, 16)
    weights = channel_attention_map(q.to(dtype), k.to(dtype), torch.ones(1, 1, 1))
    expected = channel_attention_map(q, k, torch.ones(1, 1, 1))
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, expected, atol=5e-3, rtol=0)


def test_attention_weights_are_independent_of_the_scale_of_queries_and_keys():
    q, k = torch.randn(2, 1, 4, 5, 5)
    expected = channel_attention_map(q, k, torch.ones(2, 1, 1))
    assert not torch.allclose(expected, torch.full_like(expected, 0.5), atol=1e-2)
    torch.testing.assert_close(
        channel_attention_map(1e-3 * q, 1e3 * k, torch.ones(2, 1, 1)), expected
    )


def test_projected_attention_adds_the_projection_s_bias():
    projection = nn.Conv2d(4, 6, 1)
    weights = torch.rand(2, 2, 2, 2).softmax(-1)
    v = torch.randn(2, 4, 3, 3)
    mixed = (weights @ v.reshape(2, 2, 2, 9)).reshape(2, 4, 3, 3)
    torch.testing.assert_close(attend_and_project(weights, v, projection), projection(mixed))


@pytest.mark.parametrize('heads', [0, 3])
def test_heads_that_do_not_divide_the_channels_are_refused(heads):
    with pytest.raises(ValueError, match=f'{heads} attention heads do not divide 8 channels'):
        TransposedSelfAttention(8, heads)


@LAYOUTS
@pytest.mark.parametrize('bias', [True, False])
def test_separable_parts_equal_the_convolutions_in_one_piece(layout, bias):
    pointwise = nn.Conv2d(4, 12, 1, bias=bias)
    depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=bias)
    x = torch.randn(2, 4, 5, 6).contiguous(memory_format=layout)
    out = separable_parts(x, pointwise, depthwise, 3)
    torch.testing.assert_close(torch.cat(out, 1), depthwise(pointwise(x)))
    assert all(part.is_contiguous(memory_format=layout) for part in out)


@pytest.mark.parametrize('bias', [True, False])
def test_feed_forward_gates_with_gelu(bias):
    ffn = randomise(GatedFeedForward(6, expansion=2.66, bias=bias))
    x = torch.randn(2, 6, 5, 7)
    a, b = ffn.dwconv(ffn.project_in(x)).chunk(2, 1)
    assert a.shape[1] == int(6 * 2.66)
    torch.testing.assert_close(ffn(x), ffn.project_out(F.gelu(a) * b))


def test_transformer_block_adds_attention_then_feed_forward():
    options = BlockOptions(ffn_expansion_factor=2, bias=True, LayerNorm_type='BiasFree')
    block = randomise(TransformerBlock(8, 2, options))
    x = torch.randn(1, 8, 5, 6)
    middle = x + block.attn(block.norm1(x))
    torch.testing.assert_close(block(x), middle + block.ffn(block.norm2(middle)))


def test_block_under_autocast_stays_near_the_fp32_result():
    block = randomise(TransformerBlock(8, 2, BlockOptions()))
    x = torch.randn(1, 8, 9, 7)
    with torch.autocast('cpu', torch.bfloat16):
        out = block(x)
    torch.testing.assert_close(out.float(), block(x), atol=0.15, rtol=0.05)


def test_down_and_upsampling_change_size_and_width_by_two():
    x = torch.randn(1, 4, 6, 8)
    assert Downsample(4)(x).shape == (1, 8, 3, 4)
    assert Upsample(4)(x).shape == (1, 2, 12, 16)


@pytest.mark.parametrize('size', [(1, 1), (5, 9), (8, 16)])
def test_padding_reaches_the_multiple_and_cropping_undoes_it(size):
    x = torch.rand(1, 3, *size)
    padded, original = pad_to_multiple(x, 8)
    assert [side % 8 for side in padded.shape[-2:]] == [0, 0]
    assert all(p - s < 8 for p, s in zip(padded.shape[-2:], size, strict=True))
    assert torch.equal(crop_to(padded, original), x)


def test_padding_reflects_where_possible_and_replicates_short_sides():
    x = torch.arange(10.0).view(1, 1, 2, 5)
    padded, _ = pad_to_multiple(x, 4)
    assert padded[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 3, 2, 1]
    assert padded[0, 0, :, 0].tolist() == [0, 5, 5, 5]


def test_padding_with_zeros_and_padding_nothing():
    x = torch.ones(1, 1, 3, 4)
    padded, _ = pad_to_multiple(x, 4, mode='constant')
    assert padded[0, 0, :, 0].tolist() == [1, 1, 1, 0]
    assert pad_to_multiple(padded, 4)[0] is padded


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
