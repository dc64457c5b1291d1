"""The two phases of UnfoldLDM: what is trained, loaded and reported, and that they learn."""

import copy
from unittest.mock import patch

import pytest
import torch
from helpers import model_options, rule_problems, tiny_unfoldldm
from model_runs import (
    Board,
    Pictures,
    batch,
    changed,
    file_of,
    resumed,
    same_networks,
    state_of,
    steps,
    validate,
)
from tiny_network import unfoldldm_kwargs

from unfoldldm_basicsr.archs.unfoldldm_arch import UnfoldLDM
from unfoldldm_basicsr.common.errors import RunFailure
from unfoldldm_basicsr.models import UnfoldLDMPhase1Model, UnfoldLDMPhase2Model
from unfoldldm_basicsr.models.unfoldldm_phase1_model import step_figures
from unfoldldm_basicsr.models.unfoldldm_phase2_model import fit_to

ISDA = {'type': 'ISDALoss', 'loss_weight': 0.1}
PHASE1 = {'isda_opt': ISDA, 'use_grad_clip': True, 'grad_clip_norm': 0.01}
PHASE2 = {
    'isda_opt': ISDA, 'diffusion_opt': {'type': 'LatentDiffusionLoss'}, 'use_grad_clip': True,
    'prior_warmup_iter': 2,
}  # fmt: skip
NEW = {'condition_encoder', 'denoiser'}
PHASE1_FILE = 'path.pretrain_network_phase1'
INFERENCE = {'phase': 'inference', 'prior_source': 'oracle'}  # without PI
CROP = {'iters': [1], 'gt_sizes': [16], 'mini_batch_sizes': [2]}


def build1(folder, network: dict | None = None, **train) -> UnfoldLDMPhase1Model:
    torch.manual_seed(0)
    options = model_options(folder, network or tiny_unfoldldm(1), **{**PHASE1, **train})
    return UnfoldLDMPhase1Model(options)


@pytest.fixture(scope='module')
def phase1(tmp_path_factory) -> UnfoldLDMPhase1Model:
    model = build1(tmp_path_factory.mktemp('phase1'))
    model.start = state_of(model.net_g)
    steps(model, 1, 2, 3)
    model.save(0, 3)
    return model


def phase2_options(folder, phase1_file, train: dict | None = None, **network) -> dict:
    options = model_options(folder, tiny_unfoldldm(2, **network), **{**PHASE2, **(train or {})})
    options['path']['pretrain_network_phase1'] = str(phase1_file)
    return options


@pytest.fixture(scope='module')
def phase2(tmp_path_factory, phase1) -> UnfoldLDMPhase2Model:
    """Phase II after II-a and two steps of II-b, saved at each; tests only read it.

    ``states``: weights and averages at the start and after each step; ``logs``: what was logged.
    """
    folder, file = tmp_path_factory.mktemp('phase2'), file_of(phase1, 'g_3')
    options = phase2_options(folder, file, use_checkpoint=True)  # which Phase I did without
    model = UnfoldLDMPhase2Model(copy.deepcopy(options))
    model.options, model.logs = options, []
    for group in model.optimizer_g.param_groups:
        group['weight_decay'] = 0.1  # must not reach the teacher either
    model.states = [[state_of(net) for net in (model.net_g, model.net_g_ema)]]
    for iteration in (1, 2, 3, 4):
        steps(model, iteration)
        model.save(0, iteration)
        model.logs.append(dict(model.log_dict))
        model.states.append([state_of(net) for net in (model.net_g, model.net_g_ema)])
    return model


def parts_that_differ(first: dict, second: dict) -> set[str]:
    return {key.split('.')[0] for key in first if not torch.equal(first[key], second[key])}


def test_phase1_trains_everything_it_builds(phase1):
    parts = {name for name, _ in phase1.net_g.named_children()} | {'null_prior', 'stage_code'}
    assert changed(phase1.net_g, phase1.start) == parts
    assert set(phase1.log_dict) >= {'l_pix', 'l_isda', 'step_size', 'isda_ratio'}
    assert phase1.log_dict['l_isda'] > 0
    assert 'grad_norm_prior' not in phase1.log_dict  # a group of Phase II


