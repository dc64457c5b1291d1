"""Both phases of VLU-Net with a latent prior: what is trained, loaded, reported and exported."""

from __future__ import annotations

import re

import pytest
import torch
import yaml
from helpers import ROOT, put, rule_problems, write_photos
from model_runs import Pictures, batch, changed, file_of, state_of, steps, validate
from tiny_vlunet_prior import TINY_PRIOR
from torch.utils.data import DataLoader
from vlunet_runs import NAMES, NETWORK, vlunet_options

from unfoldldm_basicsr.models import VLUNetModel, VLUNetPriorPhase1Model, VLUNetPriorPhase2Model
from unfoldldm_basicsr.options.preflight import preflight

MODELS = {1: VLUNetPriorPhase1Model, 2: VLUNetPriorPhase2Model}
DIFFUSION = {'diffusion_opt': {'type': 'LatentDiffusionLoss'}, 'prior_warmup_iter': 2}
HOST = {key: NETWORK[key] for key in NETWORK if key != 'type'}
NEW = {'condition_encoder', 'denoiser'}


def options_of(folder, phase: int, source: str = 'learned', path=None, **settings) -> dict:
    train = {**(DIFFUSION if phase == 2 else {}), **settings}
    options = vlunet_options(folder, source, **train)
    options['model_type'] = f'VLUNetPriorPhase{phase}Model'
    options['network_g'] = {**TINY_PRIOR, **HOST, 'type': 'VLUNetPrior', 'phase': phase}
    options['path'] |= path or {}
    return options


def bare_e(model):
    return model.conditioning.network.bare


@pytest.fixture(scope='module')
def phase1(tmp_path_factory) -> VLUNetPriorPhase1Model:
    """Phase I after three steps, saved; tests only read it."""
    torch.manual_seed(0)
    model = VLUNetPriorPhase1Model(options_of(tmp_path_factory.mktemp('p1') / 'run', 1))
    model.start = state_of(model.net_g)
    steps(model, 1, 2, 3)
    model.save(0, 3)
    return model


@pytest.fixture(scope='module')
def from_phase1(phase1) -> dict:
    return {'pretrain_network_phase1': file_of(phase1, 'g_3')}


@pytest.fixture(scope='module')
def phase2(tmp_path_factory, from_phase1) -> VLUNetPriorPhase2Model:
    """Phase II after II-a and two steps of II-b, saved; tests only read it.

    ``states``: weights, averages and embedding at the start and after each step; ``logs``.
    """
    folder = tmp_path_factory.mktemp('p2')
    model = VLUNetPriorPhase2Model(options_of(folder / 'run', 2, path=from_phase1))
    nets = model.net_g, model.net_g_ema, bare_e(model)
    model.logs, model.states = [], [[state_of(net) for net in nets]]
    for iteration in (1, 2, 3, 4):
        steps(model, iteration)
        model.logs.append(dict(model.log_dict))
        model.states.append([state_of(net) for net in nets])
    model.save(0, 4)
    return model


def problems_of(options: dict) -> list[str]:
    return rule_problems(MODELS[options['network_g']['phase']], options)


def preflight_of_weights(options: dict) -> list[str]:
    lines = preflight(options, 'x.yml', True)
    return [line for line in lines if 'path.pretrain_network' in line]


# ---- Phase I ----------------------------------------------------------------------------------


def test_phase1_trains_host_prior_encoder_corrector_and_the_learned_embedding(phase1):
    parts = {name for name, _ in phase1.net_g.named_children()} | {'null_prior'}
    assert changed(phase1.net_g, phase1.start) == parts - {'down1_2_i'}
    assert phase1.conditioning.is_trained
    assert {'l_pix', 'correction', 'grad_norm_embedding'} <= set(phase1.log_dict)
    assert 'l_isda' not in phase1.log_dict
    assert phase1.log_dict['correction'] > 0


def test_phase1_starts_from_a_plain_vlunet_and_restores_like_it(tmp_path):
    plain = VLUNetModel(vlunet_options(tmp_path / 'plain', 'learned'))
    steps(plain, 1)
    plain.save(0, 1)
    options = options_of(tmp_path / 'host', 1, path={'pretrain_network_g': file_of(plain, 'g_1')})
    assert problems_of(options) == []
    assert preflight_of_weights(options) == []
    refused = preflight_of_weights(put(options, 'network_g.num_refinement_blocks', 2))
    assert 'does not fit network_g (VLUNetPrior)' in refused[0]
    model = VLUNetPriorPhase1Model(options)
    assert torch.equal(*(each.restore(batch(5)).output for each in (plain, model)))


