"""RestorationModel: one step of training, averaging, guards, validation, files."""

from __future__ import annotations

import csv
import math
import os
import random
import re
import signal

import numpy as np
import pytest
import torch
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import ARCH_REGISTRY
from helpers import (
    model_options,
    network_of,
    plugin_options,
    problems_at,
    put,
    rule_problems,
    tiny_unfoldldm,
)
from model_runs import Pictures, batch, file_of, resumed, same_networks, spoilt, steps, validate
from torch import nn

from unfoldldm_basicsr.common.registration import register
from unfoldldm_basicsr.models import RestorationModel
from unfoldldm_basicsr.restoring.restorer import Restorer
from unfoldldm_basicsr.training import interruption
from unfoldldm_basicsr.training.guards import NonFiniteTrainingError
from unfoldldm_basicsr.training.interruption import stop_request
from unfoldldm_basicsr.training.optimisation import check_optimizer, optimizer_names
from unfoldldm_basicsr.training.randomness import step_rng


@register(ARCH_REGISTRY)
class TwoGroupTestNet(nn.Module):
    """Two convolutions in two groups, a frozen teacher, optionally batch normalisation."""

    def __init__(self, *, normalise: bool = False):
        super().__init__()
        self.restore = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3) if normalise else nn.Identity()
        self.prior = nn.Conv2d(3, 3, 1)
        self.step = nn.Parameter(torch.ones(1, 1))
        self.step._no_weight_decay = True
        self.teacher = nn.Conv2d(3, 3, 1).requires_grad_(False)

    def parameter_groups(self):
        named = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        return {
            'restoration': [item for item in named if not item[0].startswith('prior')],
            'prior': [item for item in named if item[0].startswith('prior')],
        }

    def forward(self, lq):
        return lq + self.step * self.prior(self.norm(self.restore(lq))) + 0 * self.teacher(lq)


NET = {'type': 'TwoGroupTestNet'}
NORMED = {**NET, 'normalise': True}


@pytest.fixture
def make(tmp_path):
    def build(network=NET, **train) -> RestorationModel:
        torch.manual_seed(0)
        return RestorationModel(model_options(tmp_path, network, **train))

    return build


def weights(net) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


# ---- optimiser ------------------------------------------------------------------------------


def test_weight_decay_spares_vectors_and_marked_parameters(make):
    groups = make(optim_g={'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.1}).optimizer_g
    shapes = {
        decay: [(g['group'], [tuple(p.shape) for p in g['params']]) for g in groups.param_groups
                if g['weight_decay'] == decay]
        for decay in (0.1, 0.0)
    }  # fmt: skip
    assert shapes[0.1] == [('restoration', [(3, 3, 3, 3)]), ('prior', [(3, 3, 1, 1)])]
    assert sum(len(members) for _, members in shapes[0.0]) == 3  # two biases, and the marked step


def test_a_network_without_groups_trains_everything_in_one(make):
    model = make({'type': 'MSRResNet', 'num_feat': 4, 'num_block': 1, 'upscale': 2})
    assert {k: len(v) for k, v in model.groups.items()} == {
        'restoration': len(list(model.net_g.parameters()))
    }


ADAM = {'type': 'Adam', 'lr': 1e-3}


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({**ADAM, 'type': 'AdamV'}, "type: 'AdamV' is not an optimiser. Did you mean"),
        ({**ADAM, 'beta': 0.9}, "no argument beta. Did you mean 'betas'"),
        ({'type': 'Adam'}, 'lr: a learning rate is needed'),
        ({**ADAM, 'lr': 0.0}, 'lr: must be a number above 0, .* nothing would be trained'),
        ({**ADAM, 'betas': 0.9}, 'does not take these values'),
        ({**ADAM, 'betas': [0.9, 1.5]}, 'Invalid beta parameter at index 1'),
        ({**ADAM, 'weight_decay': -1}, 'weight_decay: .* Invalid weight_decay value'),
        ({'type': 'LBFGS', 'lr': 1.0}, "'LBFGS' is not an optimiser"),
        ({'type': 'Muon', 'lr': 1e-3}, 'type: .*Muon cannot train .* 2D parameters'),
        ({'type': 'SparseAdam', 'lr': 1e-3}, 'type: .* dense gradients'),
        ({**ADAM, 'differentiable': True}, 'differentiable: '),
        ({**ADAM, 'maximize': True}, 'maximize: would make the losses'),
        ({**ADAM, 'capturable': True}, 'capturable: .* If capturable=True'),
    ],
)
def test_wrong_optimizer_options_are_named(options, words):
    if not hasattr(torch.optim, options['type']) and options['type'] == 'Muon':
        pytest.skip('this release of torch has no Muon')
    found = check_optimizer(options, on_cpu=True)
    assert re.search(words, ' '.join(f'{p.path}: {p.message}' for p in found))


