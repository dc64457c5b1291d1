"""One step: optimiser, slices, sizes and mixing of batches, what is not finite, memory."""

import math
import platform
import random
import re
import sys
from unittest.mock import Mock

import pytest
import torch
from helpers import model_options, preflight, rule_problems, run_python
from model_runs import batch, spoilt, steps, weights
from tiny_network import NORMED, TWO_GROUPS, TwoGroupTestNet
from tiny_trainings import NAFNET

from unfoldldm_basicsr.common import cost
from unfoldldm_basicsr.common.errors import RunFailure
from unfoldldm_basicsr.models import RestorationModel
from unfoldldm_basicsr.options.preflight import OPTIMIZERS
from unfoldldm_basicsr.training import memory
from unfoldldm_basicsr.training.batches import MixingOptions, mixed, slices_of
from unfoldldm_basicsr.training.optimisation import build_optimizer, parameter_groups
from unfoldldm_basicsr.training.step import step_rng

ADAM = {'type': 'Adam', 'lr': 1e-3}
LARGER = {'iters': [2], 'gt_sizes': [32], 'mini_batch_sizes': [2]}


def test_weight_decay_spares_vectors_and_marked_parameters(make):
    groups = make(optim_g={'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.1}).optimizer_g
    shapes = {
        decay: [(g['group'], [tuple(p.shape) for p in g['params']]) for g in groups.param_groups
                if g['weight_decay'] == decay]
        for decay in (0.1, 0.0)
    }  # fmt: skip
    assert shapes[0.1] == [('restoration', [(3, 3, 3, 3)]), ('prior', [(3, 3, 1, 1)])]
    assert sum(len(members) for _, members in shapes[0.0]) == 3  # two biases, and the marked step
    linear = build_optimizer(
        {'x': [*torch.nn.Linear(2, 2).named_parameters()]}, {**ADAM, 'weight_decay': 1}
    )
    assert [group['weight_decay'] for group in linear.param_groups] == [1, 0]


def test_groups_of_a_network_hold_every_trained_parameter_once():
    net = TwoGroupTestNet()
    named = [item for members in net.parameter_groups().values() for item in members]
    net.parameter_groups = lambda: {'first': named[1:], 'second': named[2:3]}
    words = r'once, but lists step 0 times, restore\.bias 2 times'
    with pytest.raises(ValueError, match=words):
        parameter_groups(net)


@pytest.mark.parametrize(('options', 'words'), [
    ({**ADAM, 'type': 'AdamV'}, r"\.type: no optimiser 'AdamV' .* Did you mean 'Adam"),
    ({**ADAM, 'beta': 0.9}, r"\.beta: .* of Adam. Did you mean 'betas'"),
    ({'type': 'Adam'}, r'\.lr: a learning rate is needed'),
    ({**ADAM, 'lr': '1e-3'}, r'\.lr: must be a number, .* without quotes'),
    ({**ADAM, 'betas': [0.9, 1.5]}, r': .* index 1: 1.5 \(look at .*betas: \[0.9, 1.5\]\)'),
    ({**ADAM, 'betas': [0.9, 2], 'eps': -1}, r': Adam .* \(look at .*betas: .*, eps: -1\)'),
    ({'type': 'LBFGS', 'lr': 1.0}, r"\.type: no optimiser 'LBFGS'"),
])  # fmt: skip
def test_wrong_optimizer_options_are_named(plugin, options, words):
    plugin['train']['optim_g'] = options
    first = preflight(plugin, 'x.yml', True, here=False)[0]
    assert re.match(rf'x\.yml: train\.optim_g{words}', first), first


@pytest.mark.parametrize('name', dict(OPTIMIZERS))
def test_every_optimizer_that_is_accepted_can_make_a_step(make, name):
    model = make(optim_g={'type': name, 'lr': 1e-3})
    before = weights(model.net_g)
    steps(model, 1, 2)
    assert not torch.equal(weights(model.net_g), before)


def test_clipping_limits_each_group_by_its_own_norm(make):
    model = make(use_grad_clip=True, grad_clip_norm={'restoration': 1e-3, 'prior': 1e6})
    model.optimizer_g.step = lambda: None
    steps(model, 1)
    norms = {
        name: torch.stack([p.grad.norm() for _, p in members]).norm().item()
        for name, members in model.groups.items()
    }
    assert norms['restoration'] == pytest.approx(1e-3, rel=1e-3)
    assert norms['prior'] == pytest.approx(model.log_dict['grad_norm_prior'], rel=1e-5)
    assert model.log_dict['grad_norm_restoration'] > 1e-2  # logged before clipping
    assert {*make(use_grad_clip=False).step.clip_gradients.limits.values()} == {math.inf}


def test_accumulated_slices_equal_the_whole_batch(make):
    whole = make()
    steps(whole, 1, 2, size=4)
    for parts in (3, 5):  # one for each image
        sliced = make(accum_iter=parts)
        steps(sliced, 1, 2, size=4)
        assert torch.allclose(weights(whole.net_g), weights(sliced.net_g), atol=1e-6)
        assert whole.log_dict['l_pix'] == pytest.approx(sliced.log_dict['l_pix'], rel=1e-5)


def test_every_seed_iteration_and_rank_draws_noise_of_its_own():
    def draw(*place):
        with step_rng(*place):
            return float(torch.rand(()))

    assert len({draw(seed, it, rank) for seed in (0, 1) for it in (1, 2) for rank in (0, 1)}) == 8


def test_a_whole_batch_keeps_entries_of_any_length():
    batch = {'lq': torch.zeros(2, 3, 4, 4), 'scale': torch.tensor(2.0), 'kernel': [1, 2, 3]}
    assert list(slices_of(batch, 1)) == [(batch, 1)]


def test_bf16_and_channels_last_are_those_of_the_network_alone(make):
    model, seen = make(amp='bf16', use_channels_last=True), {}
    model.net_g.restore.register_forward_hook(lambda m, i, o: seen.update(net=o.dtype))
    model.cri_pix.register_forward_hook(lambda m, i, o: seen.update(loss=o.dtype))
    steps(model, 1)
    assert seen == {'net': torch.bfloat16, 'loss': torch.float32}
    for tensor in (model.net_g.restore.weight, model.batch['lq']):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_progressive_sizes_follow_the_iteration_and_cut_lq_and_gt_alike(make):
    sizes = {'iters': [2, 2], 'gt_sizes': [6, 12]}
    sizes['mini_batch_sizes'] = [8, 2]  # the loader gives four
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


@pytest.mark.parametrize(
    ('progressive', 'side', 'words'),
    [(None, 10, 'differ in size'), (LARGER, 16, r'asks for patches of 32 .* gives 16x16')],
)
def test_batches_of_wrong_sizes_are_refused(make, progressive, side, words):
    data = batch()
    data['gt'] = data['gt'][..., :side]
    with pytest.raises(ValueError, match=words):
        make(progressive=progressive).feed_data(data)


@pytest.mark.slow
def test_compiled_training_equals_eager_and_saves_plain_names(make):
    eager, compiled = make(), make(use_compile=True)
    for model in (eager, compiled):
        steps(model, 1, 2)
    assert torch.allclose(weights(eager.net_g), weights(compiled.net_g), atol=1e-5)
    assert compiled.network.bare.state_dict().keys() == eager.net_g.state_dict().keys()


def test_a_nonfinite_step_is_skipped_counted_named_and_kept(make, tmp_path, log):
    model = make()
    steps(model, 1)
    before, average = weights(model.net_g), weights(model.net_g_ema)
    steps(model, 2, data=spoilt())
    assert torch.equal(weights(model.net_g), before)
    assert torch.equal(weights(model.net_g_ema), average)
    assert model.step.skipped == {'total': 1, 'in_a_row': 1}
    assert 'l_pix' in log.text
    assert 'img_1.png' in log.text
    kept = torch.load(tmp_path / 'nonfinite' / 'iter_2_rank_0.pth', weights_only=True)
    assert kept['gt'][1, 0, 0, 0].isnan()
    steps(model, 3)
    assert model.step.skipped['in_a_row'] == 0
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
    assert model.step.skipped['total'] == 1


def test_nonfinite_gradients_are_caught_and_such_weights_never_written(make, tmp_path):
    model = make()
    before = weights(model.net_g)
    model.net_g.prior.weight.register_hook(lambda grad: grad * math.inf)
    steps(model, 1)
    assert torch.equal(weights(model.net_g), before)
    assert not math.isfinite(model.log_dict['grad_norm_prior'])
    with torch.no_grad():
        model.net_g.restore.weight[0] = math.inf
    with pytest.raises(RunFailure, match=r'restore\.weight'):
        model.save(0, 5)
    assert not list((tmp_path / 'models').iterdir())


def test_too_many_nonfinite_steps_stop_the_run_and_spare_the_checkpoint(make, tmp_path):
    model = make(max_nonfinite=3)
    for good in (1, 3, 5, 7):
        steps(model, good)
        steps(model, good + 1, data=spoilt())
    assert len([*(tmp_path / 'nonfinite').iterdir()]) == 3
    model.save(0, 8)
    files = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.suffix in ('.pth', '.state')}
    with pytest.raises(RunFailure, match='3 iterations in a row'):
        steps(model, *range(9, 20), data=spoilt())
    assert model.current_iter == 10
    assert all(path.read_bytes() == content for path, content in files.items())
    assert len(files) == 5


@pytest.mark.parametrize(('changes', 'found'), [
    ({
        'progressive': {'iters': [5, 5e0], 'gt_sizes': [8, 12], 'mini_batch_sizes': [4, 2]},
        'accum_iter': 2, 'amp': 'bf16',
    }, []),
    ({'grad_clip_norm': 0.1}, ['train.grad_clip_norm']),
    ({'pixel_opt': None}, ['train.pixel_opt']),
    ({'progressive': {'iters': [5], 'gt_sizes': [16], 'mini_batch_sizes': [4]}},
     ['train.progressive.gt_sizes']),
    ({'progressive': {'iters': [5], 'gt_sizes': [8], 'mini_batch_sizes': []}},
     ['train.progressive.mini_batch_sizes']),
])  # fmt: skip
def test_wrong_values_are_named(tmp_path, changes, found):
    options = model_options(tmp_path, TWO_GROUPS)
    options['datasets'] = {'train': {'gt_size': 12, 'batch_size_per_gpu': 4}}
    options['train'].update(changes)
    assert rule_problems(RestorationModel, options) == found


def test_a_training_without_memory_hears_what_to_do(tmp_path):
    model = RestorationModel(model_options(tmp_path, NAFNET))
    no_memory = torch.cuda.OutOfMemoryError('Tried to allocate 2 GiB')
    model.compute_losses = Mock(side_effect=no_memory)
    image = torch.rand(1, 3, 16, 16)
    model.feed_data({'lq': image, 'gt': image, 'lq_path': ['a.png']})
    remedies = 'accum_iter.*use_checkpoint.*amp.*gt_size'  # from the cheapest to the dearest
    with pytest.raises(RuntimeError, match=f'Out of GPU memory.*{remedies}.*allocate 2 GiB'):
        model.optimize_parameters(1)


def batch_of(size=4, side=2):
    lq = torch.arange(float(size)).view(size, 1, 1, 1).expand(size, 1, side, side)
    return {'lq': lq, 'gt': lq + 10, 'lq_path': [str(i) for i in range(size)]}


def test_mixing_blends_lq_and_gt_of_every_pair_alike():
    blend = mixed(batch_of(), MixingOptions(), random.Random(7))
    assert torch.allclose(blend['gt'], blend['lq'] + 10)
    assert not torch.allclose(blend['lq'], batch_of()['lq'])
    assert 0 <= blend['lq'].min() <= blend['lq'].max() <= 3
    assert blend['lq'].mean() == pytest.approx(1.5)  # every image is a partner once
    assert blend['lq_path'] == ['0', '1', '2', '3']


def test_half_of_the_batches_stay_as_they_are_and_shares_are_beta_distributed():
    batch, draw = {'lq': torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)}, random.Random(0)
    batch['gt'] = batch['lq']
    halves = MixingOptions(use_identity=True)
    assert 160 < sum(mixed(batch, halves, draw)['lq'] is batch['lq'] for _ in range(400)) < 240
    for beta in (0.4, 4.0):  # an even distribution has the variance of beta = 1
        always = MixingOptions(mixup_beta=beta)
        shares = torch.tensor([float(mixed(batch, always, draw)['lq'][1]) for _ in range(1000)])
        shares = shares[shares < 1]  # own partner in half of the cases
        assert float(shares.mean()) == pytest.approx(0.5, abs=0.04)
        assert float(shares.var()) == pytest.approx(1 / (4 * (2 * beta + 1)), rel=0.15)