def test_phase1_validation_is_named_an_oracle_everywhere(phase1, log):
    board = Board()
    assert list(validate(phase1, tb_logger=board)) == ['oracle_psnr']
    assert list(board) == ['metrics/held_out/oracle_psnr']
    assert 'ORACLE' in log.text
    assert '# psnr' not in log.text


def test_phase1_validation_uses_the_truth_and_null_does_not(phase1, monkeypatch):
    for source in ('oracle', 'null'):
        monkeypatch.setattr(phase1, 'prior_source', source)
        lq = batch()['lq']
        outputs = [phase1.restore({'lq': lq, 'gt': gt}).output for gt in (lq * 0, batch()['gt'])]
        assert torch.equal(*outputs) == (source == 'null')


def test_phase1_without_diffusion_reports_plain_results(tmp_path):
    model = build1(tmp_path, tiny_unfoldldm(1, use_ldm=False))
    steps(model, 1)
    assert list(validate(model)) == ['psnr']


def test_stage_losses_are_weighted_means_of_the_earlier_stages(tmp_path):
    network = tiny_unfoldldm(1, num_stages=3, null_prior_prob=0.0)
    model, data = build1(tmp_path, network, stage_loss_weight=0.5), batch()
    losses, _ = model.compute_losses(data, 1)
    earlier = model.net_g(data['lq'], data['gt'], return_trace=True).stages[:2]
    wanted = 0.25 * sum((stage.x - data['gt']).abs().mean() for stage in earlier)
    assert losses['l_stage'].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_phase2_starts_from_the_average_of_phase1_in_both_networks(phase2, phase1):
    average = phase1.net_g_ema.state_dict()
    for state in phase2.states[0]:
        assert all(torch.equal(state[key], value) for key, value in average.items())
        assert {key.split('.')[0] for key in state.keys() - average.keys()} == NEW


@pytest.mark.parametrize(('changes', 'words'), [
    ({'prior_width': 16}, r'pretrain_network_phase1: .*net_g_3.pth.*prior_width: 8'),
    ({'mgda_blocks': 2}, r'\d+ missing in the file .first .*mgda'),
    ({'dra': 'tilde_q'}, "dra: 'hat_q' in the file, 'tilde_q' here"),  # equal shapes
])  # fmt: skip
def test_phase2_refuses_a_phase1_of_another_network(tmp_path, phase1, changes, words):
    with pytest.raises(ValueError, match=words):
        UnfoldLDMPhase2Model(phase2_options(tmp_path, file_of(phase1, 'g_3'), **changes))


def test_warmup_trains_only_the_prior_and_joint_training_all_but_the_teacher(phase2):
    for start, warm, joint in zip(*(phase2.states[k] for k in (0, 2, 4)), strict=True):
        assert parts_that_differ(start, warm) == NEW
        assert parts_that_differ(start, joint) == NEW | {'mgda', 'ocformer', 'stage_code'}
    assert phase2.logs[1]['l_pix'] == 0 < phase2.logs[2]['l_pix']
    with patch.object(UnfoldLDM, 'proximal_step') as unused, torch.no_grad():
        phase2.net_g(*torch.rand(2, 1, 3, 20, 20), mode='warmup', return_trace=True)
    assert not unused.called, 'II-a needs the first prior alone'
    assert all(list(found) == list(phase2.logs[0]) for found in phase2.logs)  # the same losses
    assert all(p.grad is None for p in phase2.net_g.prior_encoder.parameters())
    assert phase2.step.clip_gradients.limits == {'restoration': 0.01, 'prior': 1.0}


@pytest.mark.parametrize('iteration', [1, 2, 3])
def test_resuming_lands_on_the_right_side_of_the_switch(phase2, iteration):
    second = resumed(phase2, copy.deepcopy(phase2.options), iteration)
    for it in range(iteration + 1, 5):
        steps(second, it)
        assert second.warming_up == (it <= 2)
    assert same_networks(phase2, second)
    second.update_learning_rate(1)  # as comparisons do when they measure steps in turn
    assert second.warming_up


