"""Trainings that are interrupted and resumed end with the bits of the uninterrupted one.

The trainings are those of ``scripts/faults``, as processes forked from one that has imported all.
"""

import re
import shutil
import signal
import time
from pathlib import Path

import kill_and_resume
import pytest
import torch
from helpers import change, run_python
from tiny_trainings import write_project
from training_process import Training

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
