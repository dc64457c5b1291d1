"""Trainings that are interrupted and resumed end with the bits of the uninterrupted one.

The trainings are those of ``scripts/faults``, as processes forked from one that has imported all.
"""

import re
import shutil
import signal
import time
from copy import deepcopy
from pathlib import Path
from unittest.mock import Mock

import basicsr.train
import kill_and_resume
import pytest
import torch
from basicsr.models.sr_model import SRModel
from helpers import change, run_python
from model_runs import NET, begin, go_on, options_of, state_file, steps
from tiny_trainings import write_project
from training_process import Training

from unfoldldm_basicsr.common.errors import ResumeError
from unfoldldm_basicsr.models import RestorationModel
from unfoldldm_basicsr.training.progress import progress
from unfoldldm_basicsr.training.resume import report_changes, run_options

SAVE_EVERY = 5
KEPT = 'logger.keep_checkpoints', 2  # so that a stop in between leaves no further file


def start(folder: Path, option_file: Path, **settings) -> Training:
    return Training(folder, option_file, fork=True, **settings)


def states(folder: Path) -> list[int]:
    found = (folder / 'experiments' / 'run' / 'training_states').glob('*.state')
    return sorted(int(path.stem) for path in found)


def finish(training: Training) -> Training:
    training.wait()
    assert training.codes == [0] * len(training.codes), training.tail()
    return training


def interrupt(training: Training, after: int, signum: int, rank: int | None = None) -> None:
    """Sends a signal when iteration ``after`` is in the log, and waits for the end."""
    assert training.wait(lambda: training.iteration >= after), training.tail()
    training.kill(rank, signum)
    training.wait()


def assert_equal(run: Path, reference: Path, files: int) -> None:
    assert kill_and_resume.compare(run, reference) == (files, 'equal')


def test_phase2_killed_and_terminated_ends_with_the_same_bits(tmp_path):
    file = change(write_project(tmp_path, 'phase2', iterations=17), *KEPT)
    reference, run = tmp_path / 'reference', tmp_path / 'run'
    finish(start(reference, file))
    training = start(run, file)
    interrupt(training, SAVE_EVERY + 1, signal.SIGKILL)
    assert training.codes == [-signal.SIGKILL]
    killed_at = max(states(run))
    training = start(run, file)
    interrupt(training, killed_at + 2, signal.SIGTERM)  # beyond the switch to joint training
    assert training.codes == [128 + signal.SIGTERM], training.tail()
    assert training.resumed_at == killed_at
    stopped_at = max(states(run))
    assert f'Stopped by a signal at iteration {stopped_at}' in training.output
    training = finish(start(run, file))
    assert training.resumed_at == stopped_at
    logged = [int(i) for i in re.findall(r'iter: +(\d+), lr', training.output)]
    assert logged == list(range(stopped_at + 1, 18))
    assert_equal(run, reference, files=4)  # two checkpoints, the latest, the best
    assert [p.name for p in (run / 'experiments').iterdir()] == ['run']  # nothing moved aside
    final = torch.load(run / 'experiments/run/models/net_g_latest.pth', weights_only=True)
    phase1 = torch.load(tmp_path / 'phase1.pth', weights_only=True)
    for key, value in phase1['params_ema'].items():
        if key.startswith('prior_encoder.'):
            assert torch.equal(final['params'][key], value)


def test_two_ranks_killed_and_terminated_end_with_the_same_bits(tmp_path):
    file = change(write_project(tmp_path, 'nafnet', iterations=40), *KEPT)
    reference, run = tmp_path / 'reference', tmp_path / 'run'
    finish(start(reference, file, ranks=2))
    training = start(run, file, ranks=2)
    interrupt(training, 12, signal.SIGKILL, rank=1)
    assert training.codes == [1, -signal.SIGKILL]
    assert training.output.count('rank 0: another process of this run is gone') == 1
    # The orphaned loader process of the killed rank may complain; the rank that lives does not.
    assert not re.search(r'^(?!\[rank1\]).*Traceback', training.output, re.MULTILINE)
    killed_at = max(states(run))
    # A signal of torchrun or of a job system goes to all processes, those of the loaders too.
    training = start(run, file, ranks=2, groups=True)
    assert training.wait(lambda: training.iteration >= killed_at + 2), training.tail()
    assert training.resumed_at == killed_at
    training.kill(signum=signal.SIGTERM)
    training.wait(lambda: 'received: the run is saved' in training.output)
    training.kill(signum=signal.SIGTERM)  # both send it
    sent = time.monotonic()
    training.wait(limit=30)
    assert time.monotonic() - sent < 15
    assert training.codes == [128 + signal.SIGTERM] * 2, training.tail()
    assert 'Traceback' not in training.output
    stopped_at = max(states(run))
    assert f'Stopped by a signal at iteration {stopped_at}' in training.output
    training = finish(start(run, file, ranks=2))
    assert training.resumed_at == stopped_at
    assert_equal(run, reference, files=4)


