"""VLU-Net as host of the latent prior: exact at start, steered, guided, trained in two phases."""

from __future__ import annotations

import functools
import inspect
import json

import pytest
import torch
from released import build_released, randomise, released_pair
from test_unfoldldm import OTHER_VALUES as PRIOR
from test_unfoldldm import same
from tiny_vlunet_prior import TINY_HOST, TINY_PRIOR

from unfoldldm_basicsr.archs import VLUNet, VLUNetPrior
from unfoldldm_basicsr.archs.extras.vlunet_prior_arch import LEVELS
from unfoldldm_basicsr.archs.unfolding.latent_prior import PriorOptions
from unfoldldm_basicsr.common.cost import module_cost
from unfoldldm_basicsr.losses import LatentDiffusionLoss
from unfoldldm_basicsr.weights.loading import load_weights

ALL = {'injection_levels': list(LEVELS)}


def make(phase: int | str = 2, **changes) -> VLUNetPrior:
    torch.manual_seed(0)
    return VLUNetPrior(**{**TINY_PRIOR, 'phase': phase, **changes})


def inputs(batch: int = 2, height: int = 16, width: int = 16, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    lq, gt = torch.rand(2, batch, 3, height, width, generator=generator)
    return lq, gt, torch.randn(batch, TINY_HOST['embed_dim'], generator=generator)


def loss_of(net: VLUNetPrior, lq, gt, d, mode: str = 'restore') -> torch.Tensor:
    trace = net(lq, gt, degradation=d, mode=mode, return_trace=True)
    loss = (trace.output - gt).abs().mean()
    if net.phase == 2:
        generated = [s.generated for s in trace.stages]
        loss = loss + LatentDiffusionLoss()(generated, trace.target_prior)
    return loss


# ---- equal to the host ------------------------------------------------------------------------


@pytest.mark.parametrize('changes', [{}, ALL, {'corrector': False}, {'injection_levels': []}])
def test_fresh_network_equals_the_plain_host_bit_for_bit_with_any_prior(changes):
    host = randomise(VLUNet(**TINY_HOST))
    lq, gt, d = inputs(2, 13, 24)
    with torch.no_grad():
        expected = host(lq, d)
    for phase in (1, 2, 'inference'):
        net = make(phase, **changes).eval()
        net.load_state_dict(host.state_dict(), strict=False)
        with torch.no_grad():
            assert torch.equal(net(lq, degradation=d), expected)
            assert torch.equal(net(lq, degradation=d, prior=torch.randn(2, 8)), expected)
            if phase != 'inference':
                assert torch.equal(net(lq, gt, degradation=d, prior_source='oracle'), expected)
                assert torch.equal(net.train()(lq, gt, degradation=d), expected)


def test_fresh_network_with_released_weights_gives_the_released_output():
    pair = released_pair('vlunet')
    host = build_released(pair)
    net = make(1, **pair['kwargs'], embed_dim=host.embed_dim, corrector_heads=[0, 0, 1]).eval()
    net.load_state_dict(pair['params'], strict=False)
    lq, d = pair['inputs']
    with torch.no_grad():
        out = net(lq, torch.rand_like(lq), degradation=d)
    torch.testing.assert_close(out, pair['output'], atol=1e-5, rtol=0)


def test_a_file_of_the_plain_host_starts_phase_1_strictly(tmp_path):
    host = randomise(VLUNet(**TINY_HOST))
    torch.save({'params': host.state_dict()}, tmp_path / 'host.pth')
    net, (lq, gt, d) = make(1).eval(), inputs()
    added = {k: v.clone() for k, v in net.state_dict().items() if k not in net.host_keys}
    assert net.host_keys == set(host.state_dict())
    load_weights(net, tmp_path / 'host.pth')
    with torch.no_grad():
        assert torch.equal(net(lq, gt, degradation=d), host(lq, d))
    assert all(torch.equal(net.state_dict()[key], value) for key, value in added.items())
    with pytest.raises(ValueError, match='does not fit network_g'):
        load_weights(make(2), tmp_path / 'host.pth')  # no start for phase 2: it has no PI
    with pytest.raises(ValueError, match='does not fit network_g'):
        load_weights(net, tmp_path / 'host.pth', allow_missing=False)
    with pytest.raises(ValueError, match='does not fit network_g'):
        load_weights(make(1, num_refinement_blocks=2), tmp_path / 'host.pth')


# ---- the prior --------------------------------------------------------------------------------


@pytest.mark.parametrize('part', ['injection', 'corrector'])
@pytest.mark.parametrize('levels', [['refinement'], ['encoder_level2', 'decoder_level1']])
def test_different_priors_change_the_output_through_each_part(part, levels):
    net = make(1, injection_levels=levels).eval()
    (lq, _, d), (a, b) = inputs(), torch.randn(2, 2, 8)
    gates = [p for n, p in net.named_parameters() if '_gate.' in n and 'corrector' not in n]
    assert len(gates) == 2 * len(levels)
    with torch.no_grad():
        if part == 'injection':
            torch.nn.init.normal_(gates[0])
        else:
            randomise(net.corrector)  # a fresh block passes its input on
        one, other = (net(lq, degradation=d, prior=prior) for prior in (a, b))
    assert not torch.equal(one, other)


def test_prior_sources_differ():
    net, (lq, gt, d) = randomise(make(2)), inputs()
    sources = ('generated', 'oracle', 'null', 'shuffled')
    with torch.no_grad():
        outputs = [net(lq, gt, degradation=d, prior_source=s) for s in sources]
        trace = net(lq, degradation=d, return_trace=True)
        given = net(lq, degradation=d, prior=trace.stages[0].prior)
    for i, first in enumerate(outputs):
        assert all(not torch.equal(first, second) for second in outputs[i + 1 :])
    assert torch.equal(given, outputs[0])


@pytest.mark.parametrize('changes', [{}, ALL])
def test_condition_is_the_input_and_the_last_gradient_step_or_the_unguided_output(changes):
    net, (lq, _, d) = randomise(make(2, **changes)), inputs()
    seen = []
    net.condition_encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        stage = net(lq, degradation=d, return_trace=True).stages[0]
        unguided = net(lq, degradation=d, prior_source='null', return_trace=True).stages[0]
    expected = unguided.x_tilde if changes else stage.x_hat
    assert len(seen) == 1
    assert torch.equal(seen[0], torch.cat([lq, expected], 1))


def test_gradient_output_is_the_host_without_its_last_proximal_step():
    net, (lq, _, d) = randomise(make(2)), inputs()
    host = VLUNet(**{**TINY_HOST, 'num_refinement_blocks': 0}).eval()
    host.load_state_dict({k: v for k, v in net.state_dict().items() if k in host.state_dict()})
    with torch.no_grad():
        stage = net(lq, degradation=d, return_trace=True).stages[0]
        torch.testing.assert_close(stage.x_hat, host(lq, d), atol=1e-6, rtol=1e-6)
    assert not torch.equal(stage.x_hat, stage.x_tilde)
    assert not torch.equal(stage.x_tilde, stage.x)
    assert torch.equal(stage.embedding, d)


def test_degradation_vector_steers_the_result_and_is_checked():
    net, (lq, _, d) = randomise(make(2)), inputs()
    with torch.no_grad():
        assert not torch.equal(net(lq, degradation=d), net(lq, degradation=d.flip(0)))
    with pytest.raises(ValueError, match='VLUNetPrior needs one degradation vector of length 6'):
        net(lq, degradation=d[:, :4])


# ---- training ---------------------------------------------------------------------------------


@pytest.mark.parametrize('phase', [1, 2])
@pytest.mark.parametrize('changes', [{}, ALL, {'corrector': False}])
def test_every_trainable_parameter_has_had_a_gradient_within_three_steps(phase, changes):
    net = make(phase, null_prior_prob=0.5, **changes).train()
    teacher = {k: v.clone() for k, v in net.state_dict().items() if k.startswith('prior_encoder')}
    trainable = {n: p for group in net.parameter_groups().values() for n, p in group}
    optimizer = torch.optim.Adam(trainable.values(), 1e-2)
    seen = set()
    for seed in range(3):
        optimizer.zero_grad()
        loss_of(net, *inputs(4, seed=seed)).backward()
        assert all(p.grad is not None for p in trainable.values())  # else DDP would wait for it
        seen |= {n for n, p in trainable.items() if p.grad.abs().max() > 0}
        optimizer.step()
    assert set(trainable) - seen == set()
    frozen = {n.split('.')[0] for n, p in net.named_parameters() if not p.requires_grad}
    if phase == 1:
        assert frozen == {'down1_2_i'}
    else:
        assert frozen == {'down1_2_i', 'prior_encoder', 'null_prior'}
        assert all(p.grad is None for p in net.prior_encoder.parameters())
        assert all(torch.equal(net.state_dict()[k], v) for k, v in teacher.items())


def test_groups_hold_host_injection_and_corrector_against_the_prior_generator():
    groups = {
        name: {n.split('.')[0] for n, _ in members}
        for name, members in make(2).parameter_groups().items()
    }
    assert groups['prior'] == {'condition_encoder', 'denoiser'}
    assert {'corrector', 'refinement', 'latent', 'patch_embed'} <= groups['restoration']
    assert groups['restoration'].isdisjoint({'prior_encoder', 'null_prior', *groups['prior']})
    assert make(1).parameter_groups()['prior'] == []


@pytest.mark.parametrize('changes', [{}, ALL])
def test_warmup_trains_only_the_condition_encoder_and_the_denoiser(changes):
    net, (lq, gt, d) = randomise(make(2, **changes)).train(), inputs()
    trace = net(lq, gt, degradation=d, mode='warmup', return_trace=True)
    assert not trace.output.requires_grad
    assert torch.equal(trace.stages[0].prior, trace.target_prior)
    LatentDiffusionLoss()([trace.stages[0].generated], trace.target_prior).backward()
    with_gradient = {n.split('.')[0] for n, p in net.named_parameters() if p.grad is not None}
    assert with_gradient == {'condition_encoder', 'denoiser'}


def test_the_loss_of_the_diffusion_does_not_reach_the_host():
    net, (lq, gt, d) = randomise(make(2)).train(), inputs()
    trace = net(lq, gt, degradation=d, return_trace=True)
    LatentDiffusionLoss()([trace.stages[0].generated], trace.target_prior).backward()
    with_gradient = {n.split('.')[0] for n, p in net.named_parameters() if p.grad is not None}
    assert with_gradient == {'condition_encoder', 'denoiser'}


def test_mixed_precision_keeps_the_gradients_of_a_network_that_runs_twice(monkeypatch):
    """Also on a torch that keeps copies of weights from a run without gradients."""
    net, (lq, gt, d) = randomise(make(2, **ALL)).train(), inputs()
    cleared, clear = [], torch.clear_autocast_cache
    monkeypatch.setattr(torch, 'clear_autocast_cache', lambda: cleared.append(clear()))
    with torch.autocast('cpu', torch.bfloat16):
        output = net(lq, gt, degradation=d)
        assert len(cleared) == 1
    output.float().square().mean().backward()
    trained = [p for _, p in net.parameter_groups()['restoration']]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained)