def test_every_optimizer_that_is_accepted_can_make_a_step(make):
    accepted = [
        name for name in optimizer_names() if not [*check_optimizer({'type': name, 'lr': 1e-3})]
    ]
    assert {'Adam', 'AdamW', 'SGD', 'RMSprop', 'NAdam'} <= set(accepted)
    for name in accepted:
        model = make(optim_g={'type': name, 'lr': 1e-3})
        before = weights(model.net_g)
        steps(model, 1, 2)
        assert not torch.equal(weights(model.net_g), before), name


def test_a_captured_step_is_judged_by_the_device_of_the_training(tmp_path, monkeypatch):
    place = 'train.optim_g.capturable'
    file = put(plugin_options(tmp_path), place, True)
    for gpus, present, refused in ((0, 1, True), ('auto', 0, True), ('auto', 1, False)):
        monkeypatch.setattr(torch.cuda, 'device_count', lambda count=present: count)
        assert bool(problems_at(put(file, 'num_gpu', gpus), place)) is refused


def test_clipping_limits_each_group_by_its_own_norm(make):
    limits = {'restoration': 1e-3, 'prior': 1e6}
    model = make(use_grad_clip=True, grad_clip_norm=limits)
    model.optimizer_g.step = lambda: None
    steps(model, 1)
    norms = {
        name: torch.stack([p.grad.norm() for _, p in members]).norm().item()
        for name, members in model.groups.items()
    }
    assert norms['restoration'] == pytest.approx(1e-3, rel=1e-3)
    assert norms['prior'] == pytest.approx(model.log_dict['grad_norm_prior'], rel=1e-5)
    assert model.log_dict['grad_norm_restoration'] > 1e-2  # logged before clipping


def test_clipping_wants_a_limit_for_every_group(make):
    with pytest.raises(ValueError, match="no limit for the parameter group 'prior'"):
        make(use_grad_clip=True, grad_clip_norm={'restoration': 0.01})
    with pytest.raises(ValueError, match=r"no parameter group 'priors'. Did you mean 'prior'"):
        make(use_grad_clip=True, grad_clip_norm={'restoration': 0.01, 'priors': 1})


@pytest.mark.parametrize('accum_iter', [2, 3, 4])
def test_accumulated_slices_equal_the_whole_batch(make, accum_iter):
    whole, sliced = make(), make(accum_iter=accum_iter)
    for model in (whole, sliced):
        steps(model, 1, 2, size=4)
    assert torch.allclose(weights(whole.net_g), weights(sliced.net_g), atol=1e-6)
    assert whole.log_dict['l_pix'] == pytest.approx(sliced.log_dict['l_pix'], rel=1e-5)


def test_bf16_runs_the_network_in_bf16_and_the_losses_in_fp32(make):
    model, seen = make(amp='bf16'), {}
    model.net_g.restore.register_forward_hook(lambda m, i, o: seen.update(net=o.dtype))
    model.cri_pix.register_forward_hook(lambda m, i, o: seen.update(loss=o.dtype))
    steps(model, 1)
    assert seen == {'net': torch.bfloat16, 'loss': torch.float32}


