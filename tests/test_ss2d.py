"""Four-direction selective scan: values, gradients, stability, contract; the block around it."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from unfoldldm_basicsr.archs.layers.vss import SS2D, ConvTokenMixer, VSSBlock
from unfoldldm_basicsr.ops.ss2d import ss2d_scan

NAMES = ('x', 'dt', 'A', 'Bm', 'Cm', 'D', 'bias')


def naive_selective_scan(u, delta, A, B, C, D, bias) -> Tensor:
    """The recurrence as written, one step per position.

    u, delta (batch, D, L); A (D, N); B, C (batch, G, N, L), channel d reads group d // (D / G);
    D, bias (D,). ``unbind`` keeps the backward pass linear in L.
    """
    delta = F.softplus(delta + bias[:, None])
    B, C = (t.repeat_interleave(u.shape[1] // t.shape[1], dim=1) for t in (B, C))
    h, ys = u.new_zeros(u.shape[0], *A.shape), []
    steps = (t.unbind(-1) for t in (delta, u, B, C))
    for delta_t, u_t, B_t, C_t in zip(*steps, strict=True):
        h = torch.exp(delta_t[..., None] * A) * h + (delta_t * u_t)[..., None] * B_t
        ys.append((h * C_t).sum(-1))
    return torch.stack(ys, -1) + D[:, None] * u


def naive_ss2d(x, dt, A, Bm, Cm, D, bias) -> Tensor:
    """Explicit cross-scan, naive scan of the four sequences, explicit cross-merge."""
    batch, height, width, channels = x.shape
    rows = torch.arange(height * width).view(height, width)
    forward = torch.stack([rows.flatten(), rows.t().flatten()])
    order = torch.cat([forward, forward.flip(1)])  # (4, L): pixels as each direction visits them

    def sequences(t):  # (B, H, W, 4, Z) -> (B, 4, Z, L), every direction in its own order
        t = t.flatten(1, 2)
        return torch.stack([t[:, order[k], k] for k in range(4)], 1).transpose(2, 3)

    u = sequences(x[..., None, :].expand(-1, -1, -1, 4, -1)).flatten(1, 2)
    ys = naive_selective_scan(
        u, sequences(dt).flatten(1, 2), A.flatten(0, 1), sequences(Bm), sequences(Cm),
        D.flatten(), bias.flatten(),
    )  # fmt: skip
    ys = ys.view(batch, 4, channels, -1)
    merged = sum(ys[:, k][..., order[k].argsort()] for k in range(4))
    return merged.view(batch, channels, height, width).permute(0, 2, 3, 1)


def scan_inputs(height, width, *, batch=2, channels=3, d_state=4, dtype=torch.float64, shift=-1.0):
    """Random inputs that require gradients; A, D, bias: at least 32 bits; ``shift`` moves dt."""
    grid, parameters = (batch, height, width), (4, channels)
    shapes = [(*grid, channels), (*grid, 4, channels), (*parameters, d_state)]
    shapes += [(*grid, 4, d_state)] * 2 + [parameters] * 2
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    inputs[1] += shift
    inputs[2] = -(0.1 + 4 * torch.rand(shapes[2], dtype=torch.float64))
    precise = torch.promote_types(dtype, torch.float32)
    inputs = [t.to(precise if i in (2, 5, 6) else dtype) for i, t in enumerate(inputs)]
    return [t.requires_grad_() for t in inputs]


def as_double(inputs):
    return [t.detach().double().requires_grad_() for t in inputs]


def values_and_gradients(scan, inputs, seed=1):
    y = scan(*inputs)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y.dtype)
    return dict(zip(('y', *NAMES), (y, *torch.autograd.grad(y, inputs, weight)), strict=True))


def relative_error(got, expected):
    return ((got.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize(('size', 'd_state'), [((5, 7), 4), ((1, 9), 1), ((9, 1), 4), ((8, 5), 16)])
def test_values_and_all_gradients_equal_the_naive_loop(size, d_state, dtype, tolerance):
    inputs = scan_inputs(*size, d_state=d_state, dtype=dtype)
    got = values_and_gradients(ss2d_scan, inputs)
    expected = values_and_gradients(naive_ss2d, as_double(inputs))
    errors = {name: relative_error(got[name], expected[name]) for name in expected}
    assert max(errors.values()) <= tolerance, errors


@pytest.mark.parametrize('block_numel', [1, 3 * 2 * 12, 1 << 20])
def test_the_block_size_changes_nothing(monkeypatch, block_numel):
    monkeypatch.setattr('unfoldldm_basicsr.ops.ss2d._torch._BLOCK_NUMEL', block_numel)
    inputs = scan_inputs(3, 41)
    got = values_and_gradients(ss2d_scan, inputs)
    expected = values_and_gradients(naive_ss2d, inputs)
    assert max(relative_error(got[name], expected[name]) for name in expected) <= 1e-12


@pytest.mark.parametrize('d_state', [1, 16])
def test_a_batch_item_does_not_depend_on_its_neighbours(d_state):
    """Bit for bit, once the channels fill whole vector registers."""
    inputs = scan_inputs(6, 5, batch=3, channels=32, d_state=d_state, dtype=torch.float32)
    inputs = [t.detach() for t in inputs]
    whole = ss2d_scan(*inputs)
    for i in range(3):
        alone = [t[i : i + 1] if t.ndim > 3 else t for t in inputs]
        assert torch.equal(ss2d_scan(*alone), whole[i : i + 1])


@pytest.mark.parametrize('shift', [5.0, 50.0])
def test_large_steps_stay_finite_and_exact(shift):
    inputs = scan_inputs(6, 7, d_state=8, dtype=torch.float32, shift=shift)
    got = values_and_gradients(ss2d_scan, inputs)
    expected = values_and_gradients(naive_ss2d, as_double(inputs))
    # With steps of 50 the gradient of A underflows as a whole; every other one is exact.
    errors = {n: relative_error(got[n], expected[n]) for n in expected if (n, shift) != ('A', 50.0)}
    assert max(errors.values()) <= 1e-6, errors
    assert torch.isfinite(got['A']).all()


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.bfloat16, 5e-3), (torch.float16, 1e-3)])
def test_low_precision_input_keeps_a_float32_state(dtype, tolerance):
    """A constant image with slow decay: a 16-bit state would be off by several per cent."""
    inputs = [t.detach() for t in scan_inputs(64, 64, batch=1, channels=2, dtype=dtype)]
    inputs[0].fill_(1.0)
    inputs[1].fill_(-7.0)  # softplus: 1e-3, decay about 0.999
    for i in (3, 4):
        inputs[i].fill_(1.0)
    inputs[2] = torch.full((4, 2, 4), -1.0)
    inputs[5], inputs[6] = torch.ones(4, 2), torch.zeros(4, 2)
    y = ss2d_scan(*inputs)
    assert y.dtype == dtype
    assert relative_error(y, naive_ss2d(*(t.double() for t in inputs))) <= tolerance


def test_low_precision_gradients_follow_the_inputs():
    inputs = scan_inputs(5, 6, dtype=torch.bfloat16)
    got = values_and_gradients(ss2d_scan, inputs)
    expected = values_and_gradients(naive_ss2d, as_double(inputs))
    for name, tensor in zip(NAMES, inputs, strict=True):
        assert got[name].dtype == tensor.dtype, name
        assert relative_error(got[name], expected[name]) <= 1e-2, name


def test_float16_autocast_computes_in_float32():
    inputs = [t.detach() for t in scan_inputs(4, 4, dtype=torch.float32)]
    expected = ss2d_scan(*inputs)
    half = [t.half() if i in (0, 1, 3, 4) else t for i, t in enumerate(inputs)]
    with torch.autocast('cpu', torch.float16):
        assert ss2d_scan(*half).dtype == torch.float32
        assert torch.equal(ss2d_scan(*inputs), expected)
    with torch.autocast('cpu', torch.bfloat16):
        bf16 = [t.bfloat16() if i in (0, 1, 3, 4) else t for i, t in enumerate(inputs)]
        assert ss2d_scan(*bf16).dtype == torch.bfloat16


@pytest.mark.parametrize(('dtype', 'permuted'), [(torch.float32, True), (torch.bfloat16, False)])
def test_operator_contract_holds(dtype, permuted):
    inputs = scan_inputs(3, 4, batch=1, dtype=dtype)
    if permuted:  # the strides that a product over channels leaves behind
        inputs = [t.detach().mT.contiguous().mT.requires_grad_() for t in inputs]
        assert not any(t.is_contiguous() for t in inputs)
    torch.library.opcheck(torch.ops.unfoldldm.ss2d_scan.default, tuple(inputs))
    detached = tuple(t.detach() for t in (torch.randn(inputs[0].shape).to(dtype), *inputs))
    torch.library.opcheck(torch.ops.unfoldldm.ss2d_scan_backward.default, detached)


def test_flop_counter_sees_the_scan():
    inputs = scan_inputs(5, 6, channels=3, d_state=4)
    with FlopCounterMode(display=False) as counter:
        y = ss2d_scan(*inputs)
    assert counter.get_total_flops() == 2 * 30 * 4 * 3 * (9 * 4 + 1)
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 30 * 4 * 3 * (9 * 4 + 1)


@pytest.mark.parametrize('name', NAMES)
def test_a_wrong_shape_is_named(name):
    inputs = dict(zip(NAMES, scan_inputs(4, 5), strict=True))
    inputs[name] = inputs[name].detach()[..., None]
    with pytest.raises(ValueError, match=rf'ss2d_scan: {name} must be'):
        ss2d_scan(**inputs)


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
    normed = F.layer_norm(y, (48,), layer.norm.weight, layer.norm.bias)
    torch.testing.assert_close(layer(x), layer.out_proj(normed * F.silu(z)))


def test_initialisation_is_that_of_mamba():
    layer = SS2D(64, d_state=16)
    step = F.softplus(layer.dt_bias)
    assert 1e-3 * 0.999 <= step.min() < 1.5e-3
    assert 0.07 < step.max() <= 1e-1 * 1.001
    assert abs(step.log().mean() - 0.5 * (math.log(1e-3) + math.log(1e-1))) < 0.2
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