# ---- inference --------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [(17, 33), (8, 40), (3, 5), (1, 1)])
@pytest.mark.parametrize('changes', [{}, ALL])
def test_output_has_the_size_of_the_input(size, changes):
    net, (lq, _, d) = randomise(make(2, **changes)), inputs(1, *size)
    with torch.no_grad():
        trace = net(lq, degradation=d, return_trace=True)
    assert trace.output.shape == lq.shape
    assert trace.output.isfinite().all()
    assert all(t.shape == lq.shape for t in (trace.stages[0].x_hat, trace.stages[0].x_tilde))


@pytest.mark.parametrize('changes', [{}, ALL])
def test_result_is_repeatable_and_does_not_depend_on_the_rest_of_the_batch(changes):
    net, (lq, _, d) = randomise(make(2, **changes)), inputs(3, 16, 24)
    net, lq, d = net.double(), lq.double(), d.double()
    with torch.no_grad():
        together = net(lq, degradation=d)
        single = [net(a[None], degradation=b[None]) for a, b in zip(lq, d, strict=True)]
        assert torch.equal(net(lq, degradation=d), together)
    torch.testing.assert_close(torch.cat(single), together, rtol=1e-9, atol=1e-9)


def test_cost_is_counted_and_a_second_run_shows_in_it():
    with torch.device('meta'):
        once, twice = make('inference'), make('inference', **ALL)
    host = module_cost(VLUNet(**TINY_HOST).to('meta'), 32)
    costs = [module_cost(net, 32) for net in (once, twice)]
    assert host.params < costs[0].params < costs[1].params
    assert 0.9 * host.macs < costs[1].macs - costs[0].macs < 1.2 * host.macs


