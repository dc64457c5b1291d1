"""Option files and --force_yml are data: read safely, completed, seeded from, never executed."""

import os
import random
import sys
from collections import OrderedDict
from functools import partial

import basicsr.train
import basicsr.utils.options
import numpy as np
import pytest
import torch
import yaml
from basicsr.utils import set_random_seed
from helpers import stock_options, write_options

from unfoldldm_basicsr.common.option_files import OptionLoader, apply_overrides, read_option_file
from unfoldldm_basicsr.options.defaults import fill_defaults
from unfoldldm_basicsr.training import start as start_of_run

NUMBERS = {
    '1e-4': 1e-4, '1E+3': 1000.0, '-2.5e-3': -2.5e-3, '.5': 0.5, '-.5': -0.5, '5.': 5.0, '3': 3,
    '!!float 2': 2.0, '.inf': float('inf'),
}  # fmt: skip
TEXTS = ('e-4', '1e', 'v1.2.3', '1-2', 'x1e4', '-.', '+._5')


def test_numbers_are_numbers_and_texts_stay_texts():
    for text, value in {**NUMBERS, **{text: text for text in TEXTS}}.items():
        parsed = yaml.load(f'a: {text}', Loader=OptionLoader)['a']
        assert (type(parsed), parsed) == (type(value), value), text


FAULTY_FILES = {
    'train:\n  lr: 1\n  lr: 2\n': r"line 3, column 3: the key 'lr' appears twice.*line 2",
    'a: [1, 2\nb: 3\n': 'line 2',
    'a:\n  b:1\n  c: 2\n': 'line 3.*colon without a blank, also one line up',
    'a:\n\tb: 1\n': 'line 2.*blanks instead of tabs', 'a: "D:\\data"\n': 'line 1.*single quotes',
    '- 1\n': 'not an option file', '': 'not an option file',
    '{[1]: 2}\n': 'key must be a plain word', 'a: !!int x\n': 'x.yml',
    '[' * 5000: 'too deeply nested', 'a: &a {b: *a}\n': 'too deeply nested',
    'a0: &a0 1\n' + ''.join(f'a{n}: &a{n} [{f"*a{n - 1}," * 9}]\n' for n in range(1, 10)): 'alias',
    'a: 1\na: ~\n': 'appears twice', 'a: !!python/object/apply:os.getcwd []\n': 'constructor',
}  # fmt: skip


@pytest.mark.parametrize(('text', 'says'), FAULTY_FILES.items(), ids=range(len(FAULTY_FILES)))
def test_a_faulty_file_is_one_sentence_with_its_place(tmp_path, text, says):
    path = tmp_path / 'x.yml'
    path.write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        read_option_file(path)
    assert str(caught.value).startswith(str(path))
    assert '\n' not in str(caught.value)


def test_a_key_may_be_repeated_where_nothing_is_lost(tmp_path):
    (tmp_path / 'x.yml').write_text('a: ~\na: [1, {b: 2}]\na: [1, {b: 2}]\nc: ~\nc: ~\n')
    assert read_option_file(tmp_path / 'x.yml') == {'a': [1, {'b': 2}], 'c': None}


def test_a_tab_that_does_not_indent_is_a_blank():
    text = 'a:\t[1,\t2]\t# two\nb:\tx\t\n'
    assert yaml.load(text, Loader=OptionLoader) == {'a': [1, 2], 'b': 'x'}


def test_a_tuple_is_data_and_a_date_a_text(tmp_path):
    (tmp_path / 'x.yml').write_text('scale: !!python/tuple [2, [3]]\nname: 2024-01-01\n')
    assert read_option_file(tmp_path / 'x.yml') == {'scale': (2, [3]), 'name': '2024-01-01'}


