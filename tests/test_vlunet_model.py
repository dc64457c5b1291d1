"""VLUNetModel: the same training with every embedding; what is frozen, averaged, saved, resumed."""

from __future__ import annotations

import pytest
import torch
from basicsr.utils import check_resume
from helpers import rule_problems
from vlunet_runs import EMBEDDINGS, NAMES, random_batch, step, vlunet_options

from unfoldldm_basicsr.models import VLUNetModel
from unfoldldm_basicsr.restoring.restorer import Restorer
from unfoldldm_basicsr.weights.checkpoint import CheckpointError, read_checkpoint
from unfoldldm_basicsr.weights.conditioning import build_conditioning

EACH = pytest.mark.parametrize('source', EMBEDDINGS)


@pytest.fixture
def make(tmp_path):
    """Builds models that share one folder of photos."""
    count = iter(range(100))

    def build(source: str, path: dict | None = None, val: dict | None = None, **settings):
        torch.manual_seed(0)
        options = vlunet_options(tmp_path / str(next(count)), source, **settings)
        options['path'] |= path or {}
        options['val'] |= val or {}
        return VLUNetModel(options)

    return build


def times_logged(log, text: str) -> int:
    return len({id(record) for record in log.records if text in record.getMessage()})


def bare_e(model):
    return model.conditioning.network.bare


def average_e(model):
    return model.conditioning.network.average


def state_of(net) -> dict:
    return {key: value.clone() for key, value in net.state_dict().items()}


def equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def weights(model, label: str) -> str:
    return f'{model.opt["path"]["models"]}/net_{label}.pth'


# ---- training ---------------------------------------------------------------------------------


@EACH
def test_every_trainable_parameter_gets_a_gradient_and_frozen_ones_keep_their_bits(make, source):
    model = make(source)
    before = state_of(bare_e(model)), state_of(model.net_g)
    for iteration in (1, 2):
        step(model, iteration)
    trained = [*model.net_g.named_parameters(), *bare_e(model).named_parameters()]
    silent = [n for n, p in trained if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert silent == []
    frozen = {n for n, p in model.net_g.named_parameters() if not p.requires_grad}
    assert frozen == {'down1_2_i.body.0.weight'}  # never used by the released network either
    assert model.conditioning.is_trained == (source == 'learned')
    assert equal(before[0], state_of(bare_e(model))) == (source != 'learned')
    assert not equal(before[1], state_of(model.net_g))


@EACH
def test_one_learning_rate_per_group_warms_up_and_decays(make, source):
    schedule = {'type': 'TrueCosineAnnealingLR', 'T_max': 20, 'eta_min': 1e-6}
    model = make(source, total_iter=20, warmup_iter=4, scheduler=schedule)
    rates = []
    for iteration in range(1, 21):
        step(model, iteration, random_batch(size=1)) if iteration < 2 else (
            model.update_learning_rate(iteration)
        )
        rates.append(model.get_current_learning_rate())
    assert {len(r) for r in rates} == {2 if source == 'learned' else 1}
    assert all(len(set(r)) == 1 for r in rates)
    first = [r[0] for r in rates]
    assert first[:4] == sorted(first[:4])
    assert first[4:] == sorted(first[4:], reverse=True)
    assert first[0] < max(first) / 2
    assert first[-1] < max(first) / 10


def test_the_learned_embedding_is_clipped_by_its_own_limit(make):
    limits = {'restoration': 1e6, 'embedding': 1e-9}
    model = make('learned', use_grad_clip=True, grad_clip_norm=limits, accum_iter=2)
    step(model, 1)
    assert model.log_dict['grad_norm_embedding'] > 1e-8
    norms = [p.grad.norm() for p in bare_e(model).parameters()]
    assert torch.stack(norms).norm() < 2e-9
    assert max(p.grad.norm() for p in model.net_g.parameters() if p.grad is not None) > 1e-6


def test_slices_add_up_to_the_step_of_the_whole_batch(make):
    whole, sliced = make('learned'), make('learned', accum_iter=2)
    for model in (whole, sliced):
        step(model, 1)
    for get in (lambda m: m.net_g, bare_e):
        pairs = zip(get(whole).parameters(), get(sliced).parameters(), strict=True)
        for p, q in pairs:
            if p.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-3)


