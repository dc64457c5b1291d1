"""Both phases of VLU-Net with a latent prior: what is trained, loaded, reported and exported."""

from __future__ import annotations

import re

import pytest
import torch
import yaml
from helpers import ROOT, put, rule_problems, run_python, write_options, write_photos
from tiny_vlunet_prior import TINY_PRIOR
from torch.utils.data import DataLoader, Dataset
from vlunet_runs import NAMES, NETWORK, random_batch, step, vlunet_options

from unfoldldm_basicsr.models import VLUNetModel, VLUNetPriorPhase1Model, VLUNetPriorPhase2Model
from unfoldldm_basicsr.options.preflight import preflight
from unfoldldm_basicsr.restoring.restorer import Restorer
from unfoldldm_basicsr.weights.export import export_checkpoint

DIFFUSION = {'diffusion_opt': {'type': 'LatentDiffusionLoss'}, 'prior_warmup_iter': 2}
HOST = {key: NETWORK[key] for key in NETWORK if key != 'type'}


class Pictures(Dataset):
    opt = {'name': 'held_out'}

    def __len__(self):
        return 3

    def __getitem__(self, index):
        lq, gt = random_batch(index, 1)['lq'][0], random_batch(index, 1)['gt'][0]
        return {'lq': lq, 'gt': gt, 'lq_path': f'p{index}.png', 'degradation': index}


def options_of(folder, phase: int, source: str = 'learned', path=None, **settings) -> dict:
    train = {**(DIFFUSION if phase == 2 else {}), **settings}
    options = vlunet_options(folder, source, **train)
    options['model_type'] = f'VLUNetPriorPhase{phase}Model'
    options['network_g'] = {**TINY_PRIOR, **HOST, 'type': 'VLUNetPrior', 'phase': phase}
    options['path'] |= path or {}
    return options


def weights(model, label: str) -> str:
    return f'{model.opt["path"]["models"]}/net_{label}.pth'


def copy(net) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


def changed(net, before: dict) -> set[str]:
    now = net.state_dict()
    return {key.split('.')[0] for key in before if not torch.equal(now[key], before[key])}


@pytest.fixture(scope='module')
def phase1(tmp_path_factory) -> VLUNetPriorPhase1Model:
    """Phase I after three steps, saved; tests only read it."""
    torch.manual_seed(0)
    model = VLUNetPriorPhase1Model(options_of(tmp_path_factory.mktemp('p1') / 'run', 1))
    model.start = copy(model.net_g)
    for iteration in (1, 2, 3):
        step(model, iteration)
    model.save(0, 3)
    return model


@pytest.fixture
def phase2(tmp_path, phase1) -> VLUNetPriorPhase2Model:
    path = {'pretrain_network_phase1': weights(phase1, 'g_3')}
    return VLUNetPriorPhase2Model(options_of(tmp_path / 'p2', 2, path=path))


# ---- Phase I ----------------------------------------------------------------------------------


def test_phase1_trains_host_prior_encoder_corrector_and_the_learned_embedding(phase1):
    parts = {name for name, _ in phase1.net_g.named_children()} | {'null_prior'}
    assert changed(phase1.net_g, phase1.start) == parts - {'down1_2_i'}
    assert phase1.conditioning.is_trained
    assert {'l_pix', 'correction', 'grad_norm_embedding'} <= set(phase1.log_dict)
    assert 'l_isda' not in phase1.log_dict
    assert phase1.log_dict['correction'] > 0


def test_phase1_validation_is_named_an_oracle(phase1):
    phase1.validation(DataLoader(Pictures()), 1, None, save_img=False)
    assert list(phase1.metric_results) == ['oracle_psnr']


def test_phase1_starts_from_a_plain_vlunet_and_restores_like_it(tmp_path):
    plain = VLUNetModel(vlunet_options(tmp_path / 'plain', 'learned'))
    step(plain, 1)
    plain.save(0, 1)
    path = {'pretrain_network_g': weights(plain, 'g_1')}
    options = options_of(tmp_path / 'host', 1, path=path)
    assert problems_of(options) == []
    assert preflight_of_weights(options) == []
    refused = preflight_of_weights(put(options, 'network_g.num_refinement_blocks', 2))
    assert 'does not fit network_g (VLUNetPrior)' in refused[0]
    model = VLUNetPriorPhase1Model(options)
    outputs = [each.restore(random_batch(5)).output for each in (plain, model)]
    assert torch.equal(*outputs)


def preflight_of_weights(options: dict) -> list[str]:
    lines = preflight(options, 'x.yml', True)
    return [line for line in lines if 'path.pretrain_network' in line]


# ---- Phase II ---------------------------------------------------------------------------------