# ---- batches --------------------------------------------------------------------------------


def test_progressive_sizes_follow_the_iteration_and_cut_lq_and_gt_alike(make):
    sizes = {'iters': [2, 2], 'gt_sizes': [6, 12], 'mini_batch_sizes': [4, 2]}
    model, data, seen, windows = make(progressive=sizes), batch(size=4), [], set()
    data['gt'] = data['lq'] + 1
    for iteration in range(1, 20):
        model.update_learning_rate(iteration)
        model.feed_data(data)
        seen.append(tuple(model.batch['lq'].shape))
        assert len(model.batch['lq_path']) == len(model.batch['lq'])
        assert torch.equal(model.batch['gt'], model.batch['lq'] + 1)
        windows.add(model.batch['lq'][0, 0, 0, 0].item())
    assert seen == [(4, 3, 6, 6)] * 2 + [(2, 3, 12, 12)] * 17
    assert len(windows) > 5


def test_progressive_sizes_larger_than_the_loader_gives_are_refused(make):
    model = make(progressive={'iters': [2], 'gt_sizes': [32], 'mini_batch_sizes': [2]})
    with pytest.raises(ValueError, match=r'asks for 2 patches of 32 .* gives 2 of 16x16'):
        steps(model, 1)


def test_training_pairs_must_have_one_size(make):
    model, data = make(), batch()
    data['gt'] = data['gt'][..., :10]
    with pytest.raises(ValueError, match='differ in size'):
        model.feed_data(data)


def test_channels_last_reaches_weights_and_batches(make):
    model = make(use_channels_last=True)
    steps(model, 1)
    assert model.net_g.restore.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.batch['lq'].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_compiled_training_equals_eager_and_saves_plain_names(make):
    eager, compiled = make(), make(use_compile=True)
    for model in (eager, compiled):
        steps(model, 1, 2)
    assert torch.allclose(weights(eager.net_g), weights(compiled.net_g), atol=1e-5)
    assert compiled.network.bare.state_dict().keys() == eager.net_g.state_dict().keys()


# ---- averaging ------------------------------------------------------------------------------


def test_ema_averages_parameters_copies_buffers_and_spares_frozen_ones(make):
    model = make(NORMED)
    before = {k: v.clone() for k, v in model.net_g_ema.state_dict().items()}
    steps(model, 1)
    now, net = model.net_g_ema.state_dict(), model.net_g.state_dict()
    wanted = 0.9 * before['restore.weight'] + 0.1 * net['restore.weight']
    assert torch.allclose(now['restore.weight'], wanted, atol=1e-7)
    assert not torch.equal(now['restore.weight'], before['restore.weight'])
    assert torch.equal(now['norm.running_mean'], net['norm.running_mean'])
    assert now['norm.num_batches_tracked'] == 1
    model.net_g_ema.teacher.bias.data += 1  # frozen: not even averaged
    steps(model, 2, 3)
    assert torch.equal(model.net_g_ema.teacher.weight, before['teacher.weight'])
    assert torch.equal(model.net_g_ema.teacher.bias, before['teacher.bias'] + 1)


def test_validation_uses_the_average(make):
    model = make()
    steps(model, 1, 2)
    model.test()
    with torch.no_grad():
        lq = model.batch['lq']
        assert torch.equal(model.output, model.net_g_ema(lq))
        assert not torch.equal(model.output, model.net_g(lq))
    assert model.net_g.training


# ---- guard ----------------------------------------------------------------------------------


