"""RestorationModel: averaging, validation, files, the log; by what a run ends and how."""

import json
import math
import os
import signal
from unittest.mock import Mock
from urllib.error import URLError

import basicsr.train
import numpy as np
import pytest
import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import ARCH_REGISTRY
from helpers import csv_rows, model_options, put, tiny_unfoldldm
from model_runs import (
    Board,
    Pictures,
    batch,
    begin,
    file_of,
    found_in,
    go_on,
    options_of,
    spoilt,
    state_file,
    steps,
    validate,
)
from tiny_network import NORMED, TWO_GROUPS, TinyConvNet

from unfoldldm_basicsr.common import errors as failures
from unfoldldm_basicsr.common.errors import DataFault, OutputWriteError
from unfoldldm_basicsr.models import RestorationModel
from unfoldldm_basicsr.restoring.restorer import Restorer
from unfoldldm_basicsr.training import interruption, networks, restoration_model
from unfoldldm_basicsr.training.checkpointer import rng_state
from unfoldldm_basicsr.training.interruption import stop_request
from unfoldldm_basicsr.training.progress import progress
from unfoldldm_basicsr.training.validation_report import ImageResult, averages, unusual_values


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
    model.net_g.norm.running_mean = torch.full_like(net['norm.running_mean'], 9)
    steps(model, 2, 3)
    assert model.net_g_ema.norm.running_mean.min() > 5, 'replaced in a forward pass, too'
    assert torch.equal(model.net_g_ema.teacher.weight, before['teacher.weight'])
    assert torch.equal(model.net_g_ema.teacher.bias, before['teacher.bias'] + 1)


def test_validation_averages_images_and_lists_degradations(make, log, tmp_path):
    model, pictures, values = make(), Pictures(5, names=('noise', 'blur')), []
    board = Board()
    means = validate(model, pictures, 7, tb_logger=board)
    for item in map(pictures.__getitem__, range(5)):
        with torch.no_grad():
            images = [model.net_g_ema(item['lq'][None])[0], item['gt']]
        eight_bit = [(image.clamp(0, 1) * 255).round().double() for image in images]
        mse = (eight_bit[0] - eight_bit[1]).square().mean()
        values.append(float(20 * math.log10(255) - 10 * mse.log10()))
    assert means['psnr'] == pytest.approx(np.mean(values), rel=1e-6)
    assert model.best_metric_results['held_out']['psnr']['iter'] == 7
    noise, blur = np.mean(values[::2]), np.mean(values[1::2])
    expected = [('noise', '3', noise), ('blur', '2', blur), ('average', '5', (noise + blur) / 2)]
    rows = [line.split() for line in log.text.splitlines()]
    written = [list(row.values()) for row in csv_rows(tmp_path / 'validation_held_out.csv')]
    for (name, count, value), row in zip(expected, written, strict=True):
        assert [name, count, f'{value:.4f}'] in rows
        assert row == ['7', name, count, f'{value:.4f}']
        assert board[f'metrics/held_out/{name}/psnr'] == pytest.approx(value)


def test_validation_leaves_random_numbers_and_training_mode_alone(make):
    model, before = make(), rng_state()
    validate(model)
    after = rng_state()
    assert torch.equal(after.pop('torch'), before.pop('torch'))
    assert after == before
    assert model.net_g.training
    assert not model.net_g_ema.training


@pytest.mark.parametrize(('val_freq', 'wanted'), [(2, [4]), (3, [3, 4])])
def test_the_end_of_a_training_is_validated_once(tmp_path, val_freq, wanted):
    options = put(model_options(tmp_path, TWO_GROUPS, total_iter=4), 'val.val_freq', val_freq)
    model = RestorationModel(options)
    for iteration in (wanted[0], 5):  # as BasicSR's trainer calls it
        validate(model, iteration=iteration)
    assert [int(r['iteration']) for r in csv_rows(tmp_path / 'validation_held_out.csv')] == wanted


def test_validation_without_truth_saves_images_and_computes_nothing(make, tmp_path):
    pictures = Pictures(2, with_gt=False, names=('noise', 'blur'))
    assert validate(make(), pictures, 3, save_img=True) == {}
    saved = {p.name for p in (tmp_path / 'visualization').rglob('*.png')}
    assert saved == {'p0_noise_3.png', 'p1_blur_3.png'}


def test_an_undefined_score_is_named_and_never_the_best_and_an_infinite_one_is_left_out(make, log):
    model = make()
    model.net_g_ema.restore.weight.data.fill_(math.nan)
    assert math.isnan(validate(model, iteration=3)['psnr'])
    assert 'undefined (so is the mean) for 2 of 2 images: p0, p1.' in log.text
    best = {'better': 'higher', 'val': -math.inf, 'iter': -1}
    assert model.best_metric_results['held_out']['psnr'] == best
    results = [ImageResult(0, 'p', None, {'psnr': v}) for v in (30.0, math.inf)]
    assert averages([*results, ImageResult(1, 'without truth', None)]) == {'psnr': 30.0}
    (said,) = unusual_values([ImageResult(0, f'p{i}', None, {'psnr': math.nan}) for i in range(6)])
    assert said.endswith(' for 6 of 6 images: p0, p1, p2, p3, p4 ....')


