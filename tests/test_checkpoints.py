"""Checkpoints: whole or passed over, never half written; what changed since is said on resuming."""

from __future__ import annotations

import importlib
import json
import math
import os
import pickle
import shutil
import signal
import struct
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import basicsr.train
import pytest
import tiny_network  # noqa: F401  (registers TinyConvNet)
import torch
from helpers import model_options
from torch.utils.data import DataLoader, Dataset

from unfoldldm_basicsr.common import errors as failures
from unfoldldm_basicsr.common.errors import CheckpointWriteError, ResumeError
from unfoldldm_basicsr.models import RestorationModel
from unfoldldm_basicsr.options.parse import Start
from unfoldldm_basicsr.training import checkpointer
from unfoldldm_basicsr.training import resume as resume_state
from unfoldldm_basicsr.training.interruption import stop_request
from unfoldldm_basicsr.training.progress import progress
from unfoldldm_basicsr.training.resume import (
    option_digest,
    report_changes,
    run_options,
    set_newer_aside,
)

NET = {'type': 'TinyConvNet'}
STEP_LR = {'type': 'MultiStepLR', 'milestones': [1000]}
ADAMW = {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.0}


class Pictures(Dataset):
    opt = {'name': 'held_out'}

    def __len__(self):
        return 2

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        lq, gt = torch.rand(2, 3, 16, 16, generator=generator)
        return {'lq': lq, 'gt': gt, 'lq_path': f'p{index}.png'}


def options_of(folder: Path, network: dict = NET, **train) -> dict:
    options = model_options(folder, dict(network), **train)
    options['auto_resume'] = True
    options['path']['experiments_root'] = str(folder)
    return options


def begin(folder: Path, **train) -> RestorationModel:
    torch.manual_seed(0)
    return RestorationModel(options_of(folder, **train))


def step(model: RestorationModel, iterations) -> None:
    for iteration in iterations:
        generator = torch.Generator().manual_seed(iteration)
        lq, gt = torch.rand(2, 2, 3, 12, 12, generator=generator)
        model.update_learning_rate(iteration)
        model.feed_data({'lq': lq, 'gt': gt, 'lq_path': ['a', 'b']})
        model.optimize_parameters(iteration)


def resume(folder: Path, network: dict = NET, **train) -> tuple[RestorationModel, dict]:
    """A model that goes on from the newest whole checkpoint, and the state."""
    options = options_of(folder, network, **train)
    state = basicsr.train.load_resume_state(options)
    model = RestorationModel(options)
    model.resume_training(state)
    return model, state


@pytest.fixture
def two(tmp_path) -> Path:
    """A folder with the checkpoints 2 and 4."""
    model = begin(tmp_path)
    for iteration in range(1, 5):
        step(model, [iteration])
        if iteration % 2 == 0:
            model.save(0, iteration)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for part in ('models', 'states') for path in (folder / part).iterdir())


# ---- whole or passed over -----------------------------------------------------------------------


