"""Vision state-space block: shapes, gradients, initialisation, cost and its conv counterpart."""

import math

import pytest
import torch
import torch.nn.functional as F
from oracles import naive_ss2d
from torch.utils.flop_counter import FlopCounterMode

from unfoldldm_basicsr.archs.layers.vss import SS2D, ConvTokenMixer, VSSBlock


def flops(module, x):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return counter.get_total_flops()


@pytest.mark.parametrize('mixer', ['vss', 'conv'])
@pytest.mark.parametrize('size', [(5, 9), (1, 7), (7, 1), (1, 1)])
def test_the_block_keeps_shape_at_any_size_and_memory_format(mixer, size):
    block = VSSBlock(8, d_state=4, mixer=mixer)
    x = torch.randn(2, 8, *size)
    y = block(x)
    assert y.shape == x.shape
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(block(x.contiguous(memory_format=torch.channels_last)), y)


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