def test_a_nonfinite_step_is_skipped_counted_named_and_kept(make, tmp_path, log):
    model = make()
    steps(model, 1)
    before, average = weights(model.net_g), weights(model.net_g_ema)
    steps(model, 2, data=spoilt())
    assert torch.equal(weights(model.net_g), before)
    assert torch.equal(weights(model.net_g_ema), average)
    assert (model.step.guard.in_a_row, model.step.guard.total) == (1, 1)
    assert 'l_pix' in log.text
    assert 'img_1.png' in log.text
    kept = torch.load(tmp_path / 'nonfinite' / 'iter_2_rank_0.pth', weights_only=True)
    assert kept['gt'][1, 0, 0, 0].isnan()
    steps(model, 3)
    assert model.step.guard.in_a_row == 0
    assert not torch.equal(weights(model.net_g), before)


def test_a_nonfinite_step_leaves_running_statistics_as_they_were(make):
    model = make(NORMED)
    steps(model, 1)
    before = model.net_g.norm.running_mean.clone()
    steps(model, 2, data=spoilt('lq'))
    assert torch.equal(model.net_g.norm.running_mean, before)
    assert model.net_g.norm.num_batches_tracked == 1
    model.save(0, 2)  # the weights are finite
    steps(model, 3)
    assert not torch.equal(model.net_g.norm.running_mean, before)


def test_a_batch_that_cannot_be_kept_does_not_end_the_run(make, tmp_path, log):
    model = make()
    (tmp_path / 'nonfinite').write_text('a file where the folder should be')
    steps(model, 1, data=spoilt())
    assert 'The batch of this step is not kept' in log.text
    assert model.step.guard.total == 1


def test_nonfinite_gradients_of_a_finite_loss_are_caught(make):
    model = make()
    before = weights(model.net_g)
    model.net_g.prior.weight.register_hook(lambda grad: grad * math.inf)
    steps(model, 1)
    assert torch.equal(weights(model.net_g), before)
    assert not math.isfinite(model.log_dict['grad_norm_prior'])


def test_too_many_nonfinite_steps_stop_the_run_and_spare_the_checkpoint(make, tmp_path):
    model = make(max_nonfinite=3)
    steps(model, 1)
    model.save(0, 1)
    files = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.suffix in ('.pth', '.state')}
    with pytest.raises(NonFiniteTrainingError, match='3 iterations in a row'):
        steps(model, *range(2, 10), data=spoilt())
    assert model.current_iter == 4
    assert all(path.read_bytes() == content for path, content in files.items())
    assert len(files) == 2


def test_nonfinite_weights_are_never_written(make, tmp_path):
    model = make()
    with torch.no_grad():
        model.net_g.restore.weight[0] = math.inf
    with pytest.raises(ValueError, match=r'restore\.weight'):
        model.save(0, 5)
    assert not list((tmp_path / 'models').iterdir())


# ---- validation -----------------------------------------------------------------------------


def test_validation_averages_images_and_lists_degradations(make, log):
    model, pictures, values = make(), Pictures(5, names=('noise', 'blur')), []
    means = validate(model, pictures, 7)
    for item in map(pictures.__getitem__, range(5)):
        with torch.no_grad():
            images = [model.net_g_ema(item['lq'][None])[0], item['gt']]
        eight_bit = [(image.clamp(0, 1) * 255).round().double() for image in images]
        mse = (eight_bit[0] - eight_bit[1]).square().mean()
        values.append(float(20 * math.log10(255) - 10 * mse.log10()))
    assert means['psnr'] == pytest.approx(np.mean(values), rel=1e-6)
    assert model.best_metric_results['held_out']['psnr']['iter'] == 7
    rows = [line.split() for line in log.text.splitlines()]
    assert ['noise', '3', f'{np.mean(values[::2]):.4f}'] in rows
    assert ['blur', '2', f'{np.mean(values[1::2]):.4f}'] in rows


def test_validation_leaves_random_numbers_and_training_mode_alone(make):
    model = make()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    validate(model)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert model.net_g.training