def test_joint_training_from_scratch_needs_no_phase1(tmp_path):
    train = {**PHASE2, 'prior_warmup_iter': 0}
    model = UnfoldLDMPhase2Model(model_options(tmp_path, tiny_unfoldldm('joint'), **train))
    before = state_of(model.net_g)
    steps(model, 1, 2)
    assert 'prior_encoder' in changed(model.net_g, before)


def test_weights_that_fit_but_mean_another_network_are_warned_of(tmp_path, phase2, caplog):
    for base in ('x_hat', 'x'):
        options = model_options(tmp_path, tiny_unfoldldm(2) | {'base': base}, is_train=False)
        options['path']['pretrain_network_g'] = file_of(phase2, 'g_4')
        UnfoldLDMPhase2Model(options)
        assert ("base: 'x_hat' in the file, 'x' here" in caplog.text) is (base == 'x')
        assert ('another network' in caplog.text) is (base == 'x')


@pytest.mark.parametrize('source', ['generated', 'oracle', 'null', 'shuffled'])
def test_a_test_with_each_prior_source(tmp_path, phase2, source):
    options = model_options(tmp_path, tiny_unfoldldm(2), is_train=False)
    options['path']['pretrain_network_g'] = file_of(phase2, 'g_4')
    options['val']['prior_source'] = source
    model, pictures = UnfoldLDMPhase2Model(options), Pictures()
    found = validate(model, pictures, 'unit')
    assert list(found) == ['psnr' if source == 'generated' else f'{source}_psnr']
    if source != 'shuffled':
        return
    data = torch.utils.data.default_collate([pictures[0]])
    output = model.restore(data | model.validation_extras(pictures, 0, data)).output
    pair = torch.cat([data['lq'], fit_to(pictures[1]['lq'][None], 16, 20)])  # the next image
    with torch.no_grad():
        assert torch.equal(output, model.net_g.eval()(pair, prior_source='shuffled')[:1])
        assert not torch.equal(output, model.net_g(data['lq']))
    pictures.first_draw_of = lambda index: 0  # draws of one image
    with pytest.raises(ValueError, match='at least two validation images'):
        model.validation_extras(pictures, 0, data)


def test_fit_to_crops_and_reflects():
    image = torch.arange(12.0).view(1, 1, 3, 4)
    assert fit_to(image, 7, 2).shape == (1, 1, 7, 2)
    assert torch.equal(fit_to(image, 5, 4)[0, 0, :, 0], torch.tensor([0.0, 4, 8, 4, 0]))
    assert torch.equal(fit_to(image, 3, 6)[0, 0, 0], torch.tensor([0.0, 1, 2, 3, 2, 1]))


def test_step_figures_follow_their_definition(phase1):
    lq = batch()['lq']
    with torch.no_grad():
        trace = phase1.net_g(lq, batch()['gt'], return_trace=True)
    figures = step_figures(trace)
    before = [trace.start, trace.stages[0].x]
    moves = [(s.x_hat - x).abs().mean() for s, x in zip(trace.stages, before, strict=True)]
    gaps = [(s.x_hat - s.x_tilde).abs().mean() for s in trace.stages]
    assert torch.allclose(figures['step_size'], sum(moves) / 2)
    assert torch.allclose(figures['isda_ratio'], sum(gaps) / sum(moves))


def test_a_network_without_gradient_steps_has_steps_of_zero():
    net = UnfoldLDM(**unfoldldm_kwargs(1, mgda_mode='none', coarse_stages=1))
    figures = step_figures(net(batch()['lq'], batch()['gt'], return_trace=True))
    assert figures == {'step_size': 0, 'isda_ratio': 0}


def test_one_large_step_warns_and_a_row_of_them_stops(phase1):
    for size in (1.5, 1.5, 0.5, *[1.5] * 9):
        phase1.watch_step(size, 1)
    with pytest.raises(RunFailure, match='training stopped'):
        phase1.watch_step(1.5, 2)