# ---- Phase II ---------------------------------------------------------------------------------


def test_phase2_starts_from_the_averages_of_phase1_and_keeps_the_embedding(phase2, phase1):
    average = phase1.net_g_ema.state_dict()
    *nets, embedding = phase2.states[0]
    for own in nets:
        assert {key.split('.')[0] for key in own.keys() - average.keys()} == NEW
        assert all(torch.equal(own[key], value) for key, value in average.items())
    assert changed(phase1.conditioning.network.average, embedding) == set()
    assert changed(bare_e(phase2), embedding) == set()
    assert not any(p.requires_grad for p in bare_e(phase2).parameters())


def test_warmup_trains_only_the_prior_and_joint_training_all_but_the_teacher(phase2):
    start, warm, joint = (phase2.states[k][0] for k in (0, 2, 4))
    differing = [
        {key.split('.')[0] for key in start if not torch.equal(start[key], other[key])}
        for other in (warm, joint)
    ]
    kept = {'prior_encoder', 'null_prior', 'down1_2_i'}
    assert differing == [NEW, {name for name, _ in phase2.net_g.named_children()} - kept]
    assert not changed(phase2.net_g_ema, start) & kept
    assert phase2.logs[1]['l_pix'] == 0 < phase2.logs[2]['l_pix']
    assert all(list(found) == list(phase2.logs[0]) for found in phase2.logs)


def test_phase2_refuses_files_that_are_not_its_phase1(tmp_path, from_phase1, phase2):
    options = options_of(tmp_path / 'a', 2, path=from_phase1)
    assert preflight_of_weights(options) == []
    without = put(options, 'network_g.corrector', False)
    assert 'unknown to the network' in preflight_of_weights(without)[0]
    with pytest.raises(ValueError, match=r'no Phase I of this network_g.*corrector'):
        VLUNetPriorPhase2Model(without)
    with pytest.raises(ValueError, match='no Phase I of this network_g'):
        VLUNetPriorPhase2Model(put(options, 'network_g.LayerNorm_type', 'BiasFree'))
    path = {'pretrain_network_phase1': file_of(phase2, 'g_4')}
    with pytest.raises(ValueError, match='written by Phase II'):
        VLUNetPriorPhase2Model(options_of(tmp_path / 'b', 2, path=path))


@pytest.mark.parametrize('source', ['generated', 'oracle', 'null', 'shuffled'])
def test_validation_with_each_prior_source(phase2, source, monkeypatch):
    done, restore, pictures = [], phase2.evaluator.restore, Pictures(2)
    monkeypatch.setattr(phase2, 'prior_source', source)
    monkeypatch.setattr(
        phase2.evaluator, 'restore', lambda batch: (done.append(restore(batch)), done[-1])[1]
    )
    validate(phase2, pictures)
    item, prior = DataLoader(pictures).collate_fn([pictures[0]]), {'prior_source': source}
    own = item['lq']
    if source == 'oracle':
        prior['gt'] = item['gt']
    if source == 'shuffled':  # by the prior of the next image, cut to the size of this one
        own = torch.cat([own, pictures[1]['lq'][None, :, : own.shape[2]]])
    with torch.no_grad():
        vectors = bare_e(phase2).eval()(own)
        expected = phase2.net_g_ema(own, degradation=vectors, **prior)[:1]
    assert torch.equal(done[0].output, expected.clamp(0, 1))


def test_a_shuffled_prior_is_generated_under_the_label_of_its_own_image(tmp_path):
    first = VLUNetPriorPhase1Model(options_of(tmp_path / 'a', 1, 'label'))
    first.save(0, 1)
    path = {'pretrain_network_phase1': file_of(first, 'g_1')}
    second = VLUNetPriorPhase2Model(options_of(tmp_path / 'b', 2, 'label', path=path))
    second.prior_source, labels = 'shuffled', []
    bare_e(second).register_forward_pre_hook(lambda _, args: labels.append(args[1].tolist()))
    validate(second, Pictures(3))
    assert labels == [[0, 1], [1, 2], [2, 0]]