def test_a_damaged_validation_image_of_one_rank_ends_all_with_one_message(tmp_path):
    file = write_project(tmp_path, 'nafnet', iterations=20)
    shutil.copytree(tmp_path / 'photos', tmp_path / 'held_out')
    (tmp_path / 'held_out' / 'photo_3.png').write_bytes(b'no image')
    change(file, 'datasets.val.dataroot_gt', str(tmp_path / 'held_out'))
    training = start(tmp_path / 'run', file, ranks=2)
    training.wait(limit=60)
    assert training.codes == [1, 1], training.tail()
    assert training.output.count('The run has ended: dataset held_out: ') == 1
    assert training.output.count('The run has ended: ') == 1, 'the other rank says nothing else'
    assert 'photo_3.png: cannot be decoded' in training.output
    assert 'Traceback' not in training.output
    assert states(tmp_path / 'run') == [5, 10]  # saved before the validation


@pytest.mark.faults
@pytest.mark.parametrize(
    ('model', 'ranks'), [('phase1', 1), ('phase2', 1), ('vlunet', 1), ('phase1', 2), ('vlunet', 2)]
)
def test_killed_at_random_moments(tmp_path, model, ranks, capsys):
    arguments = ['--model', model, '--ranks', str(ranks), '--runs', '2', '--kills', '2', '--fork']
    assert kill_and_resume.main([*arguments, '--folder', str(tmp_path)]) == 0, capsys.readouterr()
    assert '2 of 2 runs end with the bits' in capsys.readouterr().out


KILLS_ITSELF_ONCE = """
import os, signal, sys
from pathlib import Path
from unfoldldm_basicsr import train
from unfoldldm_basicsr.models import RestorationModel

step = RestorationModel.optimize_parameters

def step_or_die(self, current_iter):
    mark = Path('died')
    if self.opt['rank'] == 1 and current_iter == 13 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, current_iter)

RestorationModel.optimize_parameters = step_or_die
train.main(sys.argv[1:])
"""


@pytest.mark.faults
@pytest.mark.parametrize('rendezvous', ['--standalone', '--master-port=29711'])
def test_torchrun_restarts_the_job_by_itself(tmp_path, rendezvous):
    file = change(write_project(tmp_path, 'nafnet', iterations=30), *KEPT)
    finish(start(tmp_path / 'reference', file, ranks=2))
    run = tmp_path / 'run'
    run.mkdir()
    (run / 'job.py').write_text(KILLS_ITSELF_ONCE)
    result = run_python(
        '-m', 'torch.distributed.run', rendezvous, '--nproc_per_node=2', '--max-restarts=2',
        'job.py', '-opt', str(file), '--launcher', 'pytorch',
        '--auto_resume', cwd=run,
    )  # fmt: skip
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-3000:]
    assert (run / 'died').exists()
    assert 'Resuming training from epoch: 2, iter: 10.' in output
    assert_equal(run, tmp_path / 'reference', files=4)


ADAMW = {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.0}
STATE = 'states/4.state'


def rates(model: RestorationModel, iterations) -> list[float]:
    found = []
    for iteration in iterations:
        model.update_learning_rate(iteration)
        model.optimizer_g.step()
        found.append(model.get_current_learning_rate()[0])
    return found


CHANGES = {
    'lr': {'optim_g': {**ADAMW, 'lr': 5e-4}},
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
    state_file(two, 7).unlink()
    asked = options_of(two, state=two / STATE, apply_new_schedule=True, **changes)
    assert rates(go_on(asked), range(5, 9)) == new[4:]
    assert 'the new value applies from here on.' in log.text


def test_a_state_of_basicsr_itself_goes_on(tmp_path):
    halved = {'type': 'MultiStepLR', 'milestones': [2], 'gamma': 0.5}
    options = options_of(tmp_path, optim_g={'type': 'Adam', 'lr': 1e-3}, scheduler=halved)
    SRModel(deepcopy(options)).save(0, 4)
    options['train']['optim_g']['lr'] = 4e-4
    with pytest.raises(ResumeError, match=r'or train\.decay_all'):
        go_on(deepcopy(options))
    options['train']['decay_all'] = True
    assert rates(go_on(deepcopy(options)), [5]) == [5e-4]
    options['train']['apply_new_schedule'] = True
    assert rates(go_on(options), [5]) == [2e-4]


def test_a_run_goes_on_from_its_own_weights_whatever_it_started_from(two):
    options = options_of(two, total_iter=3, scheduler={'type': 'MultiStepLR', 'milestones': [2]})
    options['path']['param_key_g'] = 'params_of_another_project'
    options['train']['apply_new_schedule'] = True
    model = go_on(options)
    model.evaluator.evaluate = Mock(side_effect=InterruptedError)
    with pytest.raises(InterruptedError):
        model.dist_validation(None, 5, None, False)  # the last one, of BasicSR's pipeline
    assert model.evaluator.evaluate.call_args[0][1] == '4'  # and not total_iter


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
    log.clear()
    assert report_changes(options | {'rank': 1}, progress.resumed.state) == messages
    assert log.text == '', 'rank 0 says it'


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
def test_a_run_without_a_seed_of_its_own_keeps_the_one_it_drew(two, drawn, seed):
    progress.seed_drawn = drawn
    options = options_of(two) | {'manual_seed': 77}
    torch.manual_seed(77)
    basicsr.train.load_resume_state(options)
    assert options['manual_seed'] == torch.initial_seed() == seed