def test_validation_without_truth_saves_images_and_computes_nothing(make, tmp_path):
    pictures = Pictures(2, with_gt=False, names=('noise', 'blur'))
    assert validate(make(), pictures, 3, save_img=True) == {}
    saved = {p.name for p in (tmp_path / 'visualization').rglob('*.png')}
    assert saved == {'p0_noise_3.png', 'p1_blur_3.png'}


def test_an_undefined_score_is_never_the_best(make):
    model = make()
    model.net_g_ema.restore.weight.data.fill_(math.nan)
    assert math.isnan(validate(model, iteration=3)['psnr'])
    best = {'better': 'higher', 'val': -math.inf, 'iter': -1}
    assert model.best_metric_results['held_out']['psnr'] == best


def tile(model, size: int, overlap: int) -> None:
    changes = {'tile': size, 'tile_overlap': overlap}
    model.run.val = model.run.val.model_copy(update=changes)


def test_tiled_validation_equals_whole_images_for_a_local_network(make, log):
    model = make()
    data = {'lq': torch.rand(1, 3, 40, 52)}
    whole = model.restore(data).output
    tile(model, 32, 16)
    assert torch.allclose(model.restore(data).output, whole, atol=1e-6)
    assert 'val.tile changes the results' not in log.text
    model.net_g_ema.tiling_changes_result = True  # warned of once
    for _ in range(2):
        model.restore(data)
    assert log.text.count('val.tile changes the results') == 1


@pytest.mark.parametrize('size', [(40, 52), (33, 20), (12, 33)])
def test_tiled_validation_is_what_restore_gives_with_tiles(tmp_path, size):
    model = RestorationModel(model_options(tmp_path, tiny_unfoldldm('joint')))
    for p in model.net_g_ema.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    tile(model, 33, 8)  # aligned: 32
    lq = torch.rand(1, 3, *size)
    output = model.restore({'lq': lq}).output
    restored = {
        shared: Restorer(
            model.net_g_ema, device='cpu', tile=33, tile_overlap=8, global_statistics=shared
        ).restore_tensor(lq)
        for shared in (None, False)
    }
    assert torch.equal(output, restored[None])
    assert torch.equal(restored[False], restored[None]) is (max(size) <= 33)


def test_stage_table_is_written_for_networks_with_stages(tmp_path):
    options = model_options(tmp_path, tiny_unfoldldm('joint'))
    options['val']['trace'] = True
    means = validate(RestorationModel(options), iteration=5)
    with open(tmp_path / 'stage_psnr_held_out.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    found = [(r['iteration'], r['image'], r['stage']) for r in rows]
    assert found == [('5', image, stage) for image in ('p0', 'p1') for stage in '12']
    mean = np.mean([float(r['psnr']) for r in rows if r['stage'] == '2'])
    assert mean == pytest.approx(means['psnr'], abs=0.05)  # 8-bit against float


# ---- files ----------------------------------------------------------------------------------


def test_saved_weights_rebuild_the_network_and_load_in_basicsr(make):
    model, other = make(), TwoGroupTestNet()
    steps(model, 1, 2)
    model.save(0, 2)
    path = file_of(model, 'g_2')
    assert torch.equal(weights(network_of(path)), weights(model.net_g_ema))
    BaseModel.load_network(model, other, path, True, 'params')
    assert torch.equal(weights(other), weights(model.net_g))


def test_a_resumed_run_ends_with_the_same_bits(make, tmp_path):
    whole = make(warmup_iter=6)
    steps(whole, 1, 2)
    validate(whole, iteration=2)
    whole.save(0, 2)
    random_numbers = torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    second = resumed(whole, model_options(tmp_path, NET, warmup_iter=6), 2)
    assert torch.equal(torch.rand(3), random_numbers[0])
    assert np.array_equal(np.random.rand(3), random_numbers[1])  # noqa: NPY002
    assert random.random() == random_numbers[2]
    assert second.best_metric_results == whole.best_metric_results
    for model in (whole, second):
        steps(model, 3, 4)
    assert same_networks(whole, second)


def test_a_failed_write_raises_and_leaves_old_files_alone(make, tmp_path, monkeypatch):
    model = make()
    model.save(0, 1)
    before = (tmp_path / 'models' / 'net_g_1.pth').read_bytes()

    def full(descriptor):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match=r'cannot write .*net_g_1\.pth.*--auto_resume'):
        model.save(0, 1)
    assert (tmp_path / 'models' / 'net_g_1.pth').read_bytes() == before
    assert [p.name for p in (tmp_path / 'models').iterdir()] == ['net_g_1.pth']


