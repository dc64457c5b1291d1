"""The two training phases of UnfoldLDM: what is trained, what is loaded, what is reported."""

from __future__ import annotations

import pytest
import torch
from helpers import model_options, rule_problems, tiny_unfoldldm
from torch.utils.data import DataLoader, Dataset

from unfoldldm_basicsr.models import UnfoldLDMPhase1Model, UnfoldLDMPhase2Model
from unfoldldm_basicsr.models.unfolding_losses import StepWatch, step_figures
from unfoldldm_basicsr.models.unfoldldm_phase2_model import fit_to

ISDA = {'type': 'ISDALoss', 'loss_weight': 0.1}
PHASE1 = {'isda_opt': ISDA, 'use_grad_clip': True, 'grad_clip_norm': 0.01}
PHASE2 = {
    'isda_opt': ISDA,
    'diffusion_opt': {'type': 'LatentDiffusionLoss'},
    'use_grad_clip': True,
    'prior_warmup_iter': 2,
}
RESTORATION_KEYS = {'l_pix', 'l_isda'}


def batch(size: int = 2, side: int = 16) -> dict:
    generator = torch.Generator().manual_seed(1)
    lq, gt = torch.rand(2, size, 3, side, side, generator=generator)
    return {'lq': lq, 'gt': gt, 'lq_path': [f'img_{i}.png' for i in range(size)]}


class Pictures(Dataset):
    opt = {'name': 'held_out'}

    def __len__(self):
        return 2

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        lq, gt = torch.rand(2, 3, 16 + 4 * index, 20, generator=generator)
        return {'lq': lq, 'gt': gt, 'lq_path': f'p{index}.png'}


def step(model, iteration: int) -> None:
    model.update_learning_rate(iteration)
    model.feed_data(batch())
    model.optimize_parameters(iteration)


def copy(net) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


def changed(net, before: dict) -> set[str]:
    """Top-level modules of ``net`` that no longer equal ``before``."""
    now = net.state_dict()
    return {key.split('.')[0] for key in before if not torch.equal(now[key], before[key])}


@pytest.fixture
def phase1(tmp_path) -> UnfoldLDMPhase1Model:
    return UnfoldLDMPhase1Model(model_options(tmp_path / 'phase1', tiny_unfoldldm(1), **PHASE1))


