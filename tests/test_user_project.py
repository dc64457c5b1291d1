"""A project of somebody else: its train.py runs with and without the plugin, and its classes are
checked by what BasicSR and this package know of them alone."""

import functools
import os
import re
import sys
import types
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import pytest
import torch
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY, Registry
from helpers import (
    DELETE,
    ROOT,
    preflight,
    problems_at,
    put,
    run_python,
    stock_options,
    tiny_unfoldldm,
    warnings_at,
    write_options,
)
from tiny_vlunet import vlunet_kwargs
from torch import nn

from unfoldldm_basicsr import cli, train
from unfoldldm_basicsr.commands.check_command import describe
from unfoldldm_basicsr.common.declaration import OptionError, read
from unfoldldm_basicsr.common.sections import BasicDataset
from unfoldldm_basicsr.models import RestorationModel
from unfoldldm_basicsr.options.declared import options_of
from unfoldldm_basicsr.options.preflight import examine
from unfoldldm_basicsr.options.run import Report
from unfoldldm_basicsr.weights.checkpoint import CheckpointError
from unfoldldm_basicsr.weights.networks import construct

PROJECT = """
import torch
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.models.srgan_model import SRGANModel
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY
from torch import nn


def margin_of(opt):
    return opt.get('crop_' + 'margin', 0)  # a key that no source of a class holds


@DATASET_REGISTRY.register()
class PairsWithMargin(PairedImageDataset):
    built = 0

    def __init__(self, opt):
        PairsWithMargin.built += 1
        super().__init__(opt)
        self.margin = margin_of(opt)


@ARCH_REGISTRY.register()
class Restormer(nn.Module):
    def __init__(self, width=4, **kwargs):
        super().__init__()
        self.gain = float(torch.ones(1).numpy()[0]) + kwargs.get('shift', 0)
        self.conv = nn.Conv2d(3, 3 * width ** 2, 3, padding=1)
        self.up = nn.PixelShuffle(width)

    def forward(self, x):
        return self.up(self.conv(x)) * self.gain


@LOSS_REGISTRY.register()
class PSNRLoss(nn.Module):
    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = weight

    def forward(self, x, y):
        return self.weight * ((x - y) ** 2).mean()


space = {'Base': SRGANModel, '__name__': __name__}
exec('class MyGANModel(Base):\\n    notes = "no source to read"', space)
MODEL_REGISTRY.register(space['MyGANModel'])
"""
TRAIN = """
import unfoldldm_basicsr
import mine
import sys
from basicsr.train import train_pipeline
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY

if __name__ == '__main__':
    assert ARCH_REGISTRY.get('Restormer') is mine.Restormer
    assert LOSS_REGISTRY.get('PSNRLoss') is mine.PSNRLoss
    sys.argv[1:] = ['-opt', 'x.yml']
    train_pipeline('.')
    assert mine.PairsWithMargin.built == 1  # the check builds none beside
"""


def project_options(folder) -> dict:
    options = stock_options(folder, total_iter=2)
    options |= {'note': 'GAN with our own network', 'model_type': 'MyGANModel'}
    options['network_g'] = {'type': 'Restormer', 'shift': 0.5}
    options['network_d'] = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}
    options['datasets']['train'] |= {'name': 'ours', 'type': 'PairsWithMargin', 'crop_margin': 2}
    options['datasets']['val']['batch_size_per_gpu'] = 1
    options['train'] |= {
        'pixel_opt': {'type': 'PSNRLoss', 'weight': 2.0},
        'gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.1},
        'optim_d': {'type': 'Adam', 'lr': 1e-3},
    }
    options['train'] |= {'net_d_iters': 1, 'net_d_init_iters': 0, 'our_own_key': 3}
    options['logger']['use_tb_logger'] = False
    options['val'] |= {'val_freq': 2, 'save_img': False}
    options['val']['metrics']['psnr']['better'] = 'higher'
    return options


def test_a_project_with_classes_of_its_own_trains(tmp_path):
    (tmp_path / 'mine.py').write_text(PROJECT)
    (tmp_path / 'train.py').write_text(TRAIN)
    write_options(tmp_path / 'x.yml', project_options(tmp_path))
    result = run_python('train.py', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'experiments' / 'stock' / 'models' / 'net_g_latest.pth').is_file()
    assert '# psnr' in result.stderr
    assert "the one of this package is called 'Restormer_unfoldldm'" in result.stderr
    assert 'our_own_key: is nothing that is known here; left as it is' in result.stderr