def test_leftovers_of_a_killed_run_are_removed(make, tmp_path):
    (tmp_path / 'models').mkdir()
    leftover = tmp_path / 'models' / '.net_g_3.pth.123.tmp'
    leftover.write_bytes(b'half')
    make()
    assert not leftover.exists()


def test_only_the_newest_checkpoints_are_kept_when_asked(make, tmp_path):
    model = make()
    model.checkpointer.keep = 2
    model.save(-1, -1)
    for iteration in (8, 9, 10, 11):
        model.save(0, iteration)
    states = {p.name for p in (tmp_path / 'states').iterdir()}
    assert states == {'10.state', '10.state.json', '11.state', '11.state.json'}
    models = {p.name for p in (tmp_path / 'models').iterdir()}
    assert models == {'net_g_10.pth', 'net_g_11.pth', 'net_g_latest.pth'}


# ---- tests ----------------------------------------------------------------------------------


def test_a_test_without_weights_is_refused(tmp_path):
    options = {k: v for k, v in plugin_options(tmp_path).items() if k not in ('train', 'logger')}
    options['datasets'] = {'test': options['datasets']['val']}
    assert 'random network' in problems_at(options, 'path.pretrain_network_g')


def test_a_test_refuses_weights_of_another_network(make, tmp_path):
    make(NORMED).save(0, 1)
    options = model_options(tmp_path, NET, is_train=False)
    options['path']['pretrain_network_g'] = path = str(tmp_path / 'models' / 'net_g_1.pth')
    with pytest.raises(ValueError, match=r'norm: 5 unknown to the network'):
        RestorationModel(options)
    options['path']['strict_load_g'] = False  # all of this network's weights are there
    assert RestorationModel(options).net_g is not None
    with pytest.raises(ValueError, match="Did you mean 'params_ema'"):
        RestorationModel(put(options, 'path.param_key_g', 'params_emma'))
    file = torch.load(path, weights_only=True)
    for key in ('params', 'params_ema'):
        del file[key]['norm.weight']
    torch.save(file, path)
    with pytest.raises(ValueError, match='A test needs every weight'):
        RestorationModel(put(options, 'network_g', NORMED))


def test_a_test_takes_the_average_where_the_file_has_one(make, tmp_path):
    """As the validations of its training did; BasicSR's model has to be told."""
    model = make(ema_decay=0.5)
    steps(model, 1, 2)
    model.save(0, 2)
    options = model_options(tmp_path, NET, is_train=False)
    options['path']['pretrain_network_g'] = file_of(model, 'g_2')
    lq = batch()['lq']
    with torch.no_grad():
        raw, average = model.net_g.eval()(lq), model.net_g_ema(lq)
        assert not torch.equal(raw, average)
        assert torch.equal(RestorationModel(options).net_g(lq), average)
        assert torch.equal(SRModel(options).net_g(lq), raw)
        options['path']['param_key_g'] = 'params_ema'
        assert torch.equal(SRModel(options).net_g(lq), average)


# ---- signals and the log --------------------------------------------------------------------


def test_a_signal_saves_and_stops_at_the_end_of_the_iteration(make, tmp_path):
    model = make()
    steps(model, 1, 2)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        steps(model, 3)
    assert stop.value.code == 128 + signal.SIGTERM
    state = torch.load(tmp_path / 'states' / '3.state', weights_only=True)
    assert state['iter'] == 3
    saved = torch.load(file_of(model, 'g_3'), weights_only=True)['params']
    assert torch.equal(saved['restore.weight'], model.net_g.restore.weight)