def test_a_nan_skips_the_step_of_network_and_embedding(make):
    model, batch = make('learned'), random_batch()
    batch['gt'][0, 0, 0, 0] = float('nan')
    before = state_of(bare_e(model)), state_of(average_e(model)), state_of(model.net_g)
    step(model, 1, batch)
    after = state_of(bare_e(model)), state_of(average_e(model)), state_of(model.net_g)
    assert model.step.guard.total == 1
    assert all(map(equal, before, after))


def test_the_average_of_the_learned_embedding_follows_it_and_is_what_evaluation_uses(make):
    model = make('learned', ema_decay=0.9)
    start = state_of(bare_e(model))
    step(model, 1)
    for key, average in average_e(model).state_dict().items():
        expected = 0.9 * start[key] + 0.1 * bare_e(model).state_dict()[key]
        torch.testing.assert_close(average, expected, atol=1e-6, rtol=1e-5)
    vectors = model.network_arguments(model.batch)['degradation']
    with torch.no_grad():
        averaged = model.network_arguments(model.batch)['degradation']
        torch.testing.assert_close(averaged, average_e(model)(model.batch['lq']))
    assert vectors.requires_grad
    assert not averaged.requires_grad
    assert not torch.equal(vectors.detach(), averaged)


def test_autocast_leaves_the_vectors_in_full_precision(make):
    model = make('learned', amp='bf16')
    step(model, 1)
    with model.autocast():
        assert model.network_arguments(model.batch)['degradation'].dtype == torch.float32


# ---- files ------------------------------------------------------------------------------------


@EACH
def test_the_weight_file_alone_restores_what_the_model_restores(make, source):
    model = make(source)
    for iteration in (1, 2):
        step(model, iteration)
    model.save(0, 2)
    batch = random_batch(9, size=1)
    output = model.restore(batch).output
    checkpoint = read_checkpoint(weights(model, 'g_2'))
    assert checkpoint.degradation['classes'] == NAMES
    name = NAMES[0] if source == 'label' else 'auto'
    conditioning = build_conditioning(checkpoint, degradation=name)
    with torch.no_grad():
        vector = model.network_arguments(batch)['degradation']
    torch.testing.assert_close(conditioning(batch['lq']), vector, atol=0, rtol=0)
    restorer = Restorer(weights(model, 'g_2'), device='cpu', degradation=name)
    restored = restorer.restore_tensor(batch['lq'])
    torch.testing.assert_close(restored, output, atol=1e-6, rtol=0)


@EACH
def test_a_resumed_run_takes_the_same_steps_bit_for_bit(make, source):
    settings = {'warmup_iter': 2, 'use_grad_clip': True, 'accum_iter': 2, 'total_iter': 20}
    settings['scheduler'] = {'type': 'TrueCosineAnnealingLR', 'T_max': 20, 'eta_min': 1e-6}
    straight = make(source, **settings)
    for iteration in (1, 2):
        step(straight, iteration)
    straight.save(0, 2)
    path = {**straight.opt['path'], 'resume_state': 'yes'}
    options = {'path': path, 'network_g': {}, 'network_e': {}}
    check_resume(options, 2)  # what BasicSR does to the paths
    resumed = make(source, path=options['path'], **settings)
    state = torch.load(f'{path["training_states"]}/2.state', weights_only=True)
    resumed.resume_training(state)
    for model in (straight, resumed):
        step(model, 3)
    assert straight.log_dict == resumed.log_dict
    for get in (
        lambda m: m.net_g,
        lambda m: m.net_g_ema,
        bare_e,
        *([average_e] if source == 'learned' else []),
    ):
        assert equal(state_of(get(straight)), state_of(get(resumed)))


@EACH
def test_a_new_run_from_the_network_file_takes_its_embedding_along(make, source):
    first = make(source)
    step(first, 1)
    first.save(0, 1)
    torch.manual_seed(5)
    second = make(source, path={'pretrain_network_g': weights(first, 'g_1')})
    assert equal(state_of(bare_e(first)), state_of(bare_e(second)))
    if source == 'learned':
        assert equal(state_of(average_e(first)), state_of(average_e(second)))
    tested = make(source, path={'pretrain_network_g': weights(first, 'g_1')}, is_train=False)
    kept = average_e(first) if source == 'learned' else bare_e(first)
    assert equal(state_of(kept), state_of(bare_e(tested)))
    assert not any(p.requires_grad for p in bare_e(tested).parameters())