def test_check_imports_the_project_first(tmp_path, monkeypatch, output_of):
    (tmp_path / 'mine.py').write_text(PROJECT)
    write_options(tmp_path / 'x.yml', project_options(tmp_path))
    command = ['-m', 'unfoldldm_basicsr.cli', 'check', '-opt', 'gone.yml', 'x.yml']
    found = run_python(*command, cwd=tmp_path, UNFOLDLDM_IMPORT='mine')  # what --import sets
    assert found.returncode == 2  # of the file that is not there
    assert ('OK (training, Restormer' in found.stdout, 'shift' in found.stderr) == (True, False)
    monkeypatch.chdir(tmp_path)
    errors = output_of(*command[2:], status=2)
    assert ('no model' in errors, errors.count('--import PACKAGE')) == (True, 1)
    training = ['-m', 'unfoldldm_basicsr.train', '-opt', 'x.yml', '--force_yml', 'scale=no']
    for more in (['--import', 'mine'], []):
        refused = run_python(*training, *more, cwd=tmp_path).stderr
        seen = [text in refused for text in ('scale: ', 'no model', '--import PACKAGE')]
        assert seen == [True, not more, not more], refused


def test_processes_of_a_command_import_the_project_too(tmp_path, monkeypatch, capsys, output_of):
    (tmp_path / 'mine_too.py').write_text('print("mine_too")')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setenv('UNFOLDLDM_IMPORT', '')
    command = ['check', '-opt', 'gone.yml', '--import']
    assert "No module named 'not_there'" in output_of(*command, 'not_there', status=2)
    with pytest.raises(SystemExit):
        train.main(['-opt', 'gone.yml', '--import', 'not_there.inner'])
    assert "No module named 'not_there'; start" in capsys.readouterr().err
    monkeypatch.setenv('UNFOLDLDM_IMPORT', '')
    cli.main([*command, 'mine_too'])
    assert capsys.readouterr().out == 'mine_too\n'
    assert os.environ['UNFOLDLDM_IMPORT'] == 'mine_too'


@pytest.mark.parametrize('first', ['ours', 'theirs'])
def test_the_class_of_a_project_has_the_name_in_either_order(log, first):
    registry = Registry('names')

    def of(module: str) -> type:
        return type('Net', (nn.Module,), {'__module__': module})

    ours, theirs = of('unfoldldm_basicsr.archs.net_arch'), of('mine.net')
    for cls in (ours, theirs) if first == 'ours' else (theirs, ours):
        registry.register(cls)
    assert registry.get('Net') is theirs
    assert registry.get('Net_unfoldldm') is ours
    assert log.text.count('is that of mine.net') == 1
    with pytest.raises(AssertionError, match='already registered'):
        registry.register(of('another.net'))
    reloaded = of('mine.net')
    registry.register(reloaded)
    assert registry.get('Net') is reloaded


def test_weights_of_the_second_name_are_restored_without_the_project():
    meta = {'type': 'NAFNet_unfoldldm', 'kwargs': {'width': 4}, 'version': '0'}
    assert type(construct(meta, 'x.pth')).__name__ == 'NAFNet'
    with pytest.raises(CheckpointError, match='--import PACKAGE'):
        construct({**meta, 'type': 'Net'}, 'x.pth')


@pytest.mark.faults
def test_option_files_of_basicsr_are_run_without_and_with_the_plugin(tmp_path):
    options = stock_options(tmp_path)
    for phase, section in options['datasets'].items():
        section |= {'name': phase, 'dataroot_gt': f'{phase}/gt', 'dataroot_lq': f'{phase}/lq'}
    options['datasets']['train'] |= {'dataset_enlarge_ratio': 1}
    options['val'] |= {'save_img': False, 'suffix': None}
    (tmp_path / 'options').mkdir()
    write_options(tmp_path / 'options' / 'a.yml', options)
    write_options(tmp_path / 'options' / 'b.yml', put(options, 'network_g.num_fet', 4))
    script = str(ROOT / 'scripts' / 'faults' / 'stock_option_files.py')
    result = run_python(script, 'options', '--work', 'work', cwd=tmp_path)
    first, second, last = result.stdout.splitlines()
    assert first == '| a.yml | runs | accepted | runs |', result.stderr
    assert re.match(r"\| b.yml \| TypeError: .* 'num_fet' \| b.yml: network_g.num_fet: .*", second)
    assert last == '2 files; run by BasicSR alone and not with the plugin: 0 []'