def test_files_are_read_as_utf8_wherever_python_runs(tmp_path):
    (tmp_path / 'x.yml').write_bytes('name: Größe  # ×4\n'.encode())
    assert read_option_file(tmp_path / 'x.yml') == {'name': 'Größe'}
    (tmp_path / 'x.yml').write_bytes(b'name: \xff\n')
    with pytest.raises(ValueError, match='not a UTF-8'):
        read_option_file(tmp_path / 'x.yml')


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('1e-4', 1e-4), ('~', None), ('None', None), ('"x"', 'x'), ('{a: 1}', {'a': 1}),
        ('True', True), ('010', 10),
        *((t, t) for t in ('{}x4', '{}', '2024-01-01', '12_30', '1:30', 'no', '@home', 'a: b')),
    ],
)  # fmt: skip
def test_force_yml_takes_yaml_values_and_leaves_texts(text, value):
    options = {'train': {'lr': 0}, 'mix': [{'prob': 0}, {'prob': 0}]}
    apply_overrides(options, [f'train:lr={text}', f'mix:1:prob={text}', 'path:a=1'])
    mix = [{'prob': 0}, {'prob': value}]
    assert options == {'train': {'lr': value}, 'mix': mix, 'path': {'a': 1}}


@pytest.mark.parametrize(
    ('entry', 'says'),
    [
        ('trian:lr=1', r"no 'trian'\. Did you mean 'train'\?"),
        ('train:optim:lr=1', r"train has no 'optim'\. Did you mean 'optim_g'"),
        ('train', 'write KEY:KEY=VALUE'), ('name:x=1', 'name is a single value'),
        ('mix:7=1', 'list of 2 items'), ('train:lr=[1', 'is not YAML'),
        ('train.lr=1', "joined by colons, 'train:lr' instead of 'train.lr'"),
        ('train:optim_g.lr=1', "'optim_g:lr' instead of 'optim_g.lr'"),
    ],
)  # fmt: skip
def test_force_yml_faults_name_the_entry(entry, says):
    options = {'name': 'x', 'train': {'lr': 0, 'optim_g': {}}, 'mix': [1, 2]}
    with pytest.raises(ValueError, match=says) as caught:
        apply_overrides(options, [entry])
    assert f"'{entry}'" in str(caught.value)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Calls the parse_options that BasicSR's train module sees, with a command line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(start_of_run, 'examine', partial(start_of_run.examine, here=False))
    write_options(tmp_path / 'x.yml', stock_options(tmp_path))

    def call(*words):
        monkeypatch.setattr(sys, 'argv', ['train', '-opt', 'x.yml', *words])
        return basicsr.train.parse_options(str(tmp_path), is_train=True)[0]

    return call


def draws() -> tuple:
    return random.random(), float(np.random.random()), float(torch.rand(1))  # noqa: NPY002


def test_the_forced_seed_is_the_one_used(command):
    assert command('--force_yml', 'manual_seed=5')['manual_seed'] == 5
    forced = draws()
    set_random_seed(5)
    assert draws() == forced


def test_an_absent_seed_is_drawn_and_recorded(command):
    seed = command('--force_yml', 'manual_seed=~')['manual_seed']
    drawn = draws()
    assert command('--force_yml', f'manual_seed={seed}')['manual_seed'] == seed
    assert draws() == drawn


@pytest.mark.parametrize('word', ['--local-rank=1', '--local_rank=1'])
def test_both_spellings_of_local_rank_are_accepted(command, word):
    assert command(word)['rank'] == 0


def test_paths_are_those_of_basicsr_with_home_folders_expanded(command, tmp_path):
    parts = 'datasets:val:sets=[{dataroot_gt: ~/z}, other]'  # of a mixture; a class of anybody
    forced = ['datasets:val:dataroot_gt=~/x', parts, 'path:resume_state=~/y']
    options, home = command('--force_yml', *forced), os.path.expanduser('~')
    paths, root = options['path'], tmp_path / 'experiments' / 'stock'
    assert options['datasets']['val']['dataroot_gt'] == f'{home}/x'
    assert options['datasets']['val']['sets'] == [{'dataroot_gt': f'{home}/z'}, 'other']
    assert paths['resume_state'] == f'{home}/y'
    assert paths['experiments_root'] == paths['log'] == str(root)
    names = ('models', 'training_states', 'visualization')
    assert [paths[n] for n in names] == [str(root / n) for n in names]


