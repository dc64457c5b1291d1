"""Checkpoints: whole or passed over, never half written; what changed since is said on resuming."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import shutil
import signal
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import basicsr.train
import pytest
import torch
from helpers import Attack, model_options
from model_runs import Pictures, changed, spoilt, steps, validate
from torch.utils.data import DataLoader

from unfoldldm_basicsr.common import errors as failures
from unfoldldm_basicsr.common import files
from unfoldldm_basicsr.common.errors import CheckpointWriteError, ResumeError
from unfoldldm_basicsr.models import RestorationModel
from unfoldldm_basicsr.options.parse import Start
from unfoldldm_basicsr.training import checkpointer
from unfoldldm_basicsr.training import resume as resume_state
from unfoldldm_basicsr.training.interruption import stop_request
from unfoldldm_basicsr.training.progress import progress
from unfoldldm_basicsr.training.resume import report_changes, run_options, set_newer_aside

NET = {'type': 'TinyConvNet'}
ADAMW = {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.0}


def options_of(folder: Path, network: dict = NET, state: Path | None = None, **train) -> dict:
    """Options of a run that goes on from its newest checkpoint, or from a named state."""
    options = model_options(folder, dict(network), **train)
    options['auto_resume'] = state is None
    options['path'] |= {'experiments_root': str(folder), 'resume_state': state and str(state)}
    return options


def begin(folder: Path, **train) -> RestorationModel:
    torch.manual_seed(0)
    return RestorationModel(options_of(folder, **train))


def go_on(options: dict) -> RestorationModel:
    """A model that goes on as the trainer does it; ``model.state``: from where."""
    state = basicsr.train.load_resume_state(options)
    set_newer_aside(options, state['iter'])
    model = RestorationModel(options)
    model.resume_training(state)
    model.state = state
    return model


def found_in(folder: Path) -> int:
    """Iteration from which a run in the folder would go on."""
    return basicsr.train.load_resume_state(options_of(folder))['iter']


def state_file(folder: Path, iteration: int) -> Path:
    return folder / 'states' / f'{iteration}.state'


def names(folder: Path) -> list[str]:
    return sorted(path.name for part in ('models', 'states') for path in (folder / part).iterdir())


def files_of(*iterations: int) -> list[str]:
    kinds = ('{}.state', '{}.state.json', 'net_g_{}.pth')
    return sorted(kind.format(i) for i in iterations for kind in kinds)


@pytest.fixture(scope='module')
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('written')
    model = begin(folder)
    for iteration in range(1, 5):
        steps(model, iteration)
        if iteration % 2 == 0:
            model.save(0, iteration)
    stop_request.remove()
    return folder


@pytest.fixture
def two(tmp_path, written) -> Path:
    """A folder with the checkpoints 2 and 4."""
    return Path(shutil.copytree(written, tmp_path, dirs_exist_ok=True))


# ---- whole or passed over -----------------------------------------------------------------------


def flip(path: Path) -> None:
    """Inverts one bit of a number in an archive of torch, or of the middle of another file."""
    content, place = bytearray(path.read_bytes()), path.stat().st_size // 2
    if path.suffix != '.json':
        with zipfile.ZipFile(path) as archive:
            record = next(r for r in archive.infolist() if r.filename.endswith('data/0'))
        sizes = struct.unpack('<HH', content[record.header_offset + 26 : record.header_offset + 30])
        place = record.header_offset + 30 + sum(sizes)
    content[place] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], object]] = {
    'cut': lambda path: os.truncate(path, path.stat().st_size - 1),
    'halved': lambda path: os.truncate(path, path.stat().st_size // 2),
    'emptied': lambda path: os.truncate(path, 0),
    'flipped': flip,
    'removed': lambda path: path.unlink(),
    'other content': lambda path: torch.save([1], path),
    'code': lambda path: torch.save({'iter': Attack()}, path),
}
WEIGHTS, STATE, LIST = 'models/net_g_4.pth', 'states/4.state', 'states/4.state.json'


@pytest.mark.parametrize('sums', ['in the list', 'in the state', 'nowhere'])
@pytest.mark.parametrize('damage', DAMAGES)
@pytest.mark.parametrize('file', [WEIGHTS, STATE])
def test_damage_to_any_file_of_a_checkpoint_is_found_and_named(
    two, file, damage, sums, log, monkeypatch
):
    if sums != 'in the list':
        (two / LIST).unlink()
    if sums == 'nowhere':  # as plain BasicSR writes checkpoints
        state = torch.load(two / STATE, weights_only=True)
        torch.save({key: value for key, value in state.items() if key != 'weights'}, two / STATE)
    monkeypatch.chdir(two)
    DAMAGES[damage](two / file)
    if (file, damage, sums) == (WEIGHTS, 'other content', 'nowhere'):
        assert found_in(two) == 4  # a whole file, for the network to refuse
        return
    assert found_in(two) == 2
    assert not (two / 'proof').exists(), 'code in a file was executed'
    if (file, damage) != (STATE, 'removed'):
        assert f'passing over: {two / STATE} ' in log.text
        assert Path(file).name in log.text


@pytest.mark.parametrize('damage', ['cut', 'halved', 'emptied', 'removed'])
def test_a_damaged_list_of_check_sums_is_found_and_a_missing_one_is_done_without(two, damage, log):
    DAMAGES[damage](two / LIST)
    assert found_in(two) == (4 if damage == 'removed' else 2)
    assert ('damaged list of check sums 4.state.json' in log.text) is (damage != 'removed')


@pytest.mark.parametrize('listed', [True, False])
def test_a_named_state_is_verified_as_well(two, listed):
    flip(two / WEIGHTS)
    if not listed:
        (two / LIST).unlink()
    fault = r'^path\.resume_state: .*4\.state is damaged: .*models/net_g_4\.pth is not what was'
    with pytest.raises(ResumeError, match=rf'{fault}.* Name an older state\.$'):
        go_on(options_of(two, state=two / STATE))
    assert go_on(options_of(two, state=state_file(two, 2))).state['iter'] == 2
    with pytest.raises(ResumeError, match=r'path\.resume_state: .*30\.state does not exist'):
        go_on(options_of(two, state=state_file(two, 30)))


def test_nothing_is_restarted_when_no_state_is_whole_and_without_states_the_run_begins(two):
    for iteration in (2, 4):
        DAMAGES['halved'](state_file(two, iteration))
    with pytest.raises(ResumeError, match='no training state can be resumed') as caught:
        found_in(two)
    assert all(str(state_file(two, i)) in str(caught.value) for i in (2, 4))
    for iteration in (2, 4):
        state_file(two, iteration).unlink()
    (two / 'states' / 'best.state').write_bytes(b'')  # no iteration
    assert basicsr.train.load_resume_state(options_of(two)) is None
    assert basicsr.train.load_resume_state(options_of(two) | {'auto_resume': False}) is None


def test_a_moved_experiment_is_still_whole_from_any_folder(two, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp('elsewhere'))
    moved = tmp_path_factory.mktemp('moved') / 'x'
    shutil.move(two, moved)
    options = options_of(moved)
    assert basicsr.train.load_resume_state(options)['iter'] == 4
    assert options['path']['resume_state'] == str(moved / STATE)
    assert options['path']['pretrain_network_g'] == str(moved / WEIGHTS)


def test_killed_before_the_list_is_written_the_checkpoint_still_counts(two):
    leftovers = [two / 'states' / '.4.state.json.77.tmp', two / 'models' / '.net_g_5.pth.77.tmp']
    (two / LIST).rename(leftovers[0])
    leftovers[1].write_bytes(b'half')
    assert go_on(options_of(two)).state['iter'] == 4
    assert not {path.name for path in leftovers} & set(names(two))


# ---- disk full ----------------------------------------------------------------------------------


@pytest.mark.parametrize('room', range(4))
def test_a_full_disk_stops_with_one_message_and_keeps_the_last_checkpoint(two, room, monkeypatch):
    """There is room for so many of the three files."""
    model = go_on(options_of(two))
    steps(model, 5)
    before, left, replace = names(two), [room], os.replace

    def limited(*paths):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, 'No space left on device')
        replace(*paths)

    monkeypatch.setattr(files.os, 'replace', limited)
    if room == 3:
        model.save(1, 5)
        assert set(names(two)) - set(before) == set(files_of(5))
        return
    with pytest.raises(
        CheckpointWriteError, match=r'cannot write .*: No space left on device.*--auto_resume'
    ) as e:
        model.save(1, 5)
    assert '\n' not in str(e.value)
    assert names(two) == before
    assert found_in(two) == 4


def test_an_error_that_is_not_of_the_disk_stays_what_it_is(two, monkeypatch):
    model, before = go_on(options_of(two)), names(two)
    monkeypatch.setattr(model.checkpointer, 'state', lambda: {'options': lambda: None})
    with pytest.raises((pickle.PicklingError, AttributeError), match='lambda') as caught:
        model.save(1, 5)
    assert not isinstance(caught.value, CheckpointWriteError)
    assert names(two) == before  # the weights of 5 and every temporary file are gone


# ---- the checkpoint of another run ---------------------------------------------------------------


@pytest.fixture
def other(tmp_path_factory) -> Path:
    """The folder of another run with a checkpoint of the same number."""
    folder = tmp_path_factory.mktemp('other')
    model = begin(folder)
    steps(model, 1, 2, 3)
    model.save(0, 4)
    return folder


def test_a_state_brings_its_own_weights_whatever_the_run_is_called(two, other):
    before = (other / WEIGHTS).read_bytes()
    options = options_of(other, state=two / STATE)
    model = go_on(options)
    assert options['path']['pretrain_network_g'] == str(two / WEIGHTS)
    saved = torch.load(two / WEIGHTS, weights_only=True)
    assert changed(model.net_g, saved['params']) == set()
    assert changed(model.net_g_ema, saved['params_ema']) == set()
    assert (other / WEIGHTS).read_bytes() == before


@pytest.mark.parametrize('listed', [True, False])
def test_a_state_beside_the_weights_of_another_run_is_refused_with_both_names(two, other, listed):
    shutil.copy(two / STATE, other / STATE)
    shutil.copy(two / LIST, other / LIST) if listed else (other / LIST).unlink()
    with pytest.raises(ResumeError, match='is not what was written with it') as caught:
        go_on(options_of(other, state=other / STATE))
    assert str(other / STATE) in str(caught.value)
    assert str(other / WEIGHTS) in str(caught.value)


# ---- another continuation ------------------------------------------------------------------------


def test_newer_checkpoints_of_another_continuation_are_set_aside(two, log):
    go_on(options_of(two, state=two / STATE))
    assert not list(two.glob('set_aside_*')), 'it is the newest'
    model = go_on(options_of(two, state=state_file(two, 2)))
    steps(model, 3)
    model.save(0, 3)
    assert found_in(two) == 3
    assert names(two) == files_of(2, 3)
    (aside,) = two.glob('set_aside_*')
    assert sorted(p.name for p in aside.rglob('*') if p.is_file()) == files_of(4)
    messages = {r.getMessage() for r in log.records if 'another continuation' in r.getMessage()}
    assert len(messages) == 1
    assert 'checkpoints 4 are' in (message := messages.pop())
    assert str(aside) in message
    for path in aside.rglob('*.*'):  # moved back, it is whole again
        path.rename(two / path.parent.name / path.name)
    assert found_in(two) == 4


@pytest.mark.parametrize('moved', range(1, 6))
def test_killed_while_setting_aside_no_checkpoint_is_half(two, moved, monkeypatch):
    go_on(options_of(two)).save(1, 5)
    replace, left = os.replace, [moved]

    def replace_or_die(*paths):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        replace(*paths)

    options = options_of(two, state=state_file(two, 2))
    monkeypatch.setattr(os, 'replace', replace_or_die)
    with pytest.raises(KeyboardInterrupt):
        set_newer_aside(options, 2)
    left[0] = 99
    assert found_in(two) in (2, 5)
    set_newer_aside(options, 2)
    assert found_in(two) == 2
    assert len([p for f in two.glob('set_aside_*') for p in f.rglob('*.*')]) == 6


def test_the_newest_checkpoints_are_kept_and_never_the_one_just_written_removed(two):
    for iteration in (40, 50):  # left behind by another continuation
        state_file(two, iteration).touch()
        (two / 'models' / f'net_g_{iteration}.pth').touch()
    model = begin(two)
    model.checkpointer.keep = 2
    model.save(-1, -1)
    for iteration in (8, 9, 10, 11):
        model.save(0, iteration)
    rest = ['40.state', '50.state', 'net_g_40.pth', 'net_g_50.pth', 'net_g_latest.pth']
    assert names(two) == sorted([*files_of(10, 11), *rest])


def test_a_checkpoint_that_vanished_ends_no_training(two, monkeypatch):
    model = go_on(options_of(two))
    model.checkpointer.keep = 1
    monkeypatch.setattr(checkpointer, 'iterations_of', lambda states: [1, 2, 4, 5])
    model.save(0, 5)
    assert names(two) == files_of(5)


# ---- the best -----------------------------------------------------------------------------------


def test_the_best_weights_are_kept_and_worse_ones_do_not_replace_them(tmp_path):
    model = begin(tmp_path)
    steps(model, 1)
    good = validate(model, iteration=1)['psnr']
    assert names(tmp_path) == [], 'nobody asked for them'
    model.run.logger = model.run.logger.model_copy(update={'keep_best': True})
    best = tmp_path / 'models' / 'net_g_best_psnr.pth'
    assert validate(model, iteration=3)['psnr'] == good
    kept = best.read_bytes()
    for parameter in model.net_g_ema.parameters():
        parameter.data.add_(0.5)
    assert validate(model, iteration=4)['psnr'] < good
    assert best.read_bytes() == kept
    assert set(torch.load(best, weights_only=True)) >= {'params', 'params_ema', 'arch'}
    assert model.best_metric_results['held_out']['psnr']['iter'] == 3


@pytest.mark.parametrize('cut_off', [True, False])
def test_a_validation_that_was_cut_off_is_made_up_for(tmp_path, cut_off, monkeypatch):
    model = begin(tmp_path)
    steps(model, 1, 2)
    model.save(0, 2)  # BasicSR's order: first save, then validate
    score = validate(model, iteration=2)['psnr'] if not cut_off else None
    options, done = options_of(tmp_path), []
    options['val']['val_freq'] = 2
    state = basicsr.train.load_resume_state(options)
    progress.val_loaders = [DataLoader(Pictures())]
    again = RestorationModel(options)
    original = again.validation
    monkeypatch.setattr(again, 'validation', lambda *a, **k: (done.append(a[1]), original(*a, **k)))
    again.resume_training(state)
    assert done == ([2] if cut_off else [])
    best = again.best_metric_results['held_out']['psnr']
    assert best == {'better': 'higher', 'val': score or best['val'], 'iter': 2}
    assert json.loads((tmp_path / 'states' / '2.state.json').read_text())['validated'] == [
        'held_out'
    ]


# ---- changed options ----------------------------------------------------------------------------


def rates(model: RestorationModel, iterations) -> list[float]:
    found = []
    for iteration in iterations:
        model.update_learning_rate(iteration)
        model.optimizer_g.step()
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
    old = rates(begin(tmp_path / 'old'), range(1, 9))
    new = rates(begin(tmp_path / 'new', **changes), range(1, 9))
    assert old[4:] != new[4:]
    kept = go_on(options_of(two, **changes))
    assert rates(kept, range(5, 8)) == old[4:7]
    assert 'in the option file, but the resumed state was made with' in log.text
    assert 'Set train.apply_new_schedule: true to apply the new value.' in log.text
    kept.save(2, 7)  # what is kept now is kept at the next start too
    assert rates(go_on(options_of(two, **changes)), [8]) == old[7:]
    log.clear()
    asked = options_of(two, state=two / STATE, apply_new_schedule=True, **changes)
    assert rates(go_on(asked), range(5, 9)) == new[4:]
    assert 'the new value applies from here on.' in log.text


def test_another_optimiser_or_network_is_refused(two):
    sgd = {'type': 'SGD', 'lr': 1e-3}
    with pytest.raises(ResumeError, match=r'train\.optim_g\.type is SGD .* made with AdamW'):
        go_on(options_of(two, optim_g=sgd, apply_new_schedule=True))
    with pytest.raises(ResumeError, match=r'network_g\.dim is 6 in the option file and not set'):
        basicsr.train.load_resume_state(options_of(two, {**NET, 'dim': 6}))
    options = options_of(two, {**NET, 'use_checkpoint': True})  # saves memory, changes nothing
    assert basicsr.train.load_resume_state(options)['iter'] == 4


def test_a_kept_schedule_must_reach_the_new_end(tmp_path):
    periods = {'type': 'CosineAnnealingRestartLR', 'periods': [100], 'restart_weights': [1]}
    model = begin(tmp_path, scheduler=periods)
    steps(model, 1)
    model.save(0, 1)
    longer = {'total_iter': 200, 'scheduler': {**periods, 'periods': [200]}}
    with pytest.raises(ResumeError, match=r'total_iter is 200 now.*apply_new_schedule: true'):
        go_on(options_of(tmp_path, **longer))
    model = go_on(options_of(tmp_path, **longer, apply_new_schedule=True))
    assert rates(model, [2]) == rates(begin(tmp_path / 'new', **longer), [1, 2])[1:]


def test_other_options_are_named_in_one_sentence_each(two, log):
    options = options_of(two, ema_decay=0.99, total_iter=120)
    options['manual_seed'] = 9
    basicsr.train.load_resume_state(options)
    messages = report_changes(options, progress.resumed.state)
    keys = ['manual_seed', 'train.total_iter', 'train.ema_decay']
    assert [message.split()[0] for message in messages] == keys
    assert 'train.ema_decay is 0.99 now, but the resumed state was made with 0.9' in log.text
    assert 'the new value is used from iteration 5 on.' in messages[0]


def test_where_data_lie_and_how_they_are_loaded_is_no_change(tmp_path):
    def found(**data) -> dict:
        options = options_of(tmp_path)
        options['datasets'] = {'train': {'gt_size': 16, 'dataroot_gt': 'a', **data}}
        return run_options(options)

    assert found() == found(dataroot_gt='b') == found(num_worker_per_gpu=3, timeout=5)
    assert found() != found(gt_size=17)
    sets = [{'dataroot_gt': 'a', 'repeat': 1}]
    assert found(sets=sets) == found(sets=[{'dataroot_gt': 'b', 'repeat': 1}])
    assert found(sets=sets) != found(sets=[{'dataroot_gt': 'a', 'repeat': 2}])


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
    with pytest.raises(SystemExit) as stop:
        validate(model, pictures, 2)
    assert stop.value.code == 128 + signal.SIGTERM
    assert pictures.read == [0]
    manifest = json.loads((tmp_path / 'states' / '2.state.json').read_text())
    assert manifest['validated'] == []  # so that resuming makes up for it
    assert not list(tmp_path.rglob('validation_*.csv')), 'part of a set has no averages'
    assert not model.best_metric_results
    assert found_in(tmp_path) == 2


def test_the_guard_goes_on_counting_where_it_stopped(tmp_path):
    model = begin(tmp_path, max_nonfinite=3)
    model.step.guard.total, model.step.guard.in_a_row = 7, 2
    model.save(0, 1)
    again = go_on(options_of(tmp_path, max_nonfinite=3))
    assert (again.step.guard.total, again.step.guard.in_a_row) == (7, 2)
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
