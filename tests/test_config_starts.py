"""How a run is started, on which GPUs and with which scan: judged before anything is touched."""

import multiprocessing
import sys
from functools import partial

import basicsr.train
import pytest
import torch
from basicsr.utils.options import dict2str
from helpers import model_options, plugin_options, problems_at, put, stock_options, write_options
from tiny_network import TWO_GROUPS

from unfoldldm_basicsr.models import RestorationModel
from unfoldldm_basicsr.ops.ss2d import dispatch
from unfoldldm_basicsr.options.run import process_count
from unfoldldm_basicsr.training import start as start_of_run


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Parses the command line of a run in an otherwise empty folder."""

    def parse(options: dict, *words: str, is_train: bool = True) -> dict:
        folder = tmp_path / 'start'
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        write_options(folder / 'x.yml', options)
        monkeypatch.setattr(sys, 'argv', ['train', '-opt', 'x.yml', *words])
        try:
            return start_of_run.parse_options(str(folder), is_train=is_train)[0]
        finally:
            assert [p.name for p in folder.iterdir()] == ['x.yml']

    return parse


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)


def test_torchrun_without_its_launcher_is_refused(start, plugin, monkeypatch, capsys):
    """Each rank would take itself for the only one and write to the folder of the others."""
    monkeypatch.setenv('WORLD_SIZE', '2')
    for rank, speaks in (('0', True), ('1', False), ('x', True)):
        monkeypatch.setenv('LOCAL_RANK', rank)  # of this machine
        with pytest.raises(SystemExit) as caught:
            start(plugin)
        errors = capsys.readouterr().err
        assert caught.value.code == 2
        assert ('add --launcher pytorch' in errors, bool(errors)) == (speaks, speaks)


def test_tasks_of_srun_without_its_launcher_are_warned_of(start, plugin, monkeypatch):
    monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '2')
    start(plugin)
    assert 'srun started 2 tasks' in dict2str({})


def test_only_the_variable_of_the_launcher_counts(monkeypatch):
    monkeypatch.setenv('SLURM_NTASKS', '8')
    monkeypatch.setenv('WORLD_SIZE', '3')
    counts = {name: process_count(name) for name in (None, 'none', 'pytorch', 'slurm')}
    assert counts == {None: 1, 'none': 1, 'pytorch': 3, 'slurm': 8}
    monkeypatch.setenv('WORLD_SIZE', 'many')
    assert process_count('pytorch') == 1


@pytest.mark.parametrize('is_train', [True, False])
def test_auto_is_one_gpu_for_one_process(start, tmp_path, two_gpus, monkeypatch, is_train):
    monkeypatch.setattr(start_of_run, 'examine', partial(start_of_run.examine, here=False))
    place, found = '/elsewhere/x.pth', []
    for options in (plugin_options(tmp_path), stock_options(tmp_path)):
        options = put(put(options, 'num_gpu', 'auto'), 'path.pretrain_network_g', place)
        if not is_train:
            del options['train'], options['datasets']['train']
        gpus = start(options, is_train=is_train)['num_gpu']
        found.append((gpus, '--nproc_per_node=2 -m unfoldldm_basicsr.t' in dict2str({})))
    assert found == [(1, True), (2, False)]  # BasicSR's own split the batch


def test_several_gpus_in_one_process_are_refused_before_the_run(plugin, tmp_path, two_gpus):
    plugin = put(plugin, 'num_gpu', 2)
    assert '--nproc_per_node=2' in problems_at(plugin, 'num_gpu', launcher='none')
    assert problems_at(plugin, 'num_gpu') == ''  # unfoldldm check starts nothing
    assert problems_at(plugin, 'num_gpu', launcher='pytorch') == ''
    stock = put(stock_options(tmp_path), 'num_gpu', 2)
    assert problems_at(stock, 'num_gpu', launcher='none') == ''


@pytest.mark.parametrize(('gpus', 'fits'), [(2, False), ('auto', True)])
def test_the_batch_is_that_of_the_gpus_of_one_process(plugin, two_gpus, gpus, fits):
    place = 'datasets.train.batch_size_per_gpu'
    plugin = put(put(plugin, place, 3), 'num_gpu', gpus)
    assert (problems_at(plugin, place) == '') is fits


@pytest.mark.parametrize(('name', 'left'), [(None, 'triton'), ('auto', None), ('torch', 'torch')])
def test_the_option_file_chooses_a_scan_that_is_usable(tmp_path, name, left, monkeypatch, request):
    monkeypatch.setattr(dispatch, '_chosen', 'triton')
    request.addfinalizer(dispatch._select.cache_clear)
    options = model_options(tmp_path, TWO_GROUPS)
    RestorationModel(options if name is None else {**options, 'scan_backend': name})
    assert dispatch._chosen == left
    monkeypatch.setattr(dispatch, '_why_not', lambda name: 'no CUDA device')
    with pytest.raises(ValueError, match='no CUDA device'):
        RestorationModel({**options, 'scan_backend': 'mamba'})


def test_a_script_without_a_main_guard_is_told_so(monkeypatch, capsys):
    """The start method spawn imports it again in every loader process."""
    monkeypatch.setattr(multiprocessing.current_process(), '_inheriting', True, raising=False)
    with pytest.raises(SystemExit) as caught:
        basicsr.train.load_resume_state({'path': {}})
    assert caught.value.code == 2
    assert "if __name__ == '__main__':" in capsys.readouterr().err
