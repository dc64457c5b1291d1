"""UnfoldLDM as a network: identity at start, sizes, gradients, phases, switches."""

import functools
import inspect
import itertools
import json

import numpy as np
import pytest
import torch
from tiny_network import shake, unfoldldm_kwargs
from torch.nn import functional as F

from unfoldldm_basicsr.archs import UnfoldLDM
from unfoldldm_basicsr.archs.unfolding.gradient_step_mgda import MGDA, MGDAOptions
from unfoldldm_basicsr.archs.unfolding.proximal_step_ocformer import (
    OCFormer,
    OCFormerBlock,
    PriorGate,
)
from unfoldldm_basicsr.archs.unfolding.stage import Estimates
from unfoldldm_basicsr.losses import ISDALoss, LatentDiffusionLoss


def make(phase=2, **changes) -> UnfoldLDM:
    torch.manual_seed(0)
    return UnfoldLDM(**unfoldldm_kwargs(phase, **changes))


def shaken(net: UnfoldLDM) -> UnfoldLDM:
    """Away from the initial values, where zeros hide differences."""
    torch.manual_seed(1)
    return shake(net, 0.05)


def loss_of(net: UnfoldLDM, lq, gt) -> torch.Tensor:
    trace = net(lq, gt, return_trace=True)
    loss = (trace.output - gt).abs().mean()
    loss = loss + ISDALoss()([s.x_hat for s in trace.stages], [s.x_tilde for s in trace.stages])
    if net.phase != 1 and net.use_ldm:
        generated = [s.generated for s in trace.stages]
        loss = loss + LatentDiffusionLoss()(generated, trace.target_prior)
    return loss


def test_fresh_gradient_steps_are_the_identity():
    lq = torch.rand(2, 3, 32, 48)
    stage = make(coarse_stages=0).eval()(lq, return_trace=True).stages[0]
    torch.testing.assert_close(stage.x_hat, lq, rtol=0, atol=1e-6)
    torch.testing.assert_close(stage.x_tilde, lq, rtol=0, atol=1e-6)
    for factor, size in ((stage.W, 32), (stage.M, 48)):
        eye = torch.eye(size).expand(2, 3, size, size)
        torch.testing.assert_close(factor.matrix, eye, rtol=0, atol=1e-6)


def test_holistic_operator_is_linear_with_its_true_adjoint():
    operator = shaken(make()).mgda.operator.double()
    x, r = torch.randn(2, 2, 3, 16, 24, dtype=torch.float64).unbind(0)
    gains = torch.randn(2, 8, 4, 6, dtype=torch.float64)
    of_x, of_r = operator(x, gains), operator(r, gains)
    torch.testing.assert_close(operator(x + 3 * r, gains), of_x + 3 * of_r)
    torch.testing.assert_close((of_x * r).sum(), (x * operator.adjoint(r, gains)).sum())
    assert not torch.allclose(of_x, x, atol=0.1)


@pytest.mark.parametrize('changes', [{}, {'wm_window': 16, 'prior_levels': True}])
def test_double_precision_gives_the_same_image(changes):
    net, x = shaken(make(**changes)).eval(), torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        single, double = net(x), net.double()(x.double())
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4)
    assert not torch.equal(single.double(), double)