@pytest.mark.parametrize(('mixup', 'count', 'side'), [(True, 4, 2), (True, 3, 1), (False, 4, 2)])
def test_a_model_mixes_training_batches_where_asked(tmp_path, mixup, count, side):
    sizes = {'iters': [9], 'gt_sizes': [side], 'mini_batch_sizes': [count]}
    options = {'mixing_augs': {'mixup': mixup}, 'progressive': sizes if side == 1 else None}
    options = model_options(tmp_path, {'type': 'TinyConvNet'}, **options)
    model = RestorationModel(options | {'rank': 1})
    model.current_iter = 7
    model.feed_data(batch_of())
    draw = random.Random(f'mixup/{options["manual_seed"]}/7/1')  # as runs before drew it
    expected = batch_of(count, side)
    expected = mixed(expected, MixingOptions(), draw) if mixup else expected
    assert torch.equal(model.batch['lq'], expected['lq'])
    assert torch.equal(model.batch['gt'], expected['gt'])


RESIDENT = """
import runpy, sys, torch
keep_freed_memory = runpy.run_path(sys.argv[1])['keep_freed_memory']
def kept():
    before = resident()
    x = torch.ones(2**26)
    assert resident() - before > 200
    del x
    return resident() - before > 200
def resident():
    return int(open('/proc/self/status').read().split('VmRSS:')[1].split()[0]) / 2**10
torch.ones(2**18)
print(kept(), keep_freed_memory(), kept())
"""