@EACH
def test_weights_of_another_order_of_degradations_are_refused(make, source):
    first = make(source)
    first.save(0, 1)
    path = {'pretrain_network_g': weights(first, 'g_1')}
    for is_train in (True, False):
        with pytest.raises(CheckpointError, match=r'noise, blur, dark.*dark, blur, noise'):
            make(source, path=path, names=NAMES[::-1], is_train=is_train)


def test_only_a_label_embedding_needs_the_very_same_list_of_degradations():
    from unfoldldm_basicsr.models.conditioning import class_order_fault as fault

    assert fault(['a', 'b'], ['a', 'b'], True) is None
    assert fault([], ['a'], True) is None
    assert 'same order' in fault(['a', 'b'], ['a', 'b', 'c'], True)
    assert fault(['a', 'b'], ['a', 'x', 'b'], False) is None
    assert fault(['a', 'b', 'c'], ['b', 'c'], False) is None
    assert 'same order' in fault(['a', 'b', 'c'], ['c', 'b'], False)


def test_weights_of_another_embedding_are_refused(make):
    first = make('label')
    first.save(0, 1)
    path = {'pretrain_network_g': weights(first, 'g_1')}
    with pytest.raises(CheckpointError, match='LabelDegradationEmbedding, not Learned'):
        make('learned', path=path)
    with pytest.raises(CheckpointError, match='does not fit network_e'):
        make('learned', path={'pretrain_network_e': weights(first, 'e_1')})


def test_other_vectors_than_the_network_was_trained_with_are_reported(make, log):
    first = make('label')
    first.save(0, 1)
    path = {
        'pretrain_network_g': weights(first, 'g_1'),
        'pretrain_network_e': weights(first, 'e_1'),
    }
    make('label', path=path)
    assert 'other degradation vectors' not in log.text
    with torch.no_grad():
        bare_e(first).table.weight.add_(1)
    first.save(0, 2)
    make('label', path={**path, 'pretrain_network_e': weights(first, 'e_2')})
    assert times_logged(log, 'other degradation vectors') == 1


def test_random_adapters_of_clip_are_reported_once(make, log):
    first = make('clip')
    assert times_logged(log, 'keep their random initial values') == 1
    assert 'DegradationCLIPModel' in log.text
    first.save(0, 1)
    log.clear()
    make('clip', path={'pretrain_network_e': weights(first, 'e_1')})
    make('label')
    assert 'random initial values' not in log.text


def test_a_frozen_embedding_takes_averaged_weights_where_the_file_has_them(make, tmp_path):
    clip = bare_e(make('clip'))
    state = {key: value.clone() for key, value in clip.state_dict().items()}
    averaged = {key: value + 1 for key, value in state.items()}
    torch.save({'params': state, 'params_ema': averaged}, tmp_path / 'clip.pth')
    path = {'pretrain_network_e': str(tmp_path / 'clip.pth')}
    assert equal(bare_e(make('clip', path=path)).state_dict(), averaged)
    raw = make('clip', path={**path, 'param_key_e': 'params'})
    assert equal(bare_e(raw).state_dict(), state)


# ---- errors -----------------------------------------------------------------------------------


def test_a_test_without_an_embedding_is_refused(make, tmp_path):
    first = make('label')
    first.save(0, 1)
    content = torch.load(weights(first, 'g_1'), weights_only=True)
    del content['degradation']
    torch.save(content, tmp_path / 'bare.pth')
    options = vlunet_options(tmp_path / 'bare', 'label', is_train=False)
    options['path']['pretrain_network_g'] = str(tmp_path / 'bare.pth')
    assert rule_problems(VLUNetModel, options) == ['path.pretrain_network_g']


def test_a_batch_without_degradation_names_the_remedy(make):
    batch = random_batch()
    del batch['degradation']
    with pytest.raises(ValueError, match='MixedDegradationDataset'):
        step(make('label'), 1, batch)
    step(make('learned'), 1, batch)  # sees it in the image