def test_networks_that_a_plain_model_cannot_train_are_refused_with_the_model_to_use(stock):
    stock['scale'] = 1
    for phase, name in ((1, 'UnfoldLDMPhase1Model'), (2, 'UnfoldLDMPhase2Model')):
        options = put(stock, 'network_g', tiny_unfoldldm(phase))
        found = problems_at(options, 'network_g.phase', here=False)
        assert f'model_type: {name}' in found
        assert 'phase: inference' in found
    drop_in = put(stock, 'network_g', tiny_unfoldldm('inference'))
    assert problems_at(drop_in, 'network_g.phase', here=False) == ''
    options = put(stock, 'network_g', {'type': 'VLUNet', **vlunet_kwargs()})
    assert 'model_type: VLUNetModel' in problems_at(options, 'network_g.type', here=False)


def test_with_an_unknown_model_there_is_no_verdict_on_its_keys(stock):
    stock['train'] |= {'use_grad_clip': True, 'my_key': 1}
    options = put(stock, 'model_type', 'ImageClenModel')
    assert "no model 'ImageClenModel'" in problems_at(options, 'model_type')
    assert "Did you mean 'ImageCleanModel'?" in problems_at(options, 'model_type')
    options = put(options, 'network_d', 'mine')
    for key in ('train.use_grad_clip', 'train.my_key', 'network_d'):
        assert problems_at(options, key) == ''


def test_no_strict_warns_of_what_it_would_refuse(plugin):
    options = put(plugin, 'train.grad_clip_nrm', 1)
    assert "Did you mean 'grad_clip_norm'" in problems_at(options, 'train.grad_clip_nrm')
    for section in ('train', 'network_g', 'datasets.train', 'train.pixel_opt', 'train.optim_g'):
        options = put(plugin, f'{section}.bogus', 1)
        assert problems_at(options, f'{section}.bogus')
        report = examine(options, 'x.yml', True, strict=False)
        assert (report.problems, [*report.warned]) == ([], [f'{section}.bogus'])
        assert 'bogus' not in str(report.run.opt)  # what the run reads


def test_what_a_project_inherits_of_a_stock_model_is_judged_as_its(stock, monkeypatch):
    class MyModel(SRModel):
        """With a network of its own, say."""

    other = type('Other', (MyModel,), {'setup_optimizers': id})  # takes any
    another = type('Another', (MyModel,), {'init_training_settings': id})  # sets its optimiser up
    space = {'Base': MyModel}
    exec('class Typed(Base):\n    def setup_optimizers(self):\n        pass', space)
    others = ('Other', 'Another', 'Typed')
    for model in (MyModel, other, another, space['Typed']):
        monkeypatch.setitem(MODEL_REGISTRY._obj_map, model.__name__, model)
    options = put(put(stock, 'model_type', 'MyModel'), 'train.scheduler.type', 'OneCycleLR')
    assert 'no schedule' in problems_at(options, 'train.scheduler.type')
    options = put(put(stock, 'model_type', 'MyModel'), 'train.optim_g.type', 'AdamW')
    assert "no optimiser 'AdamW'" in problems_at(options, 'train.optim_g.type')
    bare = put(options, 'train.optim_g', DELETE)
    for found in (options, bare):
        assert [preflight(put(found, 'model_type', n), 'x.yml', True) for n in others] == [[]] * 3
    wrong = put(put(bare, 'model_type', 'Other'), 'train.pixel_opt.type', 'L1Los')
    assert "Did you mean 'L1Loss'" in problems_at(wrong, 'train.pixel_opt.type')
    assert 'is missing' in problems_at(put(bare, 'model_type', 'MyModel'), 'train.optim_g')
    adds = lambda self: SRModel.init_training_settings(self)  # noqa: E731  (a loss, say)
    more = type('More', (MyModel,), {'init_training_settings': adds})
    monkeypatch.setitem(MODEL_REGISTRY._obj_map, 'More', more)
    assert 'is missing' in problems_at(put(bare, 'model_type', 'More'), 'train.optim_g')
    third = put(stock, 'train.optim_e', {'type': 'AdamW', 'lr': 1e-3})  # for the project to read
    assert preflight(put(third, 'model_type', 'MyModel'), 'x.yml', True) == []
    listed = put(stock, 'train.pixel_opt', [{'type': 'L1Loss'}])
    assert preflight(put(listed, 'model_type', 'Another'), 'x.yml', True) == []