def test_phase2_starts_from_the_averages_of_phase1_and_keeps_the_embedding(phase2, phase1):
    average = phase1.net_g_ema.state_dict()
    for net in (phase2.net_g, phase2.net_g_ema):
        own = net.state_dict()
        assert {key.split('.')[0] for key in own.keys() - average.keys()} == {
            'condition_encoder',
            'denoiser',
        }
        assert all(torch.equal(own[key], value) for key, value in average.items())
    before = copy(phase2.conditioning.network.bare)
    assert all(
        torch.equal(before[k], v)
        for k, v in phase1.conditioning.network.average.state_dict().items()
    )
    for iteration in (1, 2, 3, 4):
        step(phase2, iteration)
    assert changed(phase2.conditioning.network.bare, before) == set()
    assert not any(p.requires_grad for p in phase2.conditioning.network.bare.parameters())


def test_warmup_trains_only_the_prior_and_joint_training_all_but_the_teacher(phase2):
    before, names = copy(phase2.net_g), []
    for iteration in (1, 2):
        step(phase2, iteration)
        names.append(list(phase2.log_dict))
    assert changed(phase2.net_g, before) == {'condition_encoder', 'denoiser'}
    assert phase2.log_dict['l_pix'] == 0
    for iteration in (3, 4):
        step(phase2, iteration)
        names.append(list(phase2.log_dict))
    kept = {'prior_encoder', 'null_prior', 'down1_2_i'}
    parts = {name for name, _ in phase2.net_g.named_children()}
    assert changed(phase2.net_g, before) == parts - kept
    average = copy(phase2.net_g_ema)
    assert all(torch.equal(average[k], v) for k, v in before.items() if k.split('.')[0] in kept)
    assert phase2.log_dict['l_pix'] > 0
    assert all(n == names[0] for n in names)


def test_phase2_refuses_files_that_are_not_its_phase1(tmp_path, phase1, phase2):
    file = weights(phase1, 'g_3')
    path = {'pretrain_network_phase1': file}
    options = options_of(tmp_path / 'a', 2, path=path)
    assert preflight_of_weights(options) == []
    refused = preflight_of_weights(put(options, 'network_g.corrector', False))
    assert 'unknown to the network' in refused[0]
    with pytest.raises(ValueError, match=r'no Phase I of this network_g.*corrector'):
        VLUNetPriorPhase2Model(put(options, 'network_g.corrector', False))
    other = put(options, 'network_g.LayerNorm_type', 'BiasFree')
    with pytest.raises(ValueError, match='no Phase I of this network_g'):
        VLUNetPriorPhase2Model(other)
    phase2.save(0, 1)
    path = {'pretrain_network_phase1': weights(phase2, 'g_1')}
    with pytest.raises(ValueError, match='written by Phase II'):
        VLUNetPriorPhase2Model(options_of(tmp_path / 'b', 2, path=path))


@pytest.mark.parametrize('source', ['generated', 'oracle', 'null', 'shuffled'])
def test_validation_with_each_prior_source(phase2, source):
    for iteration in (1, 2, 3, 4):
        step(phase2, iteration)
    phase2.prior_source = source
    done, restore = [], phase2.evaluator.restore
    phase2.evaluator.restore = lambda batch: (done.append(restore(batch)), done[-1])[1]
    phase2.validation(DataLoader(Pictures()), 1, None, save_img=False)
    item = DataLoader(Pictures()).collate_fn([Pictures()[2]])  # the last one validated
    own, prior = item['lq'], {'prior_source': source}
    if source == 'oracle':
        prior['gt'] = item['gt']
    if source == 'shuffled':
        own = torch.cat([own, Pictures()[0]['lq'][None]])
    with torch.no_grad():
        vectors = phase2.conditioning.network.bare.eval()(own)
        expected = phase2.net_g_ema(own, degradation=vectors, **prior)[:1]
    assert torch.equal(done[-1].output, expected.clamp(0, 1))


def test_a_shuffled_prior_is_generated_under_the_label_of_its_own_image(tmp_path):
    first = VLUNetPriorPhase1Model(options_of(tmp_path / 'a', 1, 'label'))
    first.save(0, 1)
    path = {'pretrain_network_phase1': weights(first, 'g_1')}
    second = VLUNetPriorPhase2Model(options_of(tmp_path / 'b', 2, 'label', path=path))
    second.prior_source, labels = 'shuffled', []
    second.conditioning.network.bare.register_forward_pre_hook(
        lambda _, args: labels.append(args[1].tolist())
    )
    second.validation(DataLoader(Pictures()), 1, None, save_img=False)
    assert labels == [[0, 1], [1, 2], [2, 0]]


# ---- files ------------------------------------------------------------------------------------