def test_debug_prefixes_the_name_once_and_validates_often(command):
    assert command('--debug', '--force_yml', 'name=debugging')['name'] == 'debugging'
    with pytest.raises(SystemExit):
        command('--debug', '--force_yml', 'name=~')
    options = command('--debug', '--force_yml', 'name=x')
    assert options['name'] == 'debug_x'
    assert options['val']['val_freq'] == options['logger']['save_checkpoint_freq'] == 8


def test_keys_that_basicsr_demands_are_filled_and_whole_floats_become_counts():
    sets = {'train': {'batch_size_per_gpu': 2e0}, 'val_2': {'name': None}}
    train = {'total_iter': 5e3, 'warmup_iter': None, 'ema_decay': None}
    path = {'extra': None, 'pretrain_network_g': None}  # BasicSR makes folders of others
    options = {'datasets': sets, 'train': train, 'val': {}, 'path': path}
    fill_defaults(options, is_train=True)
    assert path == {'pretrain_network_g': None}
    train, val = options['datasets'].values()
    assert (options['scale'], options['logger']['use_tb_logger']) == (1, False)
    assert options['val'] == {'val_freq': 5000, 'save_img': False, 'suffix': None}
    assert options['train'] == {'total_iter': 5000}
    assert {type(options['train']['total_iter']), type(train['batch_size_per_gpu'])} == {int}
    assert train['io_backend'] == val['io_backend'] == {'type': 'disk'}
    assert 'persistent_workers' not in {**train, **val}  # loops of projects start workers anew
    assert val['name'] == 'val_2'


def test_projects_can_save_their_options():
    text = yaml.dump(OrderedDict(a=[1]), Dumper=basicsr.utils.options.ordered_yaml()[1])
    assert yaml.safe_load(text) == {'a': [1]}


def test_the_copy_of_an_option_file_can_be_read_and_resumed_from_whatever_the_command_line_holds(
    tmp_path, monkeypatch
):
    words = ['-opt', 'caf\udce9/x.yml', '--force_yml', 'note=one\n[two']  # a name that is no UTF-8
    monkeypatch.setattr(sys, 'argv', ['train', *words])
    copy = write_options(tmp_path / 'x.yml', {'name': 'x'})
    text = copy.read_text()
    basicsr.train.copy_opt_file(str(copy), str(tmp_path))
    assert copy.read_text() == text
    basicsr.train.copy_opt_file(str(copy), str(tmp_path / 'run'))
    assert (tmp_path / 'run' / 'x.yml').read_text().endswith(text)
    assert (tmp_path / 'run' / 'x.yml').read_text().startswith('# GENERATE TIME')
    assert r'caf\udce9/x.yml' in (tmp_path / 'run' / 'x.yml').read_text()
    assert read_option_file(tmp_path / 'run' / 'x.yml') == {'name': 'x'}


def test_merge_keys_fill_in_and_own_keys_win(tmp_path):
    text = """
common: &common {dataroot_gt: gt, name: any}
sets:
  - parts:
      - &noise
        <<: *common
        name: noise
val: {<<: *noise, scale: 1}
again: {<<: *noise}
"""
    (tmp_path / 'a.yml').write_text(text)
    options = read_option_file(tmp_path / 'a.yml')
    assert options == yaml.safe_load(text)
    assert options['val']['name'] == 'noise'


def test_an_anchor_and_its_aliases_are_changed_alone(tmp_path):
    """By an override, and by the phase that BasicSR writes into each data set."""
    text = 'name: x\nnetwork_g: {type: NAFNet}\nmodel_type: RestorationModel\ndatasets:\n'
    text += '  train: &data {name: a, type: X, degradations: [{sigma: 1}]}\n  val: *data\n'
    (tmp_path / 'a.yml').write_text(text)
    options = read_option_file(tmp_path / 'a.yml')
    apply_overrides(options, ['datasets:val:degradations:0:sigma=2'])
    fill_defaults(options, True)
    train, val = options['datasets'].values()
    assert (train['phase'], train['degradations'][0]['sigma']) == ('train', 1)
    assert (val['phase'], val['degradations'][0]['sigma']) == ('val', 2)