@pytest.mark.parametrize('phase', [1, 2])
def test_priors_are_made_of_the_whole_patches_of_the_loader(phase, phase1, tmp_path):
    file = file_of(phase1, 'g_3')
    train = {'prior_context': True, 'progressive': CROP, 'prior_warmup_iter': 1}
    if phase == 1:
        model = build1(tmp_path, **{k: train[k] for k in ('prior_context', 'progressive')})
    else:
        model = UnfoldLDMPhase2Model(phase2_options(tmp_path, file, train))
    sizes = []
    encoders = [model.net_g.prior_encoder]
    encoders += [model.net_g.condition_encoder] if phase == 2 else []
    for encoder in encoders:
        encoder.register_forward_pre_hook(lambda _, seen: sizes.append(tuple(seen[0].shape[2:])))
    steps(model, 1, 2, side=32)
    assert model.batch['lq'].shape[2:] == (16, 16)
    assert set(sizes) == ({(32, 32)} if phase == 1 else {(32, 32), (16, 16)})  # PI' sees half of it


@pytest.mark.parametrize(('phase', 'section', 'changes', 'keys'), [
    (1, 'network_g', {'phase': 2}, ['network_g.phase']),
    (1, 'val', {'prior_source': 'generated'}, ['val.prior_source']),
    (1, 'val', {'tile': 64}, ['val.tile']), (2, 'val', {}, []),
    (2, 'network_g', {'use_ldm': False}, ['network_g.use_ldm']),
    (2, 'network_g', {'type': 'VLUNet'}, ['network_g.type']),
    (2, 'network_g', INFERENCE, ['val.prior_source', 'network_g.phase']),
    (2, 'val', {'prior_source': 'shuffled', 'tile': 64}, ['val.tile']),
    (2, 'train', {'prior_context': True, 'mixing_augs': {}}, ['train.prior_context']),
    (1, 'train', {'prior_context': True, 'progressive': CROP}, []),
    (1, 'network_g', {'mgda_mode': 'none'}, ['train.isda_opt']),
    (1, 'train', {'isda_opt': {'type': 'L1Loss'}}, ['train.isda_opt.type']),
    (2, 'train', {'diffusion_opt': {'type': 'L1Loss'}}, ['train.diffusion_opt.type']),
    (2, 'train', {'prior_warmup_iter': 100}, ['train.prior_warmup_iter']),
    (2, 'path', {'pretrain_network_phase1': None}, [PHASE1_FILE]),
    (2, 'network_g', {'phase': 'joint'}, [PHASE1_FILE, 'train.prior_warmup_iter']),
])  # fmt: skip
def test_options_of_both_phases_are_checked(tmp_path, phase, section, changes, keys):
    if phase == 1:
        options = model_options(tmp_path, tiny_unfoldldm(1), **PHASE1)
    else:
        (tmp_path / 'p1.pth').touch()
        options = phase2_options(tmp_path, tmp_path / 'p1.pth')
    options.setdefault(section, {}).update(changes)
    assert rule_problems((UnfoldLDMPhase1Model, UnfoldLDMPhase2Model)[phase - 1], options) == keys


def test_four_images_are_overfitted_in_both_phases(tmp_path):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 3, 4, 4, generator=generator)
    gt = torch.nn.functional.interpolate(coarse, size=(16, 16), mode='bicubic').clamp(0, 1)
    data = {'lq': gt + 0.1 * torch.randn(gt.shape, generator=generator), 'gt': gt}
    sizes = {'dim': 16, 'mgda_d_state': 1, 'null_prior_prob': 0.0}
    train = {'optim_g': {'type': 'AdamW', 'lr': 4e-3}, 'grad_clip_norm': 1.0, 'total_iter': 40}
    train['scheduler'] = {'type': 'TrueCosineAnnealingLR', 'T_max': 40}

    def psnr(image: torch.Tensor) -> float:
        return -10 * (image - gt).square().mean().log10().item()

    first = build1(tmp_path, tiny_unfoldldm(1, **sizes), **train)
    steps(first, *range(1, 41), data=data)
    first.save(0, 40)
    oracle = psnr(first.restore(data).output)
    train['prior_warmup_iter'] = 10
    second = UnfoldLDMPhase2Model(phase2_options(tmp_path, file_of(first, 'g_40'), train, **sizes))
    steps(second, *range(1, 31), data=data)
    generated = psnr(second.restore(data).output)
    assert oracle > psnr(data['lq']) + 9
    assert generated > oracle - 3