def flip(path: Path) -> None:
    """Inverts one bit of a number in an archive of torch, or of the middle of another file."""
    content, place = bytearray(path.read_bytes()), path.stat().st_size // 2
    if path.suffix != '.json':
        with zipfile.ZipFile(path) as archive:
            record = next(r for r in archive.infolist() if r.filename.endswith('data/0'))
        names = struct.unpack('<HH', content[record.header_offset + 26 : record.header_offset + 30])
        place = record.header_offset + 30 + sum(names)
    content[place] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = {
    'cut': lambda path: os.truncate(path, path.stat().st_size - 1),
    'halved': lambda path: os.truncate(path, path.stat().st_size // 2),
    'emptied': lambda path: os.truncate(path, 0),
    'flipped': flip,
    'removed': lambda path: path.unlink(),
}


@pytest.mark.parametrize('damage', DAMAGES)
@pytest.mark.parametrize('file', ['models/net_g_4.pth', 'states/4.state', 'states/4.state.json'])
def test_damage_to_any_file_of_a_checkpoint_is_found_and_named(two, file, damage, log):
    DAMAGES[damage](two / file)
    found = basicsr.train.load_resume_state(options_of(two))
    if damage == 'removed' and file.endswith('.json'):  # as plain BasicSR writes checkpoints
        assert found['iter'] == 4
    elif damage == 'flipped' and file.endswith('.json'):  # a space or a figure: mostly refused
        assert found['iter'] in (2, 4)
    else:
        assert found['iter'] == 2
    if found['iter'] == 2 and (file, damage) != ('states/4.state', 'removed'):
        assert 'passing over' in log.text
        assert '4.state ' in log.text
        if damage != 'flipped' or not file.endswith('.json'):  # a figure of another file's line
            assert Path(file).name in log.text


@pytest.mark.parametrize('file', ['models/net_g_4.pth', 'states/4.state'])
def test_a_flipped_bit_is_found_without_a_list_of_check_sums_too(two, file):
    (two / 'states' / '4.state.json').unlink()
    flip(two / file)
    assert basicsr.train.load_resume_state(options_of(two))['iter'] == 2


@pytest.mark.parametrize('listed', [True, False])
def test_a_named_state_is_verified_as_well(two, listed):
    options = options_of(two) | {'auto_resume': False}
    options['path']['resume_state'] = str(two / 'states' / '4.state')
    flip(two / 'models' / 'net_g_4.pth')
    fault = r'is damaged: .*models/net_g_4\.pth is not what was'
    if not listed:
        (two / 'states' / '4.state.json').unlink()
    with pytest.raises(
        ResumeError, match=rf'^path\.resume_state: .*4\.state {fault}.* Name an older state\.$'
    ):
        basicsr.train.load_resume_state(options)


def test_a_moved_experiment_is_still_whole(two, tmp_path_factory):
    moved = tmp_path_factory.mktemp('moved') / 'x'
    shutil.move(two, moved)
    assert basicsr.train.load_resume_state(options_of(moved))['iter'] == 4


def test_killed_before_the_list_is_written_the_checkpoint_still_counts(two):
    (two / 'states' / '4.state.json').rename(two / 'states' / '.4.state.json.77.tmp')
    model, state = resume(two)
    assert state['iter'] == 4
    assert '.4.state.json.77.tmp' not in names(two)
    assert model.step.guard.total == 0


# ---- disk full ----------------------------------------------------------------------------------


@pytest.mark.parametrize('room', [0, 3000, 14000, 10**9], ids=['none', 'half', 'one file', 'all'])
def test_a_full_disk_stops_with_one_message_and_keeps_the_last_checkpoint(two, room, monkeypatch):
    model, _ = resume(two)
    step(model, [5])
    before, left, write = names(two), [room], checkpointer._HashedFile.write

    def limited(self, data):
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(28, 'No space left on device')
        return write(self, data)

    monkeypatch.setattr(checkpointer._HashedFile, 'write', limited)
    if room == 10**9:
        model.save(1, 5)
        assert set(names(two)) - set(before) == {'net_g_5.pth', '5.state', '5.state.json'}
        return
    with pytest.raises(CheckpointWriteError, match=r'No space left on device.*--auto_resume') as e:
        model.save(1, 5)
    assert '\n' not in str(e.value)
    assert names(two) == before
    assert basicsr.train.load_resume_state(options_of(two))['iter'] == 4


def refuses(self, data):
    raise RuntimeError('CUDA error: an illegal memory access was encountered')


@pytest.mark.parametrize('fault', ['content', 'device'])
def test_an_error_that_is_not_of_the_disk_stays_what_it_is(two, fault, monkeypatch):
    model, _ = resume(two)
    step(model, [5])
    before = names(two)
    if fault == 'content':
        monkeypatch.setattr(model.checkpointer, 'state', lambda: {'options': lambda: None})
        expected = pytest.raises((pickle.PicklingError, AttributeError), match='lambda')
    else:
        monkeypatch.setattr(checkpointer._HashedFile, 'write', refuses)
        expected = pytest.raises(RuntimeError, match='illegal memory access')
    with expected as caught:
        model.save(1, 5)
    assert not isinstance(caught.value, CheckpointWriteError)
    assert names(two) == before  # the weights of 5 and every temporary file are gone


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / 'disk'
    place.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip('mounting needs root')
    yield place
    subprocess.run(['umount', str(place)], check=True)


@pytest.mark.faults
def test_a_disk_that_is_really_full(small_disk):
    model, saved = begin(small_disk), []

    def train_on() -> None:
        for iteration in range(1, 50):
            step(model, [iteration])
            model.save(0, iteration)
            saved.append(iteration)

    with pytest.raises(CheckpointWriteError, match='No space left on device'):
        train_on()
    whole, state = resume(small_disk)
    assert state['iter'] == saved[-1]
    assert not [name for name in names(small_disk) if name.endswith('.tmp')]
    stop_request.remove()
    assert whole.step.guard.total == 0


# ---- the checkpoint of another run ---------------------------------------------------------------


def named(folder: Path, state: Path) -> dict:
    """Options of a run in ``folder`` that goes on from a state."""
    options = options_of(folder) | {'auto_resume': False}
    options['path']['resume_state'] = str(state)
    return options


def test_a_state_brings_its_own_weights_whatever_the_run_is_called(two, tmp_path_factory):
    other = tmp_path_factory.mktemp('other')
    model = begin(other)  # has a checkpoint of the same number
    step(model, range(1, 8))
    model.save(0, 4)
    before = (other / 'models' / 'net_g_4.pth').read_bytes()
    options = named(other, two / 'states' / '4.state')
    basicsr.train.load_resume_state(options)
    assert options['path']['pretrain_network_g'] == str(two / 'models' / 'net_g_4.pth')
    model = RestorationModel(options)
    saved = torch.load(two / 'models' / 'net_g_4.pth', weights_only=True)
    for key, nets in (('params', model.net_g), ('params_ema', model.net_g_ema)):
        state = nets.state_dict()
        assert all(torch.equal(state[k], v) for k, v in saved[key].items())
    assert (other / 'models' / 'net_g_4.pth').read_bytes() == before


@pytest.mark.parametrize('listed', [True, False])
def test_a_state_beside_the_weights_of_another_run_is_refused_with_both_names(
    two, tmp_path_factory, listed
):
    other = tmp_path_factory.mktemp('other')
    model = begin(other)
    step(model, range(1, 8))
    model.save(0, 4)
    for name in ('4.state', '4.state.json')[: 1 + listed]:
        shutil.copy(two / 'states' / name, other / 'states' / name)
    if not listed:
        (other / 'states' / '4.state.json').unlink()
    state, weights = other / 'states' / '4.state', other / 'models' / 'net_g_4.pth'
    with pytest.raises(ResumeError) as caught:
        basicsr.train.load_resume_state(named(other, state))
    assert str(state) in str(caught.value)
    assert str(weights) in str(caught.value)
    assert 'is not what was written with it' in str(caught.value)


# ---- another continuation ------------------------------------------------------------------------


def restart(folder: Path, iteration: int) -> RestorationModel:
    """Goes on from a named state, as the trainer does it."""
    options = options_of(folder) | {'auto_resume': False}
    options['path']['resume_state'] = str(folder / 'states' / f'{iteration}.state')
    state = basicsr.train.load_resume_state(options)
    set_newer_aside(options, state['iter'])
    model = RestorationModel(options)
    model.resume_training(state)
    return model


def test_newer_checkpoints_of_another_continuation_are_set_aside(two, log):
    model = restart(two, 2)
    step(model, [3])
    model.save(0, 3)
    assert basicsr.train.load_resume_state(options_of(two))['iter'] == 3
    assert names(two) == [
        '2.state', '2.state.json', '3.state', '3.state.json', 'net_g_2.pth', 'net_g_3.pth'
    ]  # fmt: skip
    (aside,) = two.glob('set_aside_*')
    assert sorted(p.name for p in aside.rglob('*') if p.is_file()) == [
        '4.state', '4.state.json', 'net_g_4.pth'
    ]  # fmt: skip
    messages = [r.getMessage() for r in log.records if 'another continuation' in r.getMessage()]
    assert len(messages) == 1
    assert 'checkpoints 4 are' in messages[0]
    assert str(aside) in messages[0]
    for path in aside.rglob('*.*'):  # moved back, it is whole again
        path.rename(two / path.parent.name / path.name)
    assert basicsr.train.load_resume_state(options_of(two))['iter'] == 4


def test_going_on_from_the_newest_checkpoint_moves_nothing(two, log):
    restart(two, 4)
    assert not list(two.glob('set_aside_*'))
    assert 'another continuation' not in log.text


@pytest.mark.parametrize('moved', range(1, 6))
def test_killed_while_setting_aside_no_checkpoint_is_half(two, moved, monkeypatch):
    model, _ = resume(two)
    step(model, [5])
    model.save(1, 5)
    replace, left = os.replace, [moved]

    def replace_or_die(*paths):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(os, 'replace', replace_or_die)
    with pytest.raises(KeyboardInterrupt):
        restart(two, 2)
    monkeypatch.setattr(os, 'replace', replace)
    assert basicsr.train.load_resume_state(options_of(two))['iter'] in (2, 5)
    restart(two, 2)
    assert basicsr.train.load_resume_state(options_of(two))['iter'] == 2
    assert len([p for f in two.glob('set_aside_*') for p in f.rglob('*.*')]) == 6


def test_retention_never_removes_the_checkpoint_just_written(two):
    for iteration in (40, 50):  # left behind by another continuation
        for file in ('states/{}.state', 'models/net_g_{}.pth'):
            (two / file.format(iteration)).touch()
    model = begin(two)
    model.checkpointer.keep = 1
    step(model, [1])
    model.save(0, 15)
    assert names(two) == [
        '15.state', '15.state.json', '40.state', '50.state',
        'net_g_15.pth', 'net_g_40.pth', 'net_g_50.pth',
    ]  # fmt: skip


def test_a_checkpoint_that_vanished_ends_no_training(two, monkeypatch):
    model, _ = resume(two)
    model.checkpointer.keep = 1
    monkeypatch.setattr(checkpointer, 'iterations_of', lambda states: [1, 2, 4, 5])
    model.save(0, 5)
    assert names(two) == ['5.state', '5.state.json', 'net_g_5.pth']


# ---- the best -----------------------------------------------------------------------------------


def validate(model: RestorationModel, iteration: int) -> float:
    model.validation(DataLoader(Pictures()), iteration, None, save_img=False)
    return model.metric_results['psnr']


def test_the_best_weights_are_kept_and_worse_ones_do_not_replace_them(tmp_path):
    model = begin(tmp_path)
    model.run.logger = model.run.logger.model_copy(update={'keep_best': True})
    best = tmp_path / 'models' / 'net_g_best_psnr.pth'
    step(model, range(1, 4))
    good = validate(model, 3)
    kept = best.read_bytes()
    for parameter in model.net_g_ema.parameters():
        parameter.data.add_(0.5)
    assert validate(model, 4) < good
    assert best.read_bytes() == kept
    weights = torch.load(best, weights_only=True)
    assert set(weights) >= {'params', 'params_ema', 'arch'}
    assert model.best_metric_results['held_out']['psnr']['iter'] == 3


def test_no_best_weights_without_being_asked(tmp_path):
    model = begin(tmp_path)
    step(model, [1])
    validate(model, 1)
    assert names(tmp_path) == []


def test_a_resumed_run_knows_the_best_of_the_validation_after_its_checkpoint(tmp_path):
    model = begin(tmp_path)
    step(model, [1, 2])
    model.save(0, 2)  # BasicSR's order: first save, then validate
    score = validate(model, 2)
    stop_request.remove()
    again, state = resume(tmp_path)
    assert again.best_metric_results['held_out']['psnr'] == {
        'better': 'higher', 'val': score, 'iter': 2
    }  # fmt: skip
    assert state['manifest']['validated'] == ['held_out']


@pytest.mark.parametrize('cut_off', [True, False])
def test_a_validation_that_was_cut_off_is_made_up_for(tmp_path, cut_off, monkeypatch):
    model = begin(tmp_path)
    step(model, [1, 2])
    model.save(0, 2)
    if not cut_off:
        validate(model, 2)
    stop_request.remove()
    options = options_of(tmp_path)
    options['val']['val_freq'] = 2
    state = basicsr.train.load_resume_state(options)
    progress.val_loaders = [DataLoader(Pictures())]
    again, done = RestorationModel(options), []
    original = again.validation
    monkeypatch.setattr(again, 'validation', lambda *a, **k: (done.append(a[1]), original(*a, **k)))
    again.resume_training(state)
    assert done == ([2] if cut_off else [])
    assert again.best_metric_results['held_out']['psnr']['iter'] == 2
    manifest = json.loads((tmp_path / 'states' / '2.state.json').read_text())
    assert manifest['validated'] == ['held_out']


# ---- changed options ----------------------------------------------------------------------------


def rates(model: RestorationModel, iterations) -> list[float]:
    found = []
    for iteration in iterations:
        step(model, [iteration])
        found.append(model.get_current_learning_rate()[0])
    return found


CHANGES = {
    'lr': {'optim_g': {**ADAMW, 'lr': 5e-4}},
    'milestones': {'scheduler': {'type': 'MultiStepLR', 'milestones': [5], 'gamma': 0.1}},
    'schedule': {'scheduler': {'type': 'TrueCosineAnnealingLR', 'T_max': 20}},
    'warm-up': {'warmup_iter': 8},
}


@pytest.mark.parametrize('change', CHANGES)
def test_a_new_schedule_is_reported_and_applied_only_when_asked(two, tmp_path, log, change):
    changes = CHANGES[change]
    old = rates(begin(tmp_path / 'old'), range(1, 8))
    new = rates(begin(tmp_path / 'new', **changes), range(1, 8))
    assert old[4:] != new[4:]
    kept, _ = resume(two, **changes)
    assert rates(kept, range(5, 8)) == old[4:]
    assert 'in the option file, but the resumed state was made with' in log.text
    assert 'Set train.apply_new_schedule: true to apply the new value.' in log.text
    log.clear()
    kept.save(2, 7)  # what is kept now is kept at the next start too
    again, _ = resume(two, **changes)
    assert rates(again, [8]) == rates_after(tmp_path / 'old8', 8)
    (two / 'states' / '7.state').unlink()
    log.clear()
    applied, _ = resume(two, **changes, apply_new_schedule=True)
    assert rates(applied, range(5, 8)) == new[4:]
    assert 'the new value applies from here on.' in log.text


def rates_after(folder: Path, iteration: int) -> list[float]:
    return rates(begin(folder), range(1, iteration + 1))[-1:]


def test_asking_for_the_new_schedule_without_a_change_keeps_the_bits(two, tmp_path):
    whole = begin(tmp_path / 'whole', apply_new_schedule=True)
    step(whole, range(1, 8))
    again, _ = resume(two, apply_new_schedule=True)
    step(again, range(5, 8))
    for own, other in zip(whole.net_g.parameters(), again.net_g.parameters(), strict=True):
        assert torch.equal(own, other)


def test_another_optimiser_is_refused(two):
    with pytest.raises(ResumeError, match=r'train\.optim_g\.type is SGD .* made with AdamW'):
        resume(two, optim_g={'type': 'SGD', 'lr': 1e-3}, apply_new_schedule=True)


def test_a_kept_schedule_must_reach_the_new_end(tmp_path):
    periods = {'type': 'CosineAnnealingRestartLR', 'periods': [100], 'restart_weights': [1]}
    model = begin(tmp_path, scheduler=periods)
    step(model, [1])
    model.save(0, 1)
    longer = {**periods, 'periods': [200]}
    with pytest.raises(ResumeError, match=r'total_iter is 200 now.*apply_new_schedule: true'):
        resume(tmp_path, total_iter=200, scheduler=longer)
    model, _ = resume(tmp_path, total_iter=200, scheduler=longer, apply_new_schedule=True)
    assert model.schedulers[0].periods == [200]


def test_another_network_is_refused_before_anything_is_built(two):
    with pytest.raises(ResumeError, match=r'network_g\.dim is 6 in the option file and not set'):
        basicsr.train.load_resume_state(options_of(two, {**NET, 'dim': 6}))


def test_a_resumed_run_may_begin_to_save_memory(two):
    network = {**NET, 'use_checkpoint': True}
    assert basicsr.train.load_resume_state(options_of(two, network))['iter'] == 4


def test_other_options_are_named_in_one_sentence_each(two, log):
    options = options_of(two, ema_decay=0.99, total_iter=120)
    options['manual_seed'] = 9
    basicsr.train.load_resume_state(options)
    messages = report_changes(options, progress.resumed.state)
    assert [message.split()[0] for message in messages] == [
        'manual_seed', 'train.total_iter', 'train.ema_decay'
    ]  # fmt: skip
    assert 'train.ema_decay is 0.99 now, but the resumed state was made with 0.9' in log.text
    assert 'the new value is used from iteration 5 on.' in messages[0]


def test_where_data_lie_and_how_they_are_loaded_is_no_change(tmp_path):
    def digest(**data) -> str:
        options = options_of(tmp_path)
        options['datasets'] = {'train': {'gt_size': 16, 'dataroot_gt': 'a', **data}}
        return option_digest(run_options(options))

    assert digest() == digest(dataroot_gt='b') == digest(num_worker_per_gpu=3, timeout=5)
    assert digest() != digest(gt_size=17)
    assert digest(sets=[{'dataroot_gt': 'a', 'repeat': 1}]) == digest(
        sets=[{'dataroot_gt': 'b', 'repeat': 1}]
    )
    assert digest(sets=[{'repeat': 1}]) != digest(sets=[{'repeat': 2}])


@pytest.mark.parametrize(('drawn', 'seed'), [(True, 3), (False, 77)])
def test_a_run_without_a_seed_of_its_own_keeps_the_one_it_drew(two, monkeypatch, drawn, seed):
    monkeypatch.setattr(resume_state, 'start', lambda: Start(seed_drawn=drawn))
    options = options_of(two) | {'manual_seed': 77}
    basicsr.train.load_resume_state(options)
    assert options['manual_seed'] == seed


# ---- ends of a run ------------------------------------------------------------------------------


@pytest.mark.parametrize(('iteration', 'epoch'), [(1, 0), (3, 0), (4, 1)])
def test_a_stop_in_the_middle_of_an_epoch_saves_the_epoch(tmp_path, iteration, epoch):
    model = begin(tmp_path)
    progress.steps_per_epoch = 3
    step(model, [1])
    with pytest.raises(SystemExit):
        model.checkpointer.save_and_stop(iteration)
    state = torch.load(tmp_path / 'states' / f'{iteration}.state', weights_only=True)
    assert (state['epoch'], state['iter']) == (epoch, iteration)


class Interrupting(Pictures):
    """Somebody stops the run while the first picture is read."""

    def __init__(self):
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(index)


def test_a_signal_in_a_validation_does_not_wait_for_its_end(tmp_path):
    model, pictures = begin(tmp_path), Interrupting()
    step(model, [1, 2])
    with pytest.raises(SystemExit) as stop:
        model.validation(DataLoader(pictures), 2, None, save_img=False)
    assert stop.value.code == 128 + signal.SIGTERM
    assert pictures.read == [0]
    manifest = json.loads((tmp_path / 'states' / '2.state.json').read_text())
    assert manifest['validated'] == []  # so that resuming makes up for it
    assert not list(tmp_path.rglob('validation_*.csv')), 'part of a set has no averages'
    assert not getattr(model, 'best_metric_results', {})
    assert basicsr.train.load_resume_state(options_of(tmp_path))['iter'] == 2


def test_the_guard_goes_on_counting_where_it_stopped(tmp_path):
    model = begin(tmp_path, max_nonfinite=3)
    step(model, [1])
    model.step.guard.total, model.step.guard.in_a_row = 7, 2
    model.save(0, 1)
    again, _ = resume(tmp_path, max_nonfinite=3)
    assert (again.step.guard.total, again.step.guard.in_a_row) == (7, 2)
    lq = torch.full((2, 3, 12, 12), math.nan)
    again.update_learning_rate(2)
    again.feed_data({'lq': lq, 'gt': lq, 'lq_path': ['a', 'b']})
    with pytest.raises(failures.RunFailure, match='3 iterations in a row'):
        again.optimize_parameters(2)


@pytest.mark.parametrize('world', [1, 2])
def test_the_loss_of_another_process_is_explained_and_nothing_else(monkeypatch, world):
    distributed = torch.distributed
    monkeypatch.setattr(distributed, 'is_initialized', lambda: world > 1)
    monkeypatch.setattr(distributed, 'get_rank', lambda: 1)
    lost = RuntimeError('[pair.cc:534] Connection closed by peer [127.0.0.1]:1234')
    message = failures.explain(lost)
    if world == 1:
        assert message is None
    else:
        assert message.startswith('rank 1: another process of this run is gone ([pair.cc:534]')
    assert failures.explain(RuntimeError('shape mismatch')) is None
    assert failures.explain(FileNotFoundError(2, 'No such file', 'x.py')) is None
    full = failures.explain(OSError(28, 'No space left on device', 'events.out'))
    assert full.startswith('cannot write (events.out): No space left on device.')
    killed = 'DataLoader worker (pid 7) is killed by signal: Killed. '
    assert 'num_worker_per_gpu' in failures.explain(RuntimeError(killed))


@pytest.mark.parametrize('program', ['train', 'test'])
def test_the_program_ends_with_the_message_alone(monkeypatch, log, program):
    def fail(root):
        raise CheckpointWriteError('cannot write x: disk full.')

    entry = importlib.import_module(f'unfoldldm_basicsr.{program}')
    stock = importlib.import_module(f'basicsr.{program}')
    monkeypatch.setattr(stock, f'{program}_pipeline', fail)
    with pytest.raises(SystemExit) as stop:
        entry.main(['-opt', 'x.yml'])
    assert stop.value.code == 1
    assert log.text.strip().endswith('The run has ended: cannot write x: disk full.')