def tile(model, size: int, overlap: int) -> None:
    model.run.val = model.run.val.model_copy(update={'tile': size, 'tile_overlap': overlap})


def test_a_tile_that_is_a_share_of_the_image_overlaps_by_less_than_half(make, monkeypatch):
    monkeypatch.setattr(networks, 'restore_in_tiles', lambda *_, **settings: settings)
    model = make()
    tile(model, 0.5, 32)
    found = model.restore({'lq': torch.rand(1, 3, 20, 33)}).output
    assert found == {'tile': 17, 'overlap': 17 // 2 - 1}


def test_a_model_shows_its_images_as_those_of_basicsr_do(make):
    model = make()
    model.feed_data(batch(size=2))
    model.test()
    shown = model.get_current_visuals()
    assert [*shown] == ['lq', 'result', 'gt']
    assert shown['result'].shape == shown['gt'].shape


class Twice(TinyConvNet):
    """Returns a coarse and a fine result, as networks of NAFNet's trainer may."""

    def forward(self, lq):
        return [lq * 0, super().forward(lq)]


def test_of_several_outputs_all_are_compared_and_the_last_is_the_result(make, monkeypatch):
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'Twice', Twice)
    one, two = make({'type': 'TinyConvNet'}), make({'type': 'Twice'})
    batch = {'lq': torch.rand(2, 3, 16, 16), 'gt': torch.rand(2, 3, 16, 16)}
    first, second = (float(m.compute_losses(batch, 1)[0]['l_pix'].detach()) for m in (one, two))
    assert second == pytest.approx(first + float(batch['gt'].mean()))
    assert torch.equal(one.restore(batch).output, two.restore(batch).output)
    result = Restorer(two.net_g).restore_tensor(batch['lq'][:1])
    assert torch.allclose(result, two.restore(batch).output[:1], atol=1e-6)


def test_tiles_that_change_results_are_warned_of_once(make, log):
    model, data = make(), {'lq': torch.rand(1, 3, 40, 52)}
    tile(model, 32, 16)
    model.restore(data)
    model.net_g_ema.tiling_changes_result = True
    model.restore({'lq': data['lq'][..., :32, :32]})  # fits into a tile
    assert 'Tiles change the results' not in log.text
    for _ in range(2):
        model.restore(data)
    assert log.text.count('Tiles change the results') == 1


@pytest.mark.parametrize('size', [(40, 52), (33, 20)])
def test_tiled_validation_is_what_restore_gives_with_tiles(tmp_path, size):
    model = RestorationModel(model_options(tmp_path, tiny_unfoldldm('joint')))
    for p in model.net_g_ema.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    tile(model, 33, 8)  # aligned: 32
    lq = torch.rand(1, 3, *size)
    output = model.restore({'lq': lq}).output
    tiles = {'device': 'cpu', 'tile': 33, 'tile_overlap': 8}
    restored = {
        shared: Restorer(model.net_g_ema, global_statistics=shared, **tiles).restore_tensor(lq)
        for shared in (True, False)
    }
    assert torch.equal(output, restored[True])
    assert torch.equal(restored[False], restored[True]) is (max(size) <= 33)


def test_stage_table_is_written_for_networks_with_stages(tmp_path):
    options = model_options(tmp_path, tiny_unfoldldm('joint'))
    options['val']['trace'] = True
    means = validate(RestorationModel(options), iteration=5)
    rows = csv_rows(tmp_path / 'stage_psnr_held_out.csv')
    found = [(r['iteration'], r['image'], r['stage']) for r in rows]
    assert found == [('5', image, stage) for image in ('p0', 'p1') for stage in '12']
    mean = np.mean([float(r['psnr']) for r in rows if r['stage'] == '2'])
    assert mean == pytest.approx(means['psnr'], abs=0.05)  # 8-bit against float