# ---- arguments --------------------------------------------------------------------------------

OTHER_VALUES = {
    'phase': 1,
    'de_dim': 4,
    'inp_channels': (1, {'out_channels': 1}),
    'out_channels': (1, {'inp_channels': 1}),
    'dim': 12,
    'num_blocks': [2, 1, 1, 1],
    'num_refinement_blocks': 2,
    'heads': [2, 1, 1, 1],
    'ffn_expansion_factor': 2.0,
    'bias': True,
    'LayerNorm_type': 'BiasFree',
    'embed_dim': 5,
    'injection_levels': ['latent'],
    'corrector': False,
    'corrector_dim': 12,
    'corrector_num_blocks': [1, 1, 2],
    'corrector_heads': [0, 2, 2],
    'use_checkpoint': True,
    **{key: PRIOR[key] for key in PriorOptions.model_fields if key != 'phase'},
}


def fingerprint(**changes) -> tuple:
    """Keys and shapes, evaluation output, training output, runs of a gradient step."""
    return _fingerprint(json.dumps(changes))


@functools.cache
def _fingerprint(changes: str) -> tuple:
    net = make(**json.loads(changes))
    torch.manual_seed(1)
    randomise(net)
    channels, length = net.output.out_channels, net.embed_dim
    generator = torch.Generator().manual_seed(2)
    lq, gt = torch.rand(2, 2, channels, 16, 16, generator=generator)
    d = torch.randn(2, length, generator=generator)
    torch.manual_seed(3)
    with torch.no_grad():
        evaluated = net.eval()(lq, degradation=d)
    calls = []
    handle = net.latent.gradient_descent.register_forward_pre_hook(lambda *_: calls.append(1))
    trained = net.train()(lq, gt, degradation=d)
    trained.sum().backward()
    handle.remove()
    shapes = tuple((k, tuple(v.shape)) for k, v in net.state_dict().items())
    return shapes, evaluated, trained.detach(), len(calls)