@pytest.mark.parametrize(('path', 'value'), [
    ('train.scheduler', {'gamma': 0.5}), ('train.scheduler', [{'type': 'A'}, {'type': 'B'}]),
    ('train.optim_g', 1e-4), ('train.optim_clip', {'norm': 0.1}), ('network_init', 'kaiming'),
    ('network_cfg', {'freeze': True}), ('network_ds', [{'type': 'A'}]),
])  # fmt: skip
def test_what_a_project_sets_up_itself_may_look_as_it_likes(stock, monkeypatch, path, value):
    reads = {'setup_optimizers': lambda self: self.opt['network_init'], 'setup_schedulers': id}
    monkeypatch.setitem(MODEL_REGISTRY._obj_map, 'Own', type('Own', (SRModel,), reads))
    assert preflight(put(put(stock, 'model_type', 'Own'), path, value), 'x.yml', True) == []


def test_stock_classes_that_a_project_has_patched_are_judged_as_its_own(stock, monkeypatch):
    for name in ('get_optimizer', 'setup_schedulers'):
        monkeypatch.setattr(BaseModel, name, lambda self, *words: None)
    monkeypatch.setattr(SRModel, 'init_training_settings', lambda self: None)
    init = PairedImageDataset.__init__
    patched = functools.wraps(init)(lambda self, opt: init(self, {**opt, 'gt_size': 8}))
    monkeypatch.setattr(PairedImageDataset, '__init__', patched)
    options = put(put(stock, 'train.scheduler.type', 'Cosine'), 'train.optim_g.type', 'Lion')
    options = put(options, 'datasets.train.gt_size', [8, 8])
    assert preflight(options, 'x.yml', True) == []
    assert warnings_at(options, 'train.pixel_opt') == ''


def test_a_model_of_a_project_keeps_the_losses_of_ours(make, monkeypatch):
    class Mine(RestorationModel):
        def init_training_settings(self):
            super().init_training_settings()

    assert type(Mine(make().opt).cri_pix).__name__ == 'L1Loss'


def test_a_class_of_a_project_may_have_sections_that_are_no_declarations(stock, monkeypatch):
    sectioned = type('Sectioned', (PairedImageDataset,), {'sections': ('sky', 'ground')})
    listing = type('Listing', (SRModel,), {'Options': ('a', 'b')})
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, 'Sectioned', sectioned)
    monkeypatch.setitem(MODEL_REGISTRY._obj_map, 'Listing', listing)
    options = put(put(stock, 'datasets.train.type', 'Sectioned'), 'datasets.train.cut', 3)
    options = put(put(options, 'model_type', 'Listing'), 'train.my_own_key', 3)
    assert preflight(options, 'x.yml', True) == []


@pytest.mark.parametrize(('value', 'hint', 'ok'), [
    (1, float, True), (None, int | None, True), (3, Any, True), (3, Callable, True),
    (True, int, False), (float('nan'), float, False), ('1e-4', float | torch.Tensor, False),
    ([1, 2], Sequence[int], True), ([1, 'a'], Sequence[int], False),
    ([1, 2, 3], tuple[int, int], False), ('l3', Literal['l1', 'l2'], False),
])  # fmt: skip
def test_values_are_compared_with_annotations(value, hint, ok):
    def build(*, x: hint): ...

    build.__annotations__['x'] = hint
    read(options_of(build), {'x': value}, 'build')  # of a project: a note for readers
    ours = types.FunctionType(build.__code__, {'__name__': 'unfoldldm_basicsr.x'}, 'build')
    ours.__annotations__, ours.__kwdefaults__ = build.__annotations__, build.__kwdefaults__
    with nullcontext() if ok else pytest.raises(OptionError, match='build: x'):
        read(options_of(ours), {'x': value}, 'build')


class UndeclaredDataset(list):
    def __init__(self, opt):
        super().__init__([{}] * 4)
        self.opt, self.crop = opt, opt.get('crop_mode', 'centre')


class UndeclaredModel(BaseModel):
    """Made from what all models of BasicSR share."""


@pytest.mark.parametrize('sets', [['rain', 'haze'], {'a': 1}, 3])
def test_what_an_undeclared_class_reads_is_not_guessed(stock, monkeypatch, sets):
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, 'UndeclaredDataset', UndeclaredDataset)
    data = {'type': 'UndeclaredDataset', 'crop_mode': 'x', 'batch_size_per_gpu': 2, 'sets': sets}
    stock = put(stock, 'datasets.train', data)
    assert preflight(stock, 'x.yml', True) == []
    assert 'use_hflip' not in examine(stock, 'x.yml', True).options['datasets']['train']
    assert 'left as it is' in warnings_at(stock, 'datasets.train.crop_mode')
    misspelt, place = put(stock, 'datasets.train.pin_memry', True), 'datasets.train.pin_memry'
    assert "Did you mean 'pin_memory'" in problems_at(misspelt, place)
    assert "Did you mean 'pin_memory'" in warnings_at(misspelt, place, strict=False)