@pytest.mark.parametrize('is_train', [True, False])
def test_trainings_on_the_cpu_keep_freed_memory(is_train, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(restoration_model, 'keep_freed_memory', lambda: asked.append(True))
    RestorationModel(model_options(tmp_path, TWO_GROUPS, is_train=is_train))
    assert asked == [True] * is_train


def test_a_test_refuses_weights_of_another_network(make, tmp_path):
    make(NORMED).save(0, 1)
    options = model_options(tmp_path, TWO_GROUPS, is_train=False)
    options['path']['pretrain_network_g'] = path = str(tmp_path / 'models' / 'net_g_1.pth')
    with pytest.raises(ValueError, match=r'5 unknown to the network .first norm'):
        RestorationModel(options)
    options['path']['strict_load_g'] = False  # all of this network's weights are there
    assert RestorationModel(options).net_g is not None
    with pytest.raises(ValueError, match="Did you mean 'params_ema'"):
        RestorationModel(put(options, 'path.param_key_g', 'params_emma'))
    file = torch.load(path, weights_only=True)
    torch.save({'params': file['params']}, path)  # taken, as BasicSR does
    assert RestorationModel(put(options, 'path.param_key_g', 'params_ema')).net_g is not None
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
    options = model_options(tmp_path, TWO_GROUPS, is_train=False)
    options['path']['pretrain_network_g'] = file_of(model, 'g_2')
    lq = batch()['lq']
    with torch.no_grad():
        raw, average = model.net_g.eval()(lq), model.net_g_ema(lq)
        assert not torch.equal(raw, average)
        assert torch.equal(RestorationModel(options).net_g(lq), average)
        assert torch.equal(SRModel(options).net_g(lq), raw)
        options['path']['param_key_g'] = 'params_ema'
        assert torch.equal(SRModel(options).net_g(lq), average)


def test_signals_are_given_back_however_a_training_ends(monkeypatch):
    def trains(root):
        stop_request.install()
        assert signal.getsignal(signal.SIGINT) != mine
        raise SystemExit(130)

    mine = signal.default_int_handler
    before = signal.signal(signal.SIGINT, mine)
    monkeypatch.setattr(basicsr.train.train_pipeline, 'replaces', trains)
    with pytest.raises(SystemExit):
        basicsr.train.train_pipeline('.')
    assert signal.signal(signal.SIGINT, before) == mine


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


def test_a_signal_that_the_parent_ignores_stays_ignored():
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop_request.install()
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


@pytest.mark.parametrize(('iteration', 'epoch'), [(3, 0), (4, 1)])
def test_a_stop_in_the_middle_of_an_epoch_saves_the_epoch(tmp_path, iteration, epoch):
    model = begin(tmp_path)
    progress.steps_per_epoch = 3
    with pytest.raises(SystemExit):
        model.checkpointer.save_and_stop(iteration)
    state = torch.load(state_file(tmp_path, iteration), weights_only=True)
    assert (state['epoch'], state['iter']) == (epoch, iteration)


class Interrupting(Pictures):
    """Somebody stops the run while the first picture is read."""

    def __getitem__(self, index):
        self.read = [*getattr(self, 'read', []), index]
        os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(index)


def test_a_signal_in_a_validation_does_not_wait_for_its_end(tmp_path):
    model, pictures = begin(tmp_path), Interrupting()
    model.save(0, 2)
    model.checkpointer.note_validation('before', 2, {})
    with pytest.raises(SystemExit) as stop:
        validate(model, pictures, 2)
    assert stop.value.code == 128 + signal.SIGTERM
    assert pictures.read == [0]
    manifest = json.loads((tmp_path / 'states' / '2.state.json').read_text())
    assert manifest['validated'] == ['before']  # so that resuming makes up for the other
    assert not list(tmp_path.rglob('validation_*.csv')), 'part of a set has no averages'
    assert not model.best_metric_results
    assert found_in(tmp_path) == 2


def test_skipped_steps_are_counted_on_where_it_stopped(tmp_path):
    model = begin(tmp_path, max_nonfinite=3)
    model.step.skipped = {'total': 7, 'in_a_row': 2}
    model.save(0, 1)
    again = go_on(options_of(tmp_path, max_nonfinite=3))
    assert again.step.skipped == {'total': 7, 'in_a_row': 2}
    with pytest.raises(failures.RunFailure, match='3 iterations in a row'):
        steps(again, 2, data=spoilt())


@pytest.mark.parametrize('world', [1, 2])
def test_the_loss_of_another_process_is_explained_and_nothing_else(monkeypatch, world):
    distributed = torch.distributed
    monkeypatch.setattr(distributed, 'is_initialized', lambda: world > 1)
    monkeypatch.setattr(distributed, 'get_rank', lambda: 1)
    message = failures.explain(RuntimeError('[pair.cc:534] Connection closed by peer [127.0.0.1]'))
    start = 'rank 1: another process of this run is gone ([pair.cc:534]'
    assert message is None if world == 1 else message.startswith(start)
    assert failures.explain(RuntimeError('shape mismatch')) is None
    assert failures.explain(FileNotFoundError(2, 'No such file', 'x.py')) is None
    full = failures.explain(OSError(28, 'No space left on device', 'events.out'))
    assert full.startswith('cannot write (events.out): No space left on device.')
    assert 'vgg19-dcbb9e9d.pth' in failures.explain(URLError('no network'))
    killed = 'DataLoader worker (pid 7) is killed by signal: Killed. '
    assert 'num_worker_per_gpu' in failures.explain(RuntimeError(killed))


@pytest.mark.parametrize(
    ('kind', 'rank', 'said'),
    [(OutputWriteError, 0, True), (OutputWriteError, 1, False), (DataFault, 1, True)],
)
def test_a_run_ends_with_the_message_alone_of_rank_0_for_all_but_failures_of_one_rank(
    monkeypatch, log, kind, rank, said
):
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: rank > 0)
    monkeypatch.setattr(torch.distributed, 'get_rank', lambda: rank)
    with pytest.raises(SystemExit) as stop:
        failures.run_to_end(Mock(side_effect=kind('x')), '.')
    assert stop.value.code == 1
    assert log.text.strip().endswith('The run has ended: x') is said
