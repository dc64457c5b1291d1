"""A project of somebody else, its own classes and train.py, runs with and without the plugin."""

import os
import re
import sys

import pytest
from basicsr.utils.registry import ARCH_REGISTRY, Registry
from helpers import ROOT, problems_at, put, run_python, stock_options, tiny_unfoldldm, write_options
from tiny_vlunet import vlunet_kwargs
from torch import nn

from unfoldldm_basicsr import cli
from unfoldldm_basicsr.common.cost import build_on_meta
from unfoldldm_basicsr.options.preflight import examine
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
    assert 'x.yml: OK (training, Restormer' in found.stdout
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
    for key in ('train.use_grad_clip', 'train.my_key'):
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


def test_a_network_that_needs_real_tensors_is_built_with_them():
    assert 'ECBSR' in ARCH_REGISTRY
    network = {'num_in_ch': 3, 'num_out_ch': 3, 'num_block': 1, 'num_channel': 4}
    network |= {'with_idt': False, 'act_type': 'prelu', 'scale': 2}
    net = build_on_meta(ARCH_REGISTRY.get('ECBSR'), network)
    assert next(net.parameters()).device.type == 'meta'
