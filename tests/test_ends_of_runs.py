"""How a run ends: by a signal, by what it meets itself, by what another process meets."""

import json
import os
import signal

import pytest
import torch
from checkpoint_runs import begin, found_in, go_on, options_of, state_file
from model_runs import Pictures, spoilt, steps, validate

from unfoldldm_basicsr.common import errors as failures
from unfoldldm_basicsr.common.errors import DataFault, OutputWriteError
from unfoldldm_basicsr.options.progress import progress


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


def test_the_program_ends_with_the_message_alone(log):
    def fail(root):
        raise OutputWriteError('cannot write x: disk full.')

    with pytest.raises(SystemExit) as stop:
        failures.run_to_end(fail, '.')
    assert stop.value.code == 1
    assert log.text.strip().endswith('The run has ended: cannot write x: disk full.')


@pytest.mark.parametrize(
    ('failure', 'said'), [(DataFault('x'), True), (OutputWriteError('x'), False)]
)
def test_rank_0_speaks_for_all_unless_the_failure_is_of_one_rank(monkeypatch, log, failure, said):
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.distributed, 'get_rank', lambda: 1)
    with pytest.raises(SystemExit):
        failures.end_run(failure)
    assert ('The run has ended: x' in log.text) is said