def test_every_constructor_argument_is_covered():
    assert set(inspect.signature(VLUNetPrior).parameters) == set(OTHER_VALUES)
    assert set(inspect.signature(VLUNet).parameters) < set(OTHER_VALUES)


@pytest.mark.parametrize('name', OTHER_VALUES)
def test_every_constructor_argument_changes_the_state_dict_or_the_result(name):
    value, base = OTHER_VALUES[name], {}
    if isinstance(value, tuple):
        value, base = value
    if name.endswith('_channels'):  # only both together
        other = fingerprint(**{name: value, **base})
        with pytest.raises(ValueError, match='must equal'):
            make(**{name: value})
        base = {}
    else:
        other = fingerprint(**{**base, name: value})
    before = fingerprint(**base)
    assert not all(map(same, before, other))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'phase': 'joint'}, 'phase'),
        ({'injection_levels': ['refinment']}, "Did you mean 'refinement'"),
        ({'injection_levels': [], 'corrector': False}, 'use VLUNet'),
        ({'corrector_dim': 9}, 'corrector_dim must be a multiple of 2'),
        ({'null_prior_prob': 1.0}, 'null_prior_prob'),
        ({'dim': 8}, 'dim must be .* 10'),
        ({'prior_dim': 1}, 'prior_dim'),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)