def test_what_the_class_of_somebody_else_reads_is_its_own_matter(stock, monkeypatch):
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, 'UndeclaredDataset', UndeclaredDataset)
    monkeypatch.setitem(MODEL_REGISTRY._obj_map, 'UndeclaredModel', UndeclaredModel)
    own = {'dataroot_gt': ['a', 'b'], 'gt_size': [9, 9], 'mean': 0.5, 'filename_tmpl': None}
    slips = {'use_flip': True, 'std_': 1, 'dtype': 'f', 'tape': 1, 'game': 'x'}  # of use_hflip, ...
    data = {'type': 'UndeclaredDataset', 'batch_size_per_gpu': 2, **own, **slips}
    mine = put(put(stock, 'datasets.train', data), 'model_type', 'UndeclaredModel') | {'scale': 2.5}
    mine = put(mine, 'datasets.val', {'type': 'UndeclaredDataset', 'io_backend': {'type': 'zip'}})
    mine |= {'network_g': {'enc': {'type': 'X'}}, 'network_names': ['a'], 'network_d': None}
    mine['val'] |= {'metrics': ['psnr'], 'save_img': False}
    mine['path'] = {'strict_load_g': 'partial'}
    for key, value in {'optim_g': DELETE, 'scheduler': DELETE, 'ema_decay': [0.5]}.items():
        mine = put(mine, f'train.{key}', value)
    assert preflight(mine, 'x.yml', True) == []
    for backend in ({'type': 'memcached'}, {'type': 'lmdb', 'readonly': False}):
        assert problems_at(put(mine, 'datasets.val.io_backend', backend), 'datasets.val.io_backend')
    without = examine(put(mine, 'network_g', DELETE), 'x.yml', True)
    assert (without.problems, describe(without)) == ([], 'training, no network')
    for key in ('train.total_iter', 'train.warmup_iter', 'val.val_freq', 'logger.print_freq'):
        assert 'whole number' in problems_at(put(mine, key, 'many'), key)


def test_files_of_classes_of_somebody_else_are_not_guessed(stock, monkeypatch, tmp_path):
    for registry, cls in ((DATASET_REGISTRY, UndeclaredDataset), (MODEL_REGISTRY, UndeclaredModel)):
        monkeypatch.setitem(registry._obj_map, cls.__name__, cls)
    (tmp_path / 'all.lmdb').touch()  # an LMDB may be one file
    own = {'dataroot_gt': str(tmp_path / 'all.lmdb'), 'dataroot': 's3://x', 'meta_info': 'a set'}
    own['io_backend'] = {'type': 'lmdb'}
    plain, stock = stock, put(stock, 'datasets', {'val': {'type': 'UndeclaredDataset', **own}})
    test = put(put(stock, 'train', DELETE), 'model_type', 'UndeclaredModel')
    for path in ({}, {'pretrain_network_g': str(tmp_path), 'pretrain_network_vae': 'hub/name'}):
        assert preflight(put(test, 'path', path), 'x.yml', False) == []
    (cut := tmp_path / 'cut.lmdb').mkdir()
    for part in ('data.mdb', 'meta_info.txt'):
        (cut / part).write_text('no database')
    test['datasets']['val']['dataroot_gt'] = str(cut)
    assert 'LMDB' in problems_at(test, 'datasets.val.dataroot_gt')
    folder = put(plain, 'datasets.train.dataroot_gt', str(cut))
    assert 'set io_backend: {type: lmdb}' in problems_at(folder, 'datasets.train.dataroot_gt')


@pytest.mark.parametrize(('name', 'registry'), [
    ('MSRResNet', ARCH_REGISTRY), ('SRModel', MODEL_REGISTRY),
])  # fmt: skip
def test_channels_of_classes_of_somebody_else_may_be_others(stock, monkeypatch, name, registry):
    noisy = put(stock, 'network_g.num_in_ch', 4)
    assert 'takes 4 channels' in problems_at(noisy, 'network_g')
    own = type(name, (registry.get(name),), {'__module__': 'mine'})
    monkeypatch.setitem(registry._obj_map, name, own)
    assert preflight(noisy, 'x.yml', True) == []


def test_a_numbered_key_of_a_class_of_somebody_else_is_no_slip():
    problems = Report()
    for key in ('dataroot_lq1', 'dtype'):
        problems.read('x', BasicDataset, {'type': 'Own', key: 'a'}, PairedImageDataset)
    assert problems.refused == {}
    problems.read('x', BasicDataset, {'type': 'Own', 'dataroot_lqq': 'a'}, PairedImageDataset)
    assert 'x.dataroot_lqq' in problems.refused