def test_a_second_signal_acts_at_once(make, monkeypatch):
    acted = []
    previous = signal.signal(signal.SIGINT, lambda signum, frame: acted.append(signum))
    make()
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)  # the same once more: torchrun passes it on
    assert stop_request.signum == signal.SIGINT
    assert acted == []
    monkeypatch.setattr(interruption, 'REPEATED_AFTER', 0.0)
    os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, previous)
    assert acted == [signal.SIGINT]


def test_a_signal_that_the_parent_ignores_stays_ignored(make):
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    make()
    os.kill(os.getpid(), signal.SIGINT)
    assert stop_request.signum == 0
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, previous)


def test_log_names_speed_and_memory(make):
    model = make()
    steps(model, 1)
    model.get_current_log()
    steps(model, 2, 3)
    log = model.get_current_log()
    assert log['it_per_s'] > 0
    assert 0.01 < log['peak_memory_gib'] < 100
    assert 'lr_restoration' not in log
    # BasicSR writes what is in the log, and no rates.
    model.run.logger = model.run.logger.model_copy(update={'use_tb_logger': True})
    assert model.get_current_log()['lr_restoration'] == model.get_current_learning_rate()[0]


def test_random_numbers_of_a_step_do_not_touch_gpus_that_are_not_in_use(monkeypatch):
    """torch.manual_seed notes the call stack for them at every call."""
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', lambda seed: pytest.fail('touched'))
    with step_rng(1, 2, 0):
        first = torch.rand(3)
    with step_rng(1, 2, 0):
        assert torch.equal(first, torch.rand(3))
    with step_rng(1, 3, 0):
        assert not torch.equal(first, torch.rand(3))


# ---- options --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('section', 'changes', 'found'),
    [
        ('train', {
            'progressive': {'iters': [5, 5], 'gt_sizes': [8, 12], 'mini_batch_sizes': [4, 2]},
            'accum_iter': 2, 'amp': 'bf16',
        }, []),
        ('train', {'total_iter': 0}, ['train.total_iter']),
        ('train', {'warmup_iter': 100}, ['train.warmup_iter']),
        ('train', {'ema_decay': 1.0}, ['train.ema_decay']),
        ('train', {'use_grad_clip': True, 'grad_clip_norm': 0}, ['train.grad_clip_norm']),
        ('train', {'grad_clip_norm': 0.1}, ['train.grad_clip_norm']),
        ('train', {'accum_iter': 5}, ['train.accum_iter']),
        ('train', {'amp': 'fp16'}, ['train.amp']),
        ('train', {'max_nonfinite': 0}, ['train.max_nonfinite']),
        ('train', {'pixel_opt': None}, ['train.pixel_opt']),
        ('train', {'optim_g': {'type': 'Adm', 'lr': 1}}, ['train.optim_g.type']),
        ('train', {'scheduler': {'type': 'X'}}, ['train.scheduler.type']),
        ('train', {'progressive': {'iters': [5], 'gt_sizes': [16], 'mini_batch_sizes': [4]}},
         ['train.progressive.gt_sizes']),
        ('val', {'tile': 16, 'tile_overlap': 16}, ['val.tile']),
        ('val', {'tile': 64, 'trace': True}, ['val.trace']),
        ('logger', {'keep_checkpoints': 0}, ['logger.keep_checkpoints']),
    ],
)  # fmt: skip
def test_wrong_values_are_named(tmp_path, section, changes, found):
    options = model_options(tmp_path, NET)
    options['datasets'] = {'train': {'gt_size': 12, 'batch_size_per_gpu': 4}}
    options.setdefault(section, {}).update(changes)
    assert rule_problems(RestorationModel, options) == found
