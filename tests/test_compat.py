"""What is broken in BasicSR is mended, and its option files read as it does."""

import functools
import hashlib
import inspect
import os
import random
import sys
import types
from collections import OrderedDict
from functools import partial

import basicsr.data.prefetch_dataloader as prefetch
import basicsr.train
import basicsr.utils.options
import numpy as np
import pytest
import torch
import yaml
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import set_random_seed
from helpers import ROOT, run_python, stock_options, write_options

from unfoldldm_basicsr import compat
from unfoldldm_basicsr.common.option_files import OptionLoader, apply_overrides, read_option_file
from unfoldldm_basicsr.compat import imports, stock
from unfoldldm_basicsr.options.defaults import fill_defaults
from unfoldldm_basicsr.training import start as start_of_run
from unfoldldm_basicsr.training.pipeline import install

# What is replaced, and the beginning of the sha256 of BasicSR's source of it.
REPLACED = {
    (basicsr.utils.registry.Registry, '_do_register'): 'af03a785c44a',
    (basicsr.utils.options, 'ordered_yaml'): '1fb04e3900bc',
    (basicsr.utils.options, '_postprocess_yml_value'): 'db4d8cf06906',
    (basicsr.utils.options, 'parse_options'): '347305bea18e',
    (basicsr.utils.options, 'dict2str'): '769e9c110eeb',
    (basicsr.utils.options, 'copy_opt_file'): '51833866f607',
    (basicsr.utils.logger, 'get_root_logger'): 'fa49ed80ef6b',
    (basicsr.utils.logger.MessageLogger, '__call__'): 'bd962d17ef86',
    (basicsr.utils.dist_util, '_init_dist_pytorch'): '221ad79b2125',
    (basicsr.utils.dist_util, '_init_dist_slurm'): '09a06fc3c9bc',
    (basicsr.data, 'build_dataset'): 'e40d296218c7',
    (basicsr.train, 'train_pipeline'): 'daf6515cece6',
    (basicsr.utils, 'make_exp_dirs'): '12f9afe99aa1',
    (basicsr.train, 'load_resume_state'): '9f0a2c11735b',
    (basicsr.train, 'create_train_val_dataloader'): '7dc43480652e',
    (prefetch.PrefetchGenerator, 'run'): 'faae2c8597aa',
    (prefetch.PrefetchGenerator, '__next__'): 'aca178171474',
    (basicsr.metrics, 'calculate_metric'): '39447a3cb01a',
    (BaseModel, 'reduce_loss_dict'): 'b14c18fe64b6', (BaseModel, 'load_network'): '719e2df3d186',
    (BaseModel, 'model_to_device'): 'e3172982283d',
}  # fmt: skip
# What the replacements rely on: who calls them, in which order, with what.
RELIED_ON = {
    (basicsr.test, 'test_pipeline'): '6500d8cc3c47',
    (basicsr.data, 'build_dataloader'): '5a72348149df',
    (basicsr.utils.logger.MessageLogger, '__init__'): '9e6bfa289433',
    (basicsr.utils.dist_util, 'init_dist'): '38c1b5671709',
    (prefetch.CPUPrefetcher, '__init__'): '29caf7fc1b84',
    (prefetch.CPUPrefetcher, 'reset'): '753893332e63',
    (basicsr.metrics, 'calculate_psnr'): 'dac9f0d6e875',
    (basicsr.metrics, 'calculate_ssim'): '303b7527ab0f', (BaseModel, 'validation'): '0b8825204831',
    (BaseModel, '_update_best_metric_result'): '0cac0c14ac43', (SRModel, 'save'): '8c3a0e9b2c63',
}  # fmt: skip


def fingerprint(owner: object, name: str) -> str:
    source = inspect.getsource(stock(getattr(owner, name)))
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def test_sources_of_basicsr_are_the_known_ones():
    changed = [key for key, known in (REPLACED | RELIED_ON).items() if fingerprint(*key) != known]
    assert changed == [], 'BasicSR changed: read it again, then update what stands for it'


def test_no_module_of_basicsr_still_holds_a_stock_function():
    modules = [m for n, m in sys.modules.items() if n.split('.')[0] == 'basicsr']
    for owner, name in REPLACED:
        original = getattr(owner, name).replaces
        assert [m.__name__ for m in modules if getattr(m, name, None) is original] == []
    functions = filter(inspect.isfunction, (f for m in modules for f in vars(m).values()))
    assert {f for f in functions if hasattr(f, 'replaces')} <= {getattr(*k) for k in REPLACED}


def test_applying_again_changes_nothing():
    before = {key: getattr(*key) for key in REPLACED}
    compat.apply()
    install()
    assert all(getattr(*key) is function for key, function in before.items())
    assert all(function.replaces.__module__.startswith('basicsr') for function in before.values())


@pytest.mark.parametrize(('name', 'attribute'), [
    ('torchvision.transforms.functional_tensor', 'rgb_to_grayscale'),
    ('scipy.ndimage.filters', 'convolve'),
])  # fmt: skip
def test_shims_fill_in_for_a_module_that_is_gone_only(name, attribute, monkeypatch):
    present = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, present)
    imports.provide_removed_modules()
    assert sys.modules[name] is present
    monkeypatch.setitem(sys.modules, name, None)  # as if it could not be imported
    imports.provide_removed_modules()
    assert callable(getattr(sys.modules[name], attribute))