@pytest.fixture(scope='module')
def trained_phase1(tmp_path_factory) -> UnfoldLDMPhase1Model:
    """Phase I after three steps, saved; tests only read it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('phase1')
    model = UnfoldLDMPhase1Model(model_options(folder, tiny_unfoldldm(1), **PHASE1))
    for iteration in (1, 2, 3):
        step(model, iteration)
    model.save(0, 3)
    return model


@pytest.fixture
def phase1_file(trained_phase1) -> str:
    return f'{trained_phase1.opt["path"]["models"]}/net_g_3.pth'


def phase2_options(folder, phase1_file, **changes) -> dict:
    folder.mkdir(exist_ok=True)
    train = {**PHASE2, **changes.pop('train', {})}
    options = model_options(folder, tiny_unfoldldm(2, **changes), **train)
    options['path']['pretrain_network_phase1'] = phase1_file
    return options


@pytest.fixture
def phase2(tmp_path, phase1_file) -> UnfoldLDMPhase2Model:
    return UnfoldLDMPhase2Model(phase2_options(tmp_path / 'phase2', phase1_file))


# ---- Phase I --------------------------------------------------------------------------------


def test_phase1_trains_everything_it_builds(phase1):
    before = copy(phase1.net_g)
    for iteration in (1, 2, 3):
        step(phase1, iteration)
    parts = {name for name, _ in phase1.net_g.named_children()} | {'null_prior', 'stage_code'}
    assert changed(phase1.net_g, before) == parts
    assert set(phase1.log_dict) >= RESTORATION_KEYS | {'step_size', 'isda_ratio'}
    assert phase1.log_dict['l_isda'] > 0


def test_phase1_validation_is_named_an_oracle_everywhere(phase1, log):
    class Board(dict):
        def add_scalar(self, tag, value, iteration):
            self[tag] = value

    board = Board()
    phase1.validation(DataLoader(Pictures()), 1, board, save_img=False)
    assert list(phase1.metric_results) == ['oracle_psnr']
    assert list(board) == ['metrics/held_out/oracle_psnr']
    assert 'ORACLE' in log.text
    assert '# psnr' not in log.text


def test_phase1_validation_uses_the_truth_and_null_does_not(phase1, tmp_path):
    for iteration in (1, 2, 3):
        step(phase1, iteration)
    outputs = {}
    for source in ('oracle', 'null'):
        phase1.prior_source = source
        for name, gt in (('one', torch.zeros(1, 3, 16, 16)), ('other', batch()['gt'][:1])):
            item = {'lq': batch()['lq'][:1], 'gt': gt}
            outputs[source, name] = phase1.restore(item).output
    assert not torch.equal(outputs['oracle', 'one'], outputs['oracle', 'other'])
    assert torch.equal(outputs['null', 'one'], outputs['null', 'other'])


def test_phase1_without_diffusion_reports_plain_results(tmp_path):
    options = model_options(tmp_path, tiny_unfoldldm(1, use_ldm=False), **PHASE1)
    model = UnfoldLDMPhase1Model(options)
    step(model, 1)
    model.validation(DataLoader(Pictures()), 1, None, save_img=False)
    assert list(model.metric_results) == ['psnr']


def test_stage_losses_are_weighted_means_of_the_earlier_stages(tmp_path):
    network = tiny_unfoldldm(1, num_stages=3, null_prior_prob=0.0)
    model = UnfoldLDMPhase1Model(model_options(tmp_path, network, **PHASE1, stage_loss_weight=0.5))
    data = batch()
    losses, _ = model.compute_losses(data, 1)
    earlier = model.net_g(data['lq'], data['gt'], return_trace=True).stages[:2]
    wanted = 0.25 * sum((stage.x - data['gt']).abs().mean() for stage in earlier)
    assert losses['l_stage'].item() == pytest.approx(wanted.item(), rel=1e-5)


# ---- start of Phase II ----------------------------------------------------------------------


def test_phase2_starts_from_the_average_of_phase1_in_both_networks(phase2, trained_phase1):
    average = trained_phase1.net_g_ema.state_dict()
    new = set()
    for net in (phase2.net_g, phase2.net_g_ema):
        for key, value in net.state_dict().items():
            if key in average:
                assert torch.equal(value, average[key]), key
            else:
                new.add(key.split('.')[0])
    assert new == {'condition_encoder', 'denoiser'}
    assert set(average) <= set(phase2.net_g.state_dict())


@pytest.mark.parametrize(('first', 'second'), [(False, True), (True, False)])
def test_either_phase_alone_may_save_memory(tmp_path, first, second):
    options = model_options(tmp_path / 'p1', tiny_unfoldldm(1, use_checkpoint=first), **PHASE1)
    phase1 = UnfoldLDMPhase1Model(options)
    phase1.save(0, 1)
    file = f'{options["path"]["models"]}/net_g_1.pth'
    changes = {'use_checkpoint': second, 'train': {'prior_warmup_iter': 0}}
    phase2 = UnfoldLDMPhase2Model(phase2_options(tmp_path / 'p2', file, **changes))
    before = copy(phase2.net_g)
    assert all(torch.equal(before[key], v) for key, v in phase1.net_g.state_dict().items())
    step(phase2, 1)
    assert changed(phase2.net_g, before) >= {'mgda', 'ocformer'}


def test_phase2_refuses_a_phase1_of_another_width(tmp_path, phase1_file):
    with pytest.raises(ValueError, match=r'pretrain_network_phase1: .*net_g_3.pth.*prior_width: 8'):
        UnfoldLDMPhase2Model(phase2_options(tmp_path / 'p2', phase1_file, prior_width=16))


def test_phase2_refuses_a_phase1_with_other_parts(tmp_path, phase1_file):
    with pytest.raises(ValueError, match=r'mgda: \d+ missing in the file'):
        UnfoldLDMPhase2Model(phase2_options(tmp_path / 'p2', phase1_file, mgda_blocks=2))
    with pytest.raises(ValueError, match=r'ocformer: \d+ unknown to the network'):
        UnfoldLDMPhase2Model(phase2_options(tmp_path / 'p2', phase1_file, num_blocks=[0, 1, 1]))


def test_phase2_refuses_a_phase1_with_equal_shapes_but_other_arguments(tmp_path, phase1_file):
    with pytest.raises(ValueError, match="dra: 'hat_q' in the file, 'tilde_q' here"):
        UnfoldLDMPhase2Model(phase2_options(tmp_path / 'p2', phase1_file, dra='tilde_q'))


def test_phase2_refuses_weights_of_phase2_as_phase1(tmp_path, phase2):
    phase2.save(0, 1)
    file = f'{phase2.opt["path"]["models"]}/net_g_1.pth'
    with pytest.raises(ValueError, match=r'written by Phase II.*path\.pretrain_network_g'):
        UnfoldLDMPhase2Model(phase2_options(tmp_path / 'again', file))


# ---- II-a and II-b --------------------------------------------------------------------------


def test_warmup_trains_only_the_prior_and_joint_training_all_but_the_teacher(phase2):
    before, average = copy(phase2.net_g), copy(phase2.net_g_ema)
    names = []
    for iteration in (1, 2):
        step(phase2, iteration)
        names.append(list(phase2.log_dict))
    assert changed(phase2.net_g, before) == {'condition_encoder', 'denoiser'}
    assert changed(phase2.net_g_ema, average) == {'condition_encoder', 'denoiser'}
    assert phase2.log_dict['l_pix'] == 0
    for iteration in (3, 4):
        step(phase2, iteration)
        names.append(list(phase2.log_dict))
    restoring = {'mgda', 'ocformer', 'stage_code'}
    assert changed(phase2.net_g, before) == {'condition_encoder', 'denoiser', *restoring}
    assert phase2.log_dict['l_pix'] > 0
    assert all(n == names[0] for n in names)  # the same losses in every iteration


def test_teacher_is_bit_identical_after_ten_steps_also_in_the_average(phase2, trained_phase1):
    for group in phase2.optimizer_g.param_groups:
        group['weight_decay'] = 0.1
    for iteration in range(1, 11):
        step(phase2, iteration)
    average = trained_phase1.net_g_ema.state_dict()
    for net in (phase2.net_g, phase2.net_g_ema):
        for key, value in net.state_dict().items():
            if key.startswith(('prior_encoder', 'null_prior')):
                assert torch.equal(value, average[key]), key
    assert all(p.grad is None for p in phase2.net_g.prior_encoder.parameters())


def test_each_part_is_clipped_by_its_own_default_limit(phase2):
    assert phase2.step.clip_gradients.limits == {'restoration': 0.01, 'prior': 1.0}


@pytest.mark.parametrize('iteration', [1, 2, 3])
def test_resuming_lands_on_the_right_side_of_the_switch(tmp_path, phase2, phase1_file, iteration):
    for it in range(1, iteration + 1):
        step(phase2, it)
    phase2.save(0, iteration)
    options = phase2_options(tmp_path / 'phase2', phase1_file)
    state = f'{options["path"]["training_states"]}/{iteration}.state'
    options['path'] |= {
        'resume_state': state,
        'pretrain_network_g': f'{options["path"]["models"]}/net_g_{iteration}.pth',
    }
    second = UnfoldLDMPhase2Model(options)
    second.resume_training(torch.load(state, weights_only=True))
    for it in range(iteration + 1, 6):
        step(phase2, it)
        step(second, it)
        assert second.warming_up == (it <= 2)
    for own, other in ((phase2.net_g, second.net_g), (phase2.net_g_ema, second.net_g_ema)):
        assert changed(own, copy(other)) == set()


def test_joint_training_from_scratch_needs_no_phase1(tmp_path):
    train = {**PHASE2, 'prior_warmup_iter': 0}
    model = UnfoldLDMPhase2Model(model_options(tmp_path, tiny_unfoldldm('joint'), **train))
    before = copy(model.net_g)
    for iteration in (1, 2, 3):
        step(model, iteration)
    assert 'prior_encoder' in changed(model.net_g, before)


@pytest.mark.parametrize('prior_input', ['gt', 'gt_lq'])
def test_both_phases_run_with_every_input_of_the_prior_encoder(tmp_path, prior_input):
    network = tiny_unfoldldm(1, prior_input=prior_input)
    first = UnfoldLDMPhase1Model(model_options(tmp_path, network, **PHASE1))
    step(first, 1)
    first.save(0, 1)
    options = phase2_options(
        tmp_path / 'p2', str(tmp_path / 'models' / 'net_g_1.pth'), prior_input=prior_input
    )
    second = UnfoldLDMPhase2Model(options)
    for iteration in (2, 3):
        step(second, iteration)
    assert second.log_dict['l_diff'] > 0


@pytest.mark.parametrize('source', ['generated', 'oracle', 'null', 'shuffled'])
def test_validation_with_each_prior_source(tmp_path, phase2, phase1_file, source):
    for iteration in (1, 2, 3, 4):
        step(phase2, iteration)
    phase2.save(0, 4)
    options = phase2_options(tmp_path / 'phase2', phase1_file)
    options['is_train'] = False
    options['path']['pretrain_network_g'] = f'{options["path"]["models"]}/net_g_4.pth'
    options['val']['prior_source'] = source
    model = UnfoldLDMPhase2Model(options)
    model.validation(DataLoader(Pictures()), 'unit', None, save_img=False)
    assert list(model.metric_results) == ['psnr' if source == 'generated' else f'{source}_psnr']


def test_the_shuffled_prior_comes_from_the_next_image(phase2):
    for iteration in (1, 2, 3, 4):
        step(phase2, iteration)
    pictures = Pictures()
    data = {k: v[None] if torch.is_tensor(v) else [v] for k, v in pictures[0].items()}
    phase2.prior_source = 'shuffled'
    output = phase2.restore(data | phase2.validation_extras(pictures, 0, data)).output
    other = fit_to(pictures[1]['lq'][None], 16, 20)
    with torch.no_grad():
        own = phase2.net_g_ema(data['lq'])
        prior = phase2.net_g_ema(torch.cat([data['lq'], other]), prior_source='shuffled')[:1]
    assert torch.equal(output, prior)
    assert output.shape == data['lq'].shape
    assert not torch.equal(output, own)


def test_fit_to_crops_and_reflects():
    image = torch.arange(12.0).view(1, 1, 3, 4)
    assert fit_to(image, 7, 2).shape == (1, 1, 7, 2)
    assert torch.equal(fit_to(image, 5, 4)[0, 0, :, 0], torch.tensor([0.0, 4, 8, 4, 0]))


# ---- watching the gradient step -------------------------------------------------------------


def test_step_figures_follow_their_definition(phase1):
    for iteration in (1, 2, 3):
        step(phase1, iteration)
    lq = batch()['lq']
    with torch.no_grad():
        trace = phase1.net_g(lq, batch()['gt'], return_trace=True)
    figures = step_figures(trace, lq)
    before = [lq, trace.stages[0].x]
    steps = [(s.x_hat - x).abs().mean() for s, x in zip(trace.stages, before, strict=True)]
    gaps = [(s.x_hat - s.x_tilde).abs().mean() for s in trace.stages]
    assert torch.allclose(figures['step_size'], sum(steps) / 2)
    assert torch.allclose(figures['isda_ratio'], sum(gaps) / sum(steps))


def test_one_large_step_warns_and_a_row_of_them_stops():
    watch = StepWatch(patience=3)
    for size in (1.5, 1.5, 0.5, 1.5, 1.5):
        watch.observe(size, 1)
    with pytest.raises(RuntimeError, match='training stopped'):
        watch.observe(1.5, 2)


# ---- options --------------------------------------------------------------------------------


def checked(cls, options: dict, section: str, **changes) -> list[str]:
    options.setdefault(section, {}).update(changes)
    return rule_problems(cls, options)


@pytest.mark.parametrize(
    ('section', 'changes', 'keys'),
    [
        ('val', {}, []),
        ('network_g', {'phase': 2}, ['network_g.phase']),
        ('val', {'prior_source': 'generated'}, ['val.prior_source']),
        ('val', {'tile': 64}, ['val.tile']),
        ('train', {'stage_loss_weight': -1}, ['train.stage_loss_weight']),
        ('train', {'isda_opt': {'type': 'L1Loss'}}, ['train.isda_opt.type']),
        ('train', {'grad_clip_norm': {'restoraton': 0.01}}, ['train.grad_clip_norm']),
        ('val', {'tile_overlap': 16}, ['val.tile_overlap']),
        ('network_g', {'use_ldm': False, 'prior_source': 'oracle'}, ['network_g.prior_source']),
        ('train', {'pixel_opt': None}, ['train.pixel_opt']),
        ('train', {'perceptual_opt': {'type': 'PerceptualLoss'}}, ['train.perceptual_opt']),
    ],
)
def test_phase1_options_are_checked(tmp_path, section, changes, keys):
    options = model_options(tmp_path, tiny_unfoldldm(1), **PHASE1)
    assert checked(UnfoldLDMPhase1Model, options, section, **changes) == keys


@pytest.mark.parametrize(
    ('section', 'changes', 'keys'),
    [
        ('val', {}, []),
        ('network_g', {'phase': 1}, ['network_g.phase']),
        ('network_g', {'use_ldm': False}, ['network_g.use_ldm']),
        ('val', {'prior_source': 'suffled'}, ['val.prior_source']),
        ('val', {'prior_source': 'shuffled', 'tile': 64}, ['val.tile']),
        ('train', {'prior_warmup_iter': 100}, ['train.prior_warmup_iter']),
        ('train', {'diffusion_opt': None}, ['train.diffusion_opt']),
        ('train', {'diffusion_opt': {'type': 'L1Loss'}}, ['train.diffusion_opt.type']),
        ('network_g', {'type': 'VLUNet'}, ['network_g.type']),
        ('network_g', {'prior_source': 'shuffled'}, []),
        ('path', {'pretrain_network_phase1': None}, ['path.pretrain_network_phase1']),
        ('path', {'pretrain_network_phase1': '/no/x.pth'}, ['path.pretrain_network_phase1']),
        (
            'network_g',
            {'phase': 'joint'},
            ['path.pretrain_network_phase1', 'train.prior_warmup_iter'],
        ),
    ],
)
def test_phase2_options_are_checked(tmp_path, section, changes, keys):
    file = tmp_path / 'p1.pth'
    file.touch()
    options = phase2_options(tmp_path / 'p2', str(file))
    assert checked(UnfoldLDMPhase2Model, options, section, **changes) == keys
