"""A run goes on with other options: what is kept, applied, refused, and said."""

from copy import deepcopy
from unittest.mock import Mock

import basicsr.train
import pytest
from basicsr.models.sr_model import SRModel
from checkpoint_runs import NET, begin, go_on, options_of, state_file
from model_runs import steps

from unfoldldm_basicsr.common.errors import ResumeError
from unfoldldm_basicsr.models import RestorationModel
from unfoldldm_basicsr.training.progress import progress
from unfoldldm_basicsr.training.resume import report_changes, run_options

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
    basicsr.train.load_resume_state(options)
    assert options['manual_seed'] == seed