def test_distutils_comes_from_setuptools_or_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, 'distutils', None)
    monkeypatch.setitem(sys.modules, 'setuptools', None)
    with pytest.raises(ImportError, match='pip install setuptools'):
        imports.provide_distutils()


def test_missing_packages_are_named_with_the_commands():
    code = "import sys; sys.modules |= {'torch': None, 'basicsr': None}; import unfoldldm_basicsr"
    result = run_python('-c', code)
    assert result.returncode == 1
    last = result.stderr[result.stderr.rindex('ImportError') :]
    assert 'needs torch and basicsr, not installed' in last
    assert 'pip install torch torchvision' in last
    assert 'pip install --no-build-isolation basicsr==1.4.2' in last


@pytest.mark.parametrize(
    ('version_file', 'says'),
    [("__version__ = '1.2.0+1386'\n", 'version 1.2.0'), (None, 'without version.py')],
)
def test_another_package_named_basicsr_is_recognised(tmp_path, version_file, says):
    fork = tmp_path / 'basicsr'
    fork.mkdir()
    (fork / '__init__.py').write_text('')
    if version_file:
        (fork / 'version.py').write_text(version_file)
    code = (
        f'import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import unfoldldm_basicsr'
    )
    last = run_python('-c', code).stderr.strip().splitlines()[-1]
    assert last.startswith('ImportError')
    assert says in last
    assert str(fork) in last


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


@pytest.mark.parametrize(('text', 'value'), [
    ('1e-4', 1e-4), ('~', None), ('None', None), ('"x"', 'x'), ('{a: 1}', {'a': 1}),
    ('True', True), ('010', 10),
    *((t, t) for t in ('{}x4', '{}', '2024-01-01', '12_30', '1:30', 'no', '@home', 'a: b')),
])  # fmt: skip
def test_force_yml_takes_yaml_values_and_leaves_texts(text, value):
    options = {'train': {'lr': 0}, 'mix': [{'prob': 0}, {'prob': 0}]}
    apply_overrides(options, [f'train:lr={text}', f'mix:1:prob={text}', 'path:a=1'])
    mix = [{'prob': 0}, {'prob': value}]
    assert options == {'train': {'lr': value}, 'mix': mix, 'path': {'a': 1}}


@pytest.mark.parametrize(('entry', 'says'), [
    ('trian:lr=1', r"no 'trian'\. Did you mean 'train'\?"),
    ('train:optim:lr=1', r"train has no 'optim'\. Did you mean 'optim_g'"),
    ('train', 'write KEY:KEY=VALUE'), ('name:x=1', 'name is a single value'),
    ('mix:7=1', 'list of 2 items'), ('train:lr=[1', 'is not YAML'),
    ('train.lr=1', "joined by colons, 'train:lr' instead of 'train.lr'"),
    ('train:optim_g.lr=1', "'optim_g:lr' instead of 'optim_g.lr'"),
])  # fmt: skip
def test_force_yml_faults_name_the_entry(entry, says):
    options = {'name': 'x', 'train': {'lr': 0, 'optim_g': {}}, 'mix': [1, 2]}
    with pytest.raises(ValueError, match=says) as caught:
        apply_overrides(options, [entry])
    assert f"'{entry}'" in str(caught.value)


def test_a_function_that_a_project_put_there_before_stays(log, monkeypatch):
    theirs = functools.wraps(stock(basicsr.metrics.calculate_metric))(lambda *words: 7)
    monkeypatch.setattr(basicsr.metrics, 'calculate_metric', theirs)
    install()
    assert basicsr.metrics.calculate_metric is theirs
    assert 'basicsr.metrics.calculate_metric is that of test_compat, and stays' in log.text


def test_scripts_with_a_loop_of_their_own_read_options_and_make_folders(tmp_path, monkeypatch):
    options = {'train': {'epochs': 3}, 'datasets': {'train': {'folder': 'x'}}}
    write_options(tmp_path / 'x.yml', {'name': 'x', 'num_gpu': 0, **options})
    monkeypatch.setattr(sys, 'argv', ['own', '-opt', str(tmp_path / 'x.yml')])
    read = basicsr.utils.options.parse_options(str(tmp_path), is_train=True)[0]
    assert (read['train']['epochs'], read['datasets']['train']['phase']) == (3, 'train')
    basicsr.utils.make_exp_dirs({'is_train': True, 'path': {'experiments_root': tmp_path / 'a'}})
    assert (tmp_path / 'a').is_dir()


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


def test_an_absent_seed_is_drawn_and_recorded_and_a_forced_one_is_used(command):
    seed = command('--force_yml', 'manual_seed=~')['manual_seed']
    drawn = draws()
    assert command('--force_yml', f'manual_seed={seed}')['manual_seed'] == seed
    assert draws() == drawn
    set_random_seed(seed)
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
    sets = {'train': {'name': 291, 'batch_size_per_gpu': 2e0}, 'val_2': {'name': None}}
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
    assert (train['name'], val['name']) == ('291', 'val_2')


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