def test_exported_file_restores_alone_what_phase2_restores(tmp_path, phase2):
    for iteration in (1, 2, 3):
        step(phase2, iteration)
    phase2.save(0, 3)
    done = export_checkpoint(weights(phase2, 'g_3'), tmp_path / 'x.pth')
    assert done.dropped == ('prior_encoder',)
    restorer = Restorer(tmp_path / 'x.pth', device='cpu')
    assert restorer.net.phase == 'inference'
    restored = restorer.restore_tensor(random_batch(9, size=1)['lq'])
    expected = phase2.restore(random_batch(9, size=1)).output.clamp(0, 1)
    torch.testing.assert_close(restored.clamp(0, 1), expected, atol=1e-6, rtol=0)


def test_phase1_weights_are_not_exported(tmp_path, phase1):
    with pytest.raises(ValueError, match='Phase I weights'):
        export_checkpoint(weights(phase1, 'g_3'), tmp_path / 'x.pth')


# ---- options ----------------------------------------------------------------------------------


def problems_of(options: dict) -> list[str]:
    cls = (VLUNetPriorPhase1Model, VLUNetPriorPhase2Model)[options['network_g']['phase'] == 2]
    return rule_problems(cls, options)


@pytest.mark.parametrize('phase', [1, 2])
@pytest.mark.parametrize(
    ('key', 'value', 'found'),
    [
        ('train.isda_opt', {'type': 'ISDALoss'}, ['train.isda_opt']),
        ('train.stage_loss_weight', 0.5, ['train.stage_loss_weight']),
        ('network_g.type', 'VLUNet', ['network_g.type']),
        ('network_g.type', 'UnfoldLDM', ['network_g.type']),
        ('network_e', None, ['network_e']),
    ],
)
def test_options_without_effect_or_sense_are_named(tmp_path, phase1, phase, key, value, found):
    path = {'pretrain_network_phase1': weights(phase1, 'g_3')} if phase == 2 else {}
    options = options_of(tmp_path / 'x', phase, path=path, use_grad_clip=True)
    assert problems_of(options) == []
    assert problems_of(put(options, key, value)) == found


def test_sizes_of_a_corrector_that_is_switched_off_are_named(tmp_path):
    options = options_of(tmp_path / 'x', 1)
    sizes = {key for key in options['network_g'] if key.startswith('corrector_')}
    assert sizes
    options['network_g']['corrector'] = False
    assert set(problems_of(options)) == {f'network_g.{key}' for key in sizes}


@pytest.mark.parametrize('phase', [1, 2])
def test_a_limit_for_the_embedding_belongs_to_phase_1(tmp_path, phase1, phase):
    path = {'pretrain_network_phase1': weights(phase1, 'g_3')} if phase == 2 else {}
    limits = {'restoration': 1.0, 'prior': 1.0, 'embedding': 1.0}
    settings = {'use_grad_clip': True, 'grad_clip_norm': limits}
    options = options_of(tmp_path / 'x', phase, path=path, **settings)
    assert problems_of(options) == (['train.grad_clip_norm'] if phase == 2 else [])


def test_shuffled_priors_and_another_degradation_exclude_each_other(tmp_path, phase1):
    path = {'pretrain_network_phase1': weights(phase1, 'g_3')}
    options = options_of(tmp_path / 'x', 2, path=path)
    options['val'] |= {'prior_source': 'shuffled', 'degradation_override': NAMES[0]}
    assert problems_of(options) == ['val.degradation_override']


def test_other_models_name_the_ones_for_this_network(tmp_path):
    options = options_of(tmp_path / 'x', 1)
    options['model_type'] = 'UnfoldLDMPhase1Model'
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
    options['train'] |= {'total_iter': 3, 'warmup_iter': -1}
    options['train']['scheduler']['T_max'] = 3
    if phase == 2:
        options['train']['prior_warmup_iter'] = 1
    options['val'] |= {'val_freq': 3, 'pbar': False}
    options['logger'] |= {'print_freq': 1, 'save_checkpoint_freq': 3}
    return options


def test_smoke_option_files_train_one_phase_after_the_other(tmp_path):
    write_photos(tmp_path / 'photos', 2, (32, 32))
    for phase in (1, 2):
        options = smoke_options(phase, tmp_path / 'photos')
        write_options(tmp_path / f'{phase}.yml', options)
        result = run_python('-m', 'unfoldldm_basicsr.train', '-opt', f'{phase}.yml', cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert 'iter:       3' in result.stderr
        assert ('ORACLE' in result.stderr) == (phase == 1)
        for name in options['datasets']['val']['degradation_names']:
            assert re.search(rf'^\s+{name}\s.*\d\.\d', result.stderr, re.M)
    models = tmp_path / 'experiments' / options['name'] / 'models'
    content = torch.load(models / 'net_g_latest.pth', weights_only=True)
    assert content['arch']['type'] == 'VLUNetPrior'
    assert content['degradation']['embedding']['type'] == options['network_e']['type']