@pytest.fixture(autouse=True)
def _undecided(monkeypatch):
    for name in memory.GLIBC_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='another C library')
def test_memory_of_a_freed_tensor_stays_with_the_process_where_asked():
    result = run_python('-c', RESIDENT, memory.__file__)
    assert result.stdout.split() == ['False', 'True', 'True'], result.stderr


def test_the_environment_decides_first(monkeypatch):
    monkeypatch.setattr(memory.ctypes, 'CDLL', None)  # would raise
    for name in memory.GLIBC_VARIABLES:
        monkeypatch.setenv(name, '65536')
        assert memory.keep_freed_memory() is False
        monkeypatch.delenv(name)


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory.ctypes, 'CDLL', lambda name: object())
    assert memory.keep_freed_memory() is False
    monkeypatch.setattr(sys, 'platform', 'win32')
    monkeypatch.setattr(memory.ctypes, 'CDLL', None)  # would raise
    assert memory.keep_freed_memory() is False


@pytest.mark.parametrize(
    ('limit', 'available', 'free'), [('1000', 4, 400), ('9999', 4, 4096), ('max', 9, 9216)]
)
def test_a_container_gives_its_page_cache_back_where_memory_is_wanted(
    tmp_path, monkeypatch, limit, available, free
):
    monkeypatch.setattr(cost, 'Path', lambda path: tmp_path / path[1:])
    files = {
        'proc/meminfo': f'MemFree: 1 kB\nMemAvailable: {available} kB',
        'sys/fs/cgroup/memory.max': limit,
        'sys/fs/cgroup/memory.current': '900',
        'sys/fs/cgroup/memory.stat': 'anon 7\ninactive_file 300',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cost.free_memory(torch.device('cpu')) == free