# ---- options ----------------------------------------------------------------------------------

LIMITS = {'restoration': 1.0, 'prior': 1.0, 'embedding': 1.0}


@pytest.mark.parametrize('phase', [1, 2])
@pytest.mark.parametrize(
    ('key', 'value', 'found'),
    [
        ('train.isda_opt', {'type': 'ISDALoss'}, ['train.isda_opt']),
        ('train.stage_loss_weight', 0.5, ['train.stage_loss_weight']),
        ('train.grad_clip_norm', LIMITS, ['train.grad_clip_norm']),  # Phase II trains no embedding
        ('network_g.type', 'VLUNet', ['network_g.type']),
        ('network_g.type', 'UnfoldLDM', ['network_g.type']),
        ('network_e', None, ['network_e']),
    ],
)
def test_options_without_effect_or_sense_are_named(tmp_path, from_phase1, phase, key, value, found):
    path = from_phase1 if phase == 2 else {}
    options = options_of(tmp_path / 'x', phase, path=path, use_grad_clip=True)
    assert problems_of(options) == []
    found = [] if (value, phase) == (LIMITS, 1) else found
    assert problems_of(put(options, key, value)) == found


def test_options_that_rule_each_other_out_are_named(tmp_path, from_phase1):
    options = options_of(tmp_path / 'x', 1)
    sizes = {key for key in options['network_g'] if key.startswith('corrector_')}
    found = set(problems_of(put(options, 'network_g.corrector', False)))
    assert found == {f'network_g.{key}' for key in sizes} != set()
    options = options_of(tmp_path / 'y', 2, path=from_phase1)
    options['val'] |= {'prior_source': 'shuffled', 'degradation_override': NAMES[0]}
    assert problems_of(options) == ['val.degradation_override']


def test_other_models_name_the_ones_for_this_network(tmp_path):
    options = options_of(tmp_path / 'x', 1) | {'model_type': 'UnfoldLDMPhase1Model'}
    lines = [line for line in preflight(options, 'x.yml', True) if 'network_g.type' in line]
    assert len(lines) == 1
    assert 'VLUNetPriorPhase1Model or VLUNetPriorPhase2Model' in lines[0]


# ---- the trainer ------------------------------------------------------------------------------


def smoke_options(phase: int, photos) -> dict:
    """The shipped option file with other photos, sizes and lengths."""
    file = ROOT / f'options/smoke/vlunet_prior_phase{phase}.yml'
    options = yaml.safe_load(file.read_text(encoding='utf-8'))
    for data in options['datasets'].values():
        data['io_backend'] = {'type': 'disk'}
        for part in data['sets']:
            part['dataroot_gt'] = str(photos)
    options['datasets']['train'] |= {'gt_size': 16, 'batch_size_per_gpu': 2}
    options['datasets']['train'] |= {'num_worker_per_gpu': 0, 'persistent_workers': False}
    options['datasets']['val']['center_crop'] = 16
    options['num_gpu'] = 0
    options['train'] |= {'total_iter': 2, 'warmup_iter': -1}
    options['train']['scheduler']['T_max'] = 2
    if phase == 2:
        options['train']['prior_warmup_iter'] = 1
    options['val'] |= {'val_freq': 2, 'pbar': False}
    options['logger'] |= {'print_freq': 1, 'save_checkpoint_freq': 2}
    return options


def test_smoke_option_files_train_one_phase_after_the_other(tmp_path, run_here):
    write_photos(tmp_path / 'photos', 2, (32, 32))
    options = {phase: smoke_options(phase, tmp_path / 'photos') for phase in (1, 2)}
    for phase in (1, 2):
        text = run_here(options[phase])
        assert 'iter:       2' in text
        assert ('ORACLE' in text) == (phase == 1)
        for name in options[phase]['datasets']['val']['degradation_names']:
            assert re.search(rf'^\s+{name}\s.*\d\.\d', text, re.M)
    models = tmp_path / 'experiments' / options[2]['name'] / 'models'
    content = torch.load(models / 'net_g_latest.pth', weights_only=True)
    assert content['arch']['type'] == 'VLUNetPrior'
    assert content['degradation']['embedding']['type'] == options[2]['network_e']['type']
