"""Checkpoints: whole or passed over, never half written, never those of another run."""

import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import basicsr.train
import pytest
import torch
from helpers import Attack
from model_runs import (
    Pictures,
    begin,
    changed,
    files_of,
    found_in,
    go_on,
    names,
    options_of,
    state_file,
    steps,
    validate,
)
from torch.utils.data import DataLoader

from unfoldldm_basicsr.common import files
from unfoldldm_basicsr.common.errors import OutputWriteError, ResumeError
from unfoldldm_basicsr.models import RestorationModel
from unfoldldm_basicsr.training.progress import progress
from unfoldldm_basicsr.weights.checkpoint import read_checkpoint


def flip(path: Path) -> None:
    """Inverts one bit of a number in an archive of torch."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        record = next(r for r in archive.infolist() if r.filename.endswith('data/0'))
    sizes = struct.unpack('<HH', content[record.header_offset + 26 : record.header_offset + 30])
    content[record.header_offset + 30 + sum(sizes)] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], object]] = {
    'cut': lambda path: os.truncate(path, path.stat().st_size - 1),
    'emptied': lambda path: os.truncate(path, 0), 'flipped': flip,
    'removed': lambda path: path.unlink(), 'other content': lambda path: torch.save([1], path),
    'code': lambda path: torch.save({'iter': Attack()}, path),
}  # fmt: skip
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


@pytest.mark.parametrize('damage', ['cut', 'emptied', 'removed'])
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
    with pytest.raises(ResumeError, match=r'path\.resume_state: .*30\.state does not exist'):
        go_on(options_of(two, state=state_file(two, 30)))


def test_nothing_is_restarted_when_no_state_is_whole_and_without_states_the_run_begins(two):
    for iteration in (2, 4):
        DAMAGES['cut'](state_file(two, iteration))
    with pytest.raises(ResumeError, match='no training state can be resumed') as caught:
        found_in(two)
    assert all(str(state_file(two, i)) in str(caught.value) for i in (2, 4))
    for iteration in (2, 4):
        state_file(two, iteration).unlink()
    (two / 'states' / 'best.state').write_bytes(b'')  # no iteration
    assert basicsr.train.load_resume_state(options_of(two)) is None
    assert basicsr.train.load_resume_state(options_of(two) | {'auto_resume': False}) is None


def test_a_mask_of_minus_infinity_is_no_damage(two):
    model = go_on(options_of(two))
    model.network.bare.register_buffer('mask', torch.full((2, 2), float('-inf')).triu(1))
    model.save(0, 6)
    assert 'mask' in read_checkpoint(two / 'models' / 'net_g_6.pth', 'params').state_dict


def test_a_network_that_a_run_never_saves_is_in_no_checkpoint(two):
    state = torch.load(two / STATE, weights_only=True)
    del state['weights'], state['options']  # as plain BasicSR writes it
    torch.save(state, two / STATE)
    (two / LIST).unlink()
    options = options_of(two) | {'network_teacher': {'type': 'TinyConvNet'}}
    given = {'pretrain_network_teacher': 'teacher.pth', 'param_key_teacher': 'params_ema'}
    options['path'] |= given
    assert basicsr.train.load_resume_state(options)['iter'] == 4
    assert options['path'] == options['path'] | given
    (two / 'models' / 'net_teacher_2.pth').touch()
    with pytest.raises(ResumeError, match=r'no weights .*net_teacher_4\.pth'):
        basicsr.train.load_resume_state(options)


def test_a_moved_experiment_is_still_whole_from_any_folder(two, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp('elsewhere'))
    moved = Path(shutil.move(two, tmp_path_factory.mktemp('moved') / 'x'))
    assert basicsr.train.load_resume_state(options := options_of(moved))['iter'] == 4
    assert options['path']['resume_state'] == str(moved / STATE)
    assert options['path']['pretrain_network_g'] == str(moved / WEIGHTS)
    new = options_of(moved, state=moved / STATE)
    new['path'] |= {'models': moved / 'a', 'training_states': moved / 'b'}  # of another name
    basicsr.train.load_resume_state(new)
    assert all((moved / folder).is_dir() for folder in 'ab')


def test_killed_before_the_list_is_written_the_checkpoint_still_counts(two):
    leftovers = [two / 'states' / '.4.state.json.77.tmp', two / 'models' / '.net_g_5.pth.77.tmp']
    (two / LIST).rename(leftovers[0])
    leftovers[1].write_bytes(b'half')
    assert go_on(options_of(two)).state['iter'] == 4
    assert not {path.name for path in leftovers} & set(names(two))


@pytest.mark.parametrize('room', range(3))
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
    message = r'cannot write .*: No space left on device.*--auto_resume'
    with pytest.raises(OutputWriteError, match=message) as e:
        model.save(1, 5)
    assert '\n' not in str(e.value)
    assert names(two) == before
    assert found_in(two) == 4


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


def test_auto_resume_takes_the_named_state_until_the_run_has_its_own(two, other, tmp_path):
    for folder, taken in ((tmp_path / 'new', two), (other, other)):
        options = options_of(folder, state=two / STATE) | {'auto_resume': True}
        assert basicsr.train.load_resume_state(options)['iter'] == 4
        assert options['path']['resume_state'] == str(taken / STATE)


def test_an_older_state_than_the_newest_of_the_run_is_refused(two, other):
    assert go_on(options_of(two, state=two / STATE)).state['iter'] == 4, 'it is the newest'
    older, before = state_file(two, 2), names(two)
    with pytest.raises(ResumeError, match=r'2\.state is older than the checkpoints 4 in .*states'):
        go_on(options_of(two, state=older))
    assert names(two) == before
    with pytest.raises(ResumeError, match=f'checkpoints 4 in {other}'):  # of a run elsewhere
        go_on(options_of(other, state=older))
    for path in [two / 'states' / '4.state', two / 'states' / '4.state.json']:
        path.unlink()
    assert go_on(options_of(two, state=older)).state['iter'] == 2


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
    model.opt['datasets'], pictures = {'val': {}, 'val_2': {}}, Pictures()
    pictures.opt['name'] = 'day/night'
    validate(model, pictures, iteration=5)
    assert (tmp_path / 'models' / 'net_g_best_day_night_psnr.pth').exists()


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
    manifest = json.loads((tmp_path / 'states' / '2.state.json').read_text())
    assert manifest['validated'] == ['held_out']