@pytest.mark.parametrize(('changes', 'scales', 'ocformers'), [
    ({}, [2, 2, 1], [0, 0, 1]), ({'coarse_stages': 0}, [1, 1, 1], [0, 0, 0]),
    ({'pyramid': True}, [4, 2, 1], [0, 0, 1]),
    ({'pyramid': True, 'num_stages': 4, 'coarse_stages': 2}, [4, 2, 1, 1], [0, 0, 1, 1]),
    ({'pyramid': True, 'num_stages': 4}, [4, 4, 2, 1], [0, 0, 0, 1]),
    ({'pyramid': True, 'num_stages': 2}, [2, 1], [0, 1]),
    ({'pyramid': True, 'coarse_stages': 0}, [1, 1, 1], [0, 0, 0]),
])  # fmt: skip
def test_first_stages_work_at_lower_resolutions_and_share_an_ocformer(changes, scales, ocformers):
    sizes, used, lq = [], [], torch.rand(1, 3, 32, 48)
    net = shaken(make(**{'num_stages': 3, **changes})).eval()
    for number, ocformer in enumerate(net.ocformer):
        ocformer.register_forward_hook(
            lambda _, args, out, number=number: (
                used.append(number) or sizes.append((*args[0].shape[2:], *out.shape[2:]))
            )
        )
    with torch.no_grad():
        trace = net(lq, return_trace=True)
    assert sizes == [(32 // s, 48 // s) * 2 for s in scales]
    assert [s.W.matrix.shape[-1] for s in trace.stages] == [32 // s for s in scales]
    assert used == ocformers
    start = F.interpolate(F.avg_pool2d(lq, scales[0]), lq.shape[2:], mode='bilinear')
    torch.testing.assert_close(trace.start, start)


@pytest.mark.parametrize(('share', 'order', 'looks'), [(True, [0, 0, 0], 1), (False, [0, 1, 2], 3)])
def test_stages_share_ocformer_and_the_look_at_the_degradation_as_told(share, order, looks):
    net, used, seen = make(num_stages=3, share_stages=share).eval(), [], []
    parts = [m for m in net.modules() if isinstance(m, OCFormer)]
    for part in parts:
        part.register_forward_pre_hook(lambda module, _: used.append(parts.index(module)))
    for mgda in (m for m in net.modules() if isinstance(m, MGDA)):
        mgda.trunk.register_forward_pre_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        net(torch.rand(1, 3, 16, 16))
    assert (used, len(seen)) == (order, looks)


def test_prior_of_a_photo_is_the_mean_over_windows_of_a_patch():
    encoder, images = make().prior_encoder, torch.rand(2, 6, 16, 32)
    halves = [encoder(half) for half in images.chunk(2, 3)]
    torch.testing.assert_close(encoder(images, 16), (halves[0] + halves[1]) / 2)
    assert not torch.allclose(encoder(images, 16), encoder(images), atol=1e-3)
    assert encoder(torch.rand(1, 6, 20, 40), 16).shape == (1, 8)  # windows overlap where they must


def test_a_prior_that_starts_from_levels_tells_brightness_rather_than_content():
    encoder, images = make(prior_dim=64, prior_levels=True).prior_encoder, torch.rand(32, 6, 16, 16)
    levels = torch.linspace(0.05, 1, 32)[:, None, None, None]
    by_content, by_level = ((p - p.mean(0)).std() for p in map(encoder, (images, images * levels)))
    assert by_level > max(4 * by_content, 0.4)  # of vectors with a variance of one


def test_pi_can_see_how_bright_the_input_is_without_seeing_it_of_the_truth():
    net, (lq, gt) = make(prior_levels='lq'), torch.rand(2, 4, 3, 16, 16)
    pairs = (lq, gt), (lq, gt / 4), (lq / 4, gt)
    first, of_dark_gt, of_dark_lq = (net(*p, return_trace=True).target_prior for p in pairs)
    torch.testing.assert_close(of_dark_gt, first, rtol=0, atol=0.01)
    assert not torch.allclose(of_dark_lq, first, atol=0.1)


def test_levels_of_a_prior_are_statistics_of_the_whole_photo():
    encoder, images = make(prior_dim=64, prior_levels=True).prior_encoder, torch.rand(1, 6, 16, 32)
    encoder.head = torch.nn.Identity()  # what it would see is the prior, but for a scale and offset
    means = images.unflatten(2, (8, 2)).unflatten(4, (16, 2)).mean((3, 5))[0].flatten(1)
    of_means = np.quantile(means, [0, 0.1, 0.5, 0.9, 1], axis=1, method='nearest')
    values = images[0].flatten(1).numpy()
    logs = [np.log(values.mean(1) + 0.05), np.log(values.std(1))]
    expected = np.concatenate([*logs, *np.log(of_means + 0.05)])
    for window in (None, 16):  # torch sorts where a gradient is to pass, else numpy
        levels = encoder(images.requires_grad_(window is None), window)[0, -42:].numpy(force=True)
        slope, offset = np.polyfit(expected, levels, 1)
        np.testing.assert_allclose(levels, slope * expected + offset, atol=1e-2)


@pytest.mark.parametrize('changes', [{}, {'num_stages': 3, 'pyramid': True}])
def test_priors_of_a_patch_are_those_of_the_larger_patch_around_it(changes):
    net, seen = shaken(make(**changes)).eval(), {}
    (lq, gt), around = torch.rand(2, 2, 3, 16, 16), torch.rand(2, 2, 3, 32, 48)
    with torch.no_grad():
        seen['patch'] = net(lq, gt, return_trace=True)
        seen['around'] = net(*around, return_trace=True)
        seen['both'] = net(lq, gt, context=(around[0], around[1]), return_trace=True)
    both, large = seen['both'], seen['around']
    torch.testing.assert_close(both.stages[-1].prior, large.stages[-1].prior)
    torch.testing.assert_close(both.target_prior, large.target_prior)
    assert not torch.allclose(both.target_prior, seen['patch'].target_prior, atol=1e-3)
    assert both.output.shape == lq.shape
    assert not torch.equal(both.output, seen['patch'].output)
    net.train()
    net(lq, gt, context=(around[0], around[1])).mean().backward()
    assert net.condition_encoder.head[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize('phase', [1, 2, 'joint'])
def test_every_trainable_parameter_has_had_a_gradient_within_three_steps(phase):
    net = make(phase, null_prior_prob=0.5).train()
    lq, gt = torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16)
    trainable = {n: p for group in net.parameter_groups().values() for n, p in group}
    optimizer = torch.optim.Adam(trainable.values(), 1e-2)
    seen = set()
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(net, lq, gt).backward()
        seen |= {n for n, p in trainable.items() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
    assert set(trainable) - seen == set()


def test_a_stage_adds_to_its_base():
    y = torch.rand(1, 3, 16, 16)
    for base in ('x_hat', 'x'):
        net = shaken(make('inference', num_stages=1, base=base)).eval()
        net.ocformer[0].output.requires_grad_(False).weight.zero_()
        net.ocformer[0].output.bias.zero_()
        with torch.no_grad():
            stage = net(y, return_trace=True).stages[0]
        assert torch.equal(stage.x, stage.x_hat if base == 'x_hat' else y)
        assert not torch.equal(stage.x_hat, y)


def test_windows_of_a_photo_have_the_factors_of_a_patch():
    mgda = shaken(MGDA(MGDAOptions(mgda_dim=8, embed_dim=8, wm_window=16))).eval()
    x, y = torch.rand(2, 2, 3, 32, 40).unbind(0)
    features, embedding = mgda.look(y)[0], 3 * torch.randn(2, 8)  # steps of their own
    photo = mgda.estimate((features, embedding), (32, 40))
    patch = mgda.estimate((features[..., 2:, 1:3], embedding), (16, 16))
    assert photo.W.matrix.shape == photo.M.matrix.shape == (2 * 3 * 4, 3, 16, 16)
    torch.testing.assert_close(photo.W.matrix[[9, 21]], patch.W.matrix)  # the third row's second
    corner = (..., slice(0, 8), slice(32, 40))  # of one window alone
    patch = mgda.estimate((features[..., :2, 3:], embedding), (16, 16))
    photo = mgda(x, y, 0, photo).x_tilde[corner]
    patch = mgda(x[..., :16, 24:], y[..., :16, 24:], 0, patch).x_tilde[..., :8, 8:]
    torch.testing.assert_close(photo, patch)
    network = {w: shaken(make(num_stages=1, wm_window=w)).eval() for w in (None, 16)}
    with torch.no_grad():
        one, many = (torch.stack([n(i) for n in network.values()]) for i in (x[..., :16, :16], x))
    assert torch.equal(*one)
    assert not torch.allclose(*many, atol=1e-4)


def test_the_code_of_a_stage_changes_that_stage_and_later_ones_alone():
    net, y = shaken(make('inference', num_stages=3)).eval(), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        before = [stage.x for stage in net(y, return_trace=True).stages]
        net.stage_code[1] += 1
        after = [stage.x for stage in net(y, return_trace=True).stages]
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, False, False]


def test_prior_sources_differ_and_are_refused_where_impossible():
    net = shaken(make(2)).eval()
    lq, gt = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        sources = 'generated', 'oracle', 'null', 'shuffled'
        outputs = {source: net(lq, gt, prior_source=source) for source in sources}
        given = net(lq, prior=torch.stack([s.prior for s in net(lq, return_trace=True).stages]))
    for first, second in itertools.combinations(sources, 2):
        assert not torch.equal(outputs[first], outputs[second]), (first, second)
    torch.testing.assert_close(given, outputs['generated'], rtol=0, atol=1e-6)
    for phase, source, message in ((2, 'oracle', 'ground truth'), (1, 'generated', 'phase 2')):
        with pytest.raises(ValueError, match=message):
            make(phase).eval()(lq, prior_source=source)
    with pytest.raises(ValueError, match='two images'):
        net(lq[:1], prior_source='shuffled')
    first = shaken(make(1)).eval()
    assert torch.equal(first(lq), first(lq, prior_source='null'))  # for want of the truth
    assert not torch.equal(first(lq), first(lq, gt))
    with pytest.raises(ValueError, match='PI'):
        make('inference').eval()(lq, gt, prior_source='oracle')


def test_unknown_modes_and_sources_are_refused_where_they_change_nothing_too():
    net, lq = make(1, use_ldm=False), torch.rand(1, 3, 16, 16)
    for wrong in ({'mode': 'restored'}, {'prior_source': 'nul'}):
        with pytest.raises(ValueError, match='Did you mean'):
            net(lq, **wrong)
    with pytest.raises(ValueError, match='phase: 2'):
        make('joint')(lq, lq, mode='warmup')


@pytest.mark.parametrize(('norm', 'distance'), [('l1', torch.abs), ('l2', torch.square)])
def test_isda_is_the_mean_distance_of_the_estimates_after_stage_1(norm, distance):
    hats, tildes = torch.rand(2, 3, 2, 3, 8, 8)
    loss = ISDALoss(loss_weight=0.5, norm=norm)
    assert loss(hats[:1], tildes[:1]) == 0
    first, *others = (distance(h - t).mean() for h, t in zip(hats, tildes, strict=True))
    torch.testing.assert_close(loss(hats, tildes), sum(others) / 4)
    torch.testing.assert_close(loss((hats[0] + 1, *hats[1:]), tildes), sum(others) / 4)
    torch.testing.assert_close(ISDALoss(1.0, start=1, norm=norm)(hats[:1], tildes[:1]), first)


def test_diffusion_loss_is_a_mean_and_sends_no_gradient_to_the_target():
    target = torch.rand(2, 8, requires_grad=True)
    generated = torch.rand(2, 8, requires_grad=True)
    LatentDiffusionLoss()([generated, generated], target).backward()
    assert target.grad is None
    assert generated.grad is not None
    assert LatentDiffusionLoss()([target, target], target) == 0
    assert LatentDiffusionLoss(2.0)([torch.zeros(2, 8)] * 3, torch.full((2, 8), 0.5)) == 1


def test_every_stage_has_step_sizes_of_its_own():
    mgda = make(share_stages=True, num_stages=3).mgda
    raw = torch.tensor([-30.0, 0.0, 30.0])
    with torch.no_grad():
        for layer, bias in (
            (mgda.step_decomposed, raw),
            (mgda.step_holistic, raw.repeat_interleave(3)),
        ):
            layer.weight.zero_()
            layer.bias.copy_(bias)
        x, y = torch.rand(2, 1, 3, 16, 16)
        moved = [mgda(x, y, k, mgda.estimate(mgda.look(y), y.shape[2:])) for k in range(3)]
    for name, factors in (('x_hat', (0, 0.5, 1)), ('x_tilde', (0.2, 1, 1.8))):
        moves = [getattr(estimates, name) - x for estimates in moved]
        for move, factor in zip(moves, factors, strict=True):
            torch.testing.assert_close(move, moves[-1] / factors[-1] * factor, rtol=1e-4, atol=1e-6)
        assert moves[-1].abs().max() > 0.01


@pytest.mark.parametrize('shift', [False, True])
def test_a_prior_of_zero_changes_no_features(shift):
    features, gate = torch.rand(2, 6, 4, 4), PriorGate(6, 8, shift=shift)
    assert torch.equal(gate(features, torch.zeros(2, 8)), features)
    assert not torch.equal(gate(features, torch.ones(2, 8)), features)


def test_joint_training_is_guided_by_either_prior():
    net, images = make('joint', null_prior_prob=0).train(), torch.rand(32, 3, 16, 16)
    stage = net(images, images, return_trace=True).stages[0]
    taught = (stage.prior == stage.target).all(1)
    assert (stage.prior[~taught] == stage.generated[~taught]).all()
    assert 4 < taught.sum() < 28


def test_windows_of_the_condition_are_those_of_the_prior_at_the_size_of_each_stage():
    seen, net = [], make(num_stages=3, pyramid=True, prior_stages='all', prior_window=32)
    encode = net.condition_encoder.forward
    net.condition_encoder.forward = lambda images, window: (
        seen.append((images.shape[2], window)) or encode(images, window)
    )
    net.eval()(torch.rand(1, 3, 48, 48))
    assert seen == [(12, 8), (24, 16), (48, 32)]


# One entry for each constructor argument: a value that is not the tiny configuration's.
OTHER_VALUES = {
    'phase': 1, 'inp_channels': 1, 'dim': 12, 'num_blocks': [2, 1, 1], 'heads': [2, 0, 2],
    'num_stages': 3, 'coarse_stages': 0, 'pyramid': (True, {'num_stages': 3}),
    'share_stages': False, 'stage_code': False,
    'mgda_dim': 16, 'mgda_stride': 2, 'mgda_blocks': 2, 'mgda_d_state': 4, 'mgda_expand': 1,
    'mgda_op': 'conv', 'mgda_mode': 'holistic', 'embed_dim': 16, 'wm_rank': 4, 'use_ldm': False,
    'prior_dim': 16, 'prior_width': 16, 'prior_encoder_blocks': 2, 'prior_levels': True,
    'prior_input': ('gt', {'phase': 1}), 'prior_window': 8, 'cond_input': 'mgda_lq',
    'cond_detach': False, 'prior_stages': 'all', 'prior_source': 'null',
    'null_prior_prob': (0.9, {'phase': 1}), 'num_timesteps': 4, 'denoiser_dim': 32,
    'denoiser_layers': 3, 'dra': 'tilde_q', 'pdr': 'gate', 'base': 'x',
    'wm_window': 16, 'use_checkpoint': True,
}  # fmt: skip


@functools.cache
def fingerprint(changes: str) -> tuple:
    """Keys and shapes, evaluation output, gradients in training, runs of a block."""
    net = shaken(make(**json.loads(changes)))
    channels = next(m for m in net.modules() if isinstance(m, OCFormer)).output.out_channels // 4
    generator = torch.Generator().manual_seed(2)
    lq, gt = torch.rand(2, 2, channels, 16, 32, generator=generator).unbind(0)
    with torch.no_grad():
        evaluated = net.eval()(lq)
    calls = []
    block = next(m for m in net.modules() if isinstance(m, OCFormerBlock))
    handle = block.register_forward_pre_hook(lambda *_: calls.append(1))
    torch.manual_seed(3)
    loss_of(net.train(), lq, gt).backward()
    handle.remove()
    trained = [p for group in net.parameter_groups().values() for _, p in group]
    assert all(p.grad is not None for p in trained)  # else DDP would wait for it
    grads = torch.stack([p.grad.double().norm() for p in trained])
    shapes = tuple((k, tuple(v.shape)) for k, v in net.state_dict().items())
    return shapes, evaluated, grads, len(calls)


def same(a, b) -> bool:
    return a.shape == b.shape and torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_every_constructor_argument_is_covered():
    assert set(inspect.signature(UnfoldLDM).parameters) == set(OTHER_VALUES)


SWITCHES = [  # beside OTHER_VALUES
    {'use_ldm': False, 'pdr': 'none'}, {'cond_input': 'lq'}, {'mgda_mode': 'decomposed'},
    {'mgda_mode': 'none'}, {'num_stages': 1}, {'num_timesteps': 1}, {'dra': 'self'},
    {'phase': 'joint'},
]  # fmt: skip


CASES = [{name: value} for name, value in OTHER_VALUES.items()] + SWITCHES


@pytest.mark.parametrize('case', CASES, ids=str)
def test_every_argument_and_switch_trains_and_changes_the_state_dict_or_the_result(case):
    (value, *_), base = case.values(), {}
    if isinstance(value, tuple):
        value, base = value
        case = dict.fromkeys(case, value)
    before, after = map(fingerprint, map(json.dumps, (base, base | case)))
    assert not all(same(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(('changes', 'message'), [
    ({'dra': 'hat_g'}, "Did you mean 'hat_q'"), ({'pdr': 'none'}, 'use_ldm: false'),
    ({'coarse_stages': 2}, 'less than num_stages'), ({'dim': 9}, 'dim must be even'),
    ({'heads': [3, 0, 2]}, 'heads'), ({'num_blocks': [1, 1]}, 'num_blocks'),
    ({'prior_window': 12}, 'prior_window'),
    ({'num_stages': 3, 'pyramid': True, 'prior_window': 24}, 'a multiple of 16'),
    ({'cond_input': 'lq', 'cond_detach': False}, 'no effect'),
    ({'prior_levels': 'lq', 'prior_input': 'gt'}, 'PI sees no lq'),
])  # fmt: skip
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_mixed_precision_stays_close_and_keeps_the_factors_in_fp32():
    net = shaken(make()).eval()
    lq = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        exact = net(lq)
        with torch.autocast('cpu', torch.bfloat16):
            trace = net(lq, return_trace=True)
    assert trace.stages[0].W.matrix.dtype == torch.float32
    assert (trace.output.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_foreign_parts_fit_the_stage():
    class Average(torch.nn.Module):
        def forward(self, x_hat, x_tilde, prior):
            return (x_tilde - x_hat) / 2 + prior.mean()

    class Shift(torch.nn.Module):
        def look(self, y):
            return y.mean()

        def estimate(self, seen, size):
            return seen

        def forward(self, x, y, k, degradation):
            return Estimates(x + degradation, y)

    net, lq = make(2, coarse_stages=0).eval(), torch.rand(1, 3, 16, 16)
    step = MGDA(MGDAOptions(mgda_dim=8, embed_dim=8), num_stages=2)
    net.mgda, net.ocformer = step, Average()
    with torch.no_grad():
        stage = net(lq, return_trace=True).stages[0]
        torch.testing.assert_close(stage.x, (stage.x_hat + stage.x_tilde) / 2 + stage.prior.mean())
        seen = step.estimate(step.look(lq), lq.shape[2:])
        torch.testing.assert_close(stage.x_hat, step(lq, lq, 0, seen).x_hat)
        net.mgda = Shift()
        torch.testing.assert_close(net(lq, return_trace=True).stages[0].x_hat, lq + lq.mean())
