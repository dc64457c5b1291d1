"""Vision state-space block: shapes, gradients, initialisation, cost and its conv counterpart."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from oracles import naive_ss2d
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from unfoldldm_basicsr.archs.layers.vss import SS2D, ConvTokenMixer, VSSBlock
from unfoldldm_basicsr.ops.ss2d import ss2d_scan


def flops(module, x):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return counter.get_total_flops()


def peak_allocated(function):
    """Largest number of bytes that ``function`` holds at once on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == '[memory]']
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    del result
    return peak


@pytest.mark.parametrize('mixer', ['vss', 'conv'])
@pytest.mark.parametrize('size', [(5, 9), (1, 7), (7, 1), (1, 1)])
def test_the_block_keeps_shape_at_any_size_and_memory_format(mixer, size):
    block = VSSBlock(8, d_state=4, mixer=mixer)
    x = torch.randn(2, 8, *size)
    y = block(x)
    assert y.shape == x.shape
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(block(x.contiguous(memory_format=torch.channels_last)), y)


@pytest.mark.parametrize('mixer', ['vss', 'conv'])
def test_every_parameter_receives_a_gradient(mixer):
    block = VSSBlock(8, d_state=4, mixer=mixer)
    block(torch.randn(2, 8, 6, 7)).square().mean().backward()
    missing = [n for n, p in block.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing


def test_ss2d_equals_its_definition_written_on_four_copies():
    """Projections applied to each direction's own copy of the sequence, naive scan, LN, gate."""
    torch.manual_seed(3)
    layer = SS2D(24, d_state=3).double()
    x = torch.randn(2, 4, 5, 24, dtype=torch.float64)
    u, z = layer.in_proj(x).split(48, dim=-1)
    u = F.silu(layer.conv(u.movedim(-1, 1))).movedim(1, -1)
    parts = [u @ layer.x_proj[k].t() for k in range(4)]
    dt = torch.stack([p[..., :2] @ layer.dt_proj[k].t() for k, p in enumerate(parts)], -2)
    b, c = (torch.stack([p[..., s] for p in parts], -2) for s in (slice(2, 5), slice(5, 8)))
    y = naive_ss2d(u, dt, -layer.A_log.exp(), b, c, layer.D, layer.dt_bias)
    expected = layer.out_proj(
        F.layer_norm(y, (48,), layer.norm.weight, layer.norm.bias) * F.silu(z)
    )
    torch.testing.assert_close(layer(x), expected)


def test_initialisation_is_that_of_mamba():
    layer = SS2D(64, d_state=16)
    step = F.softplus(layer.dt_bias)
    assert 1e-3 * 0.999 <= step.min() < 1.5e-3
    assert 0.07 < step.max() <= 1e-1 * 1.001
    log = step.log()
    assert abs(log.mean() - 0.5 * (math.log(1e-3) + math.log(1e-1))) < 0.2
    torch.testing.assert_close(layer.A_log.exp()[2, 5], torch.arange(1.0, 17.0))
    assert torch.equal(layer.D, torch.ones(4, 128))
    assert layer.dt_rank == 4
    assert layer.dt_proj.abs().max() <= 0.5


def test_parameter_count_and_decay_exemptions():
    block = VSSBlock(32, d_state=16)
    assert sum(p.numel() for p in block.parameters()) == 28224
    exempt = {n for n, p in block.named_parameters() if getattr(p, '_no_weight_decay', False)}
    assert exempt == {'mixer.A_log', 'mixer.D', 'mixer.dt_bias'}


@pytest.mark.parametrize(('dim', 'd_state'), [(16, 1), (48, 1), (32, 4), (32, 16)])
def test_the_conv_counterpart_costs_the_same(dim, d_state):
    x = torch.randn(1, 9, 11, dim)
    ratio = flops(ConvTokenMixer(dim, d_state=d_state), x) / flops(SS2D(dim, d_state=d_state), x)
    assert abs(ratio - 1) <= 0.05


def test_ss2d_sees_the_whole_image_and_the_conv_counterpart_does_not():
    x = torch.randn(1, 17, 19, 8)
    far = x.clone()
    far[:, 0, 0] += 1.0
    for mixer, reaches in ((SS2D(8, d_state=4), True), (ConvTokenMixer(8, d_state=4), False)):
        with torch.no_grad():
            change = (mixer(far) - mixer(x))[:, -1, -1].abs().max().item()
        assert (change > 0) == reaches


@pytest.mark.parametrize('mixer', ['vss', 'conv'])
def test_a_batch_item_does_not_depend_on_its_neighbours(mixer):
    block = VSSBlock(8, d_state=4, mixer=mixer)
    x = torch.randn(3, 8, 6, 7)
    with torch.no_grad():
        torch.testing.assert_close(block(x[1:2]), block(x)[1:2], rtol=1e-6, atol=1e-6)


def test_bfloat16_autocast_stays_close_to_float32():
    block = VSSBlock(8, d_state=4)
    x = torch.randn(1, 8, 9, 10)
    with torch.no_grad():
        expected = block(x)
        with torch.autocast('cpu', torch.bfloat16):
            got = block(x)
    assert (got - expected).abs().max() <= 2e-2 * expected.abs().max()


@pytest.mark.parametrize(('d_state', 'bytes_per_element'), [(16, 48), (1, 36)])
def test_the_core_holds_few_bytes_per_element(d_state, bytes_per_element):
    """Projections and scan of a 64x64 image; a stacked cross-scan with a naive loop takes 1336."""
    layer = SS2D(32, d_state=d_state)
    u = torch.randn(1, 64, 64, 64)

    def core():
        selection = F.linear(u, layer.x_proj.flatten(0, 1)).unflatten(-1, (4, -1))
        dt, b, c = selection.split([layer.dt_rank, d_state, d_state], dim=-1)
        dt = torch.einsum('bhwkr,kcr->bhwkc', dt, layer.dt_proj)
        return ss2d_scan(u, dt, -layer.A_log.exp(), b, c, layer.D, layer.dt_bias)

    with torch.no_grad():
        assert peak_allocated(core) <= bytes_per_element * u.numel()
