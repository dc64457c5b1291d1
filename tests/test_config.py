"""The preflight: every mistake in an option file is found and explained before a run.

What it knows of a class: its declaration, its signature, or what it refuses. It reads the weights.
"""

import copy
import logging
import re
import sys
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import FileClient
from basicsr.utils.logger import get_root_logger, initialized_logger
from basicsr.utils.options import parse_options
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY
from helpers import DELETE, for_test, preflight, problems_at, put, warnings_at, write_options
from tiny_vlunet import EMBEDDINGS, vlunet_file
from torch import nn

from unfoldldm_basicsr.options.environment import open_datasets
from unfoldldm_basicsr.options.preflight import examine

EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 5}
PAIRS_OF_NOTHING = {'type': 'PairedImageDataset', 'batch_size_per_gpu': 1, 'dataroot_gt': None}
STOCK_FAULTS = [
    ('name', DELETE, 'is missing'), ('trian', {}, "Did you mean 'train'"),
    ('model_type', 'SRModl', "Did you mean 'SRModel'"), ('manual_seed', -1, 'at least 0'),
    ('scale', '4', 'must be a number.*without quotes'),
    ('name', 2e4, 'must be a text, got 20000.0. Write it in quotes.$'),
    ('num_gpu', 'all', "'auto'"), ('num_gpu', 99, 'torch sees'),
    ('network_g.type', 'MSRResnet', "Did you mean 'MSRResNet'"),
    ('network_g.type', DELETE, 'is missing: the network to use'),
    ('network_g.num_fet', 8, "is not an option of MSRResNet. Did you mean 'num_feat'"),
    ('network_g.num_feat', '64', "got '64'. Write the number without quotes and units.$"),
    ('network_g.upscale', 1, r'upconv1.* \(look at .*upscale: 1'),
    ('network_g', EDSR, '^EDSR cannot be built with these values: scale 5 is not supported'),
    ('network_g', {**EDSR, 'rgb_mean': {}}, r'look at .*rgb_mean: \{\}'),
    ('datasets.train', DELETE, 'is missing: the data to train on'),
    ('datasets.valid', {}, 'is not read: training reads train'),
    ('datasets.train.type', 'PairedDataset', 'no data set .PairedDataset. is registered'),
    ('datasets.train.gt_sze', 4, "Did you mean 'gt_size'"),
    ('datasets.train.batch_size_per_gpu', DELETE, 'is missing'),
    ('datasets.train.batch_size_per_gpu', 6, 'less than one batch of 6'),
    ('datasets.train.dataroot_gt', '/no/such/folder', 'no such folder'),
    ('datasets.train.dataroot_lq', 'relative', 'Relative paths start at'),
    ('datasets.train.meta_info_file', '/no/such/file', 'no such file'),
    ('datasets.train', PAIRS_OF_NOTHING, r'not work.*KeyError.*look at dataroot_gt: nothing \(~\)'),
    ('datasets.train.gt_size', 33, r'no multiple of scale \(4\)'),
    ('path.pretrain_network_g', '', 'is empty: name a file, or write ~'),
    ('train.total_iter', DELETE, 'is missing'),
    ('train.total_iter', 1e30, 'at most 1000000000'),
    ('train.optim_g.type', 'AdamW', "no optimiser 'AdamW' is known.*RestorationModel"),
    ('train.optim_g.lr', float('nan'), 'must be a finite number|Invalid learning rate: nan'),
    ('train.optim_g.wd', 0.1, 'is not an option of Adam'),
    ('train.scheduler.type', 'CosineAnnealingLR', 'no schedule'),
    ('train.scheduler.milestones', '[2]', 'must be a list.* Write the list without quotes.$'),
    ('train.pixel_opt.loss_wieght', 1, "Did you mean 'loss_weight'"),
    ('train.pixel_opt.reduction', 'avg', 'Unsupported reduction mode: avg'),
    ('val.metrics.psnr.type', 'psnr', 'no metric'),
    ('val.metrics.psnr.test_y_chanel', True, "Did you mean 'test_y_channel'"),
    ('val.metrics.psnr.crop_border', DELETE, 'is missing'),
    ('logger.wandb', {'project': 'x'}, 'takes its values from TensorBoard'),
]  # fmt: skip
GT_MEAN = {'type': 'calculate_psnr_gt_mean'}
PLUGIN_FAULTS = [
    ('scan_backend', 'tritn', "Did you mean 'triton'"),
    ('scan_backend', 3, "must be 'auto', 'torch'"), ('network_g.num_blocks.1', 'a', 'must be'),
    ('network_g.prior_input', 'gtt', "Did you mean 'gt'"),
    ('train.scheduler.periods', [4, 5], 'total_iter'),
    ('train.scheduler', {'tpye': 'MultiStepLR'}, r"Is 'tpye' meant to be it\?"),
    ('train.isda_opt.start_stage', 2, 'is not an option of ISDALoss'),
    ('train.isda_opt.norm', 'l3', 'ISDALoss'),
    ('val.metrics.psnr', {**GT_MEAN, 'input_order': 'HWC'}, 'is not an option'),
    ('val.metrics', {'psnr': {**GT_MEAN, 'crop_border': -1}}, 'must be at least 0'),
]  # fmt: skip
WHERE = {  # where a fault is named that stands elsewhere
    'network_g.upscale': 'network_g',
    'train.isda_opt.norm': 'train.isda_opt',
    'train.pixel_opt.reduction': 'train.pixel_opt',
    'train.scheduler': 'train.scheduler.type',
    'val.metrics': 'val.metrics.psnr.crop_border',
    'val.metrics.psnr': 'val.metrics.psnr.input_order',
}


@pytest.mark.parametrize(
    ('kind', 'path', 'value', 'says'),
    [*(('stock', *f) for f in STOCK_FAULTS), *(('plugin', *f) for f in PLUGIN_FAULTS)],
)
def test_a_fault_with_stock_classes_is_explained_where_it_is(request, kind, path, value, says):
    options = put(request.getfixturevalue(kind), path, value)
    found = problems_at(options, WHERE.get(path, path))
    assert found
    assert re.search(says, found), found
    assert path != 'scale' or len(preflight(options, 'x.yml', True)) == 1  # no part names it again


def test_the_optimisers_are_those_of_the_installed_basicsr(stock, monkeypatch):
    """Its repository, which bears the number of the release, has more."""
    space = {'__name__': 'basicsr.models.base_model'}
    exec("def get_optimizer(self, *words):\n    return 'Adam' if words else 'AdamW'", space)
    monkeypatch.setattr(BaseModel, 'get_optimizer', space['get_optimizer'])
    assert preflight(put(stock, 'train.optim_g.type', 'AdamW'), 'x.yml', True) == []
    found = problems_at(put(stock, 'train.optim_g.type', 'SGD'), 'train.optim_g.type')
    assert 'Known: Adam, AdamW.' in found
    monkeypatch.setattr(BaseModel, 'get_optimizer', lambda self, *_: self.opt)  # nobody knows
    assert problems_at(put(stock, 'train.optim_g.type', 'SGD'), 'train.optim_g.type') == ''


def test_a_loss_that_a_stock_model_does_not_read_is_warned_of(stock):
    options = put(stock, 'train.fft_opt', {'type': 'L1Loss'})
    assert 'is read by no part of SRModel' in warnings_at(options, 'train.fft_opt')
    for path in ('ema_decay', 'val.ema_decay', 'train.metrics'):  # known, but elsewhere
        assert 'nothing that is known here' in warnings_at(put(stock, path, 0.5), path)


def test_a_data_set_has_a_scale_of_its_own_where_the_file_has_none(stock):
    options = put(stock, 'scale', DELETE)
    assert 'Scale mismatches' in problems_at(options, 'datasets.train')
    for phase in options['datasets']:
        options = put(options, f'datasets.{phase}.scale', 4)
    assert preflight(options, 'x.yml', True) == []
    assert preflight(options | {'scale': 4}, 'x.yml', True) == []
    wrong = put(options, 'datasets.train.gt_size', 33)
    assert 'no multiple of scale (4)' in problems_at(wrong, 'datasets.train.gt_size')
    ours = options | {'model_type': 'RestorationModel', 'network_g': {'type': 'NAFNet'}}
    assert 'restores images in their own size' in problems_at(ours, 'datasets.val.scale')
    assert 'is 4, but RestorationModel' in problems_at(ours | {'scale': 4}, 'scale')
    for value in ('two', 0, None):
        wrong = put(options, 'datasets.train.scale', value)
        assert 'must be a whole number, at least 1' in problems_at(wrong, 'datasets.train.scale')


class Talkative(PairedImageDataset):
    """Sets BasicSR's logger up, as several classes of BasicSR do."""

    def __init__(self, opt):
        super().__init__(opt)
        get_root_logger().warning('set up')


def test_nothing_is_changed_written_or_logged(stock, plugin, tmp_path, monkeypatch, capfd):
    """Nor is BasicSR's logger set up: its first call decides about the log file of the training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, 'Talkative', Talkative)
    monkeypatch.delitem(initialized_logger, 'basicsr', raising=False)
    before = sorted(tmp_path.rglob('*'))
    loggers = dict(initialized_logger), list(logging.getLogger('basicsr').handlers)
    for options in (stock, plugin, put(stock, 'datasets.train.type', 'Talkative')):
        original = copy.deepcopy(options)
        assert preflight(options, 'x.yml', True) == []
        assert options == original
    assert sorted(tmp_path.rglob('*')) == before
    assert loggers == (dict(initialized_logger), list(logging.getLogger('basicsr').handlers))
    assert capfd.readouterr() == ('', '')


def test_the_trial_of_a_data_set_leaves_it_as_it_was(stock, monkeypatch):
    class Turning(PairedImageDataset):
        """As Vimeo90KDataset does with its frames."""

        def __init__(self, opt):
            super().__init__(opt)
            self.own = {'levels': {'noise': [1, 2]}}

        def __getitem__(self, index):
            self.paths.reverse()
            assert self.io_backend_opt is self.opt['io_backend']  # as it was
            if self.file_client is None:
                self.file_client = FileClient(self.opt['io_backend'].pop('type'))
            self.own['levels']['noise'].pop()
            return super().__getitem__(index)

    monkeypatch.setitem(DATASET_REGISTRY._obj_map, 'Turning', Turning)
    turning = put(stock, 'datasets.train.type', 'Turning')
    (section, dataset), *_ = open_datasets(examine(turning, 'x.yml', True, later=True))
    assert dataset.paths == Turning(section).paths != dataset.paths[::-1]
    assert dataset.opt['io_backend'] == {'type': 'disk'}, 'not what FileClient has left'
    assert dataset.own == {'levels': {'noise': [1, 2]}}
    own = put(turning, 'datasets.train.use_hflip', 'often')
    assert 'must be true or false' in warnings_at(own, 'datasets.train.use_hflip')
    del Turning.__getitem__
    own = put(turning, 'datasets.train.use_hflip', DELETE)  # its __init__ might have set it
    assert 'write datasets.train.use_hflip' in problems_at(own, 'datasets.train')


def test_another_machine_may_lack_data_weights_and_gpus_but_not_sense(stock, plugin):
    for path in ('datasets.train.dataroot_gt', 'datasets.val.dataroot_lq', 'path.resume_state'):
        stock = put(stock, path, '/elsewhere')
    stock = put(put(stock, 'num_gpu', 8), 'path.pretrain_network_g', '/elsewhere/x.pth')
    assert len(preflight(stock, 'x.yml', True, resuming=False)) == 5
    assert preflight(stock, 'x.yml', True, here=False) == []
    plugin = put(plugin, 'datasets.train.dataroot_gt', '/elsewhere')
    assert preflight(plugin, 'x.yml', True, here=False) == []
    assert problems_at(put(plugin, 'train.x', 1), 'train.x', here=False)


def test_ranks_share_the_data(stock, monkeypatch):
    assert problems_at(put(stock, 'datasets.train.batch_size_per_gpu', 5), 'datasets.train') == ''
    monkeypatch.setenv('WORLD_SIZE', '2')
    stock = put(stock, 'datasets.train.batch_size_per_gpu', 5)
    place = 'datasets.train.batch_size_per_gpu'
    assert 'less than one batch' in problems_at(stock, place, launcher='pytorch')


def test_a_test_needs_no_discriminator(stock, tmp_path):
    options = put(stock, 'model_type', 'SRGANModel')
    options['network_d'] = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}
    weights = {'g': str(weights_of(options, tmp_path / 'g.pth')), 'd': '/gone/net_d.pth'}
    options['path'] = {f'pretrain_network_{label}': file for label, file in weights.items()}
    assert 'no such weight file' in problems_at(options, 'path.pretrain_network_d')
    assert preflight(for_test(options), 'x.yml', False) == []
    assert 'must be a section' in problems_at(put(options, 'network_d', None), 'network_d')


def test_two_validation_sets_need_two_names(stock):
    stock['datasets']['val_2'] = copy.deepcopy(stock['datasets']['val'])
    assert 'datasets.val too' in problems_at(stock, 'datasets.val_2.name')


def test_a_metric_with_ground_truth_needs_one(stock):
    single = {'type': 'SingleImageDataset', 'dataroot_lq': stock['datasets']['val']['dataroot_lq']}
    stock['datasets']['val'] = single
    assert 'ground truth' in problems_at(stock, 'val.metrics.psnr')
    val = {**single, 'type': 'PairedImageDataset', 'dataroot_gt': single['dataroot_lq']}
    stock['datasets'] |= {'val': val, 'val_2': {**single, 'name': 'other'}}
    assert 'datasets.val_2 has none' in problems_at(stock, 'val.metrics.psnr')
    stock['model_type'] = 'RestorationModel'  # leaves the metric out there
    assert problems_at(stock, 'val.metrics.psnr') == ''


def test_a_test_file_is_checked_as_such(stock, monkeypatch):
    stock['datasets'] = dict.fromkeys(('test_1', 'train'), stock['datasets']['val'])
    del stock['train'], stock['logger']
    assert 'a test reads val' in problems_at(stock, 'datasets.train')
    del stock['datasets']['train']
    (line,) = preflight(stock, 'x.yml', False, here=False)
    assert line.endswith('pretrain_network_g: is empty: the test would score a random network.')
    monkeypatch.setitem(MODEL_REGISTRY._obj_map, 'Loads', type('Loads', (SRModel,), {}))
    own, place = put(stock, 'model_type', 'Loads'), 'path.pretrain_network_g'
    assert problems_at(own, place)
    assert not problems_at(put(own, 'path.pretrain_model', 'x.pth'), place)
    assert problems_at(put(stock, 'path.pretrain_model', 'x.pth'), place)  # SRModel reads it not
    own['network_d'] = {'type': 'VGGStyleDiscriminator', 'num_in_ch': 3, 'num_feat': 4}
    assert problems_at(put(own, 'path.pretrain_network_d', 'x.pth'), place)
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'Own', type('Own', (nn.Linear,), {}))
    net = {'type': 'Own', 'in_features': 1, 'out_features': 1, 'bias': 'x.pth'}
    assert place not in ''.join(preflight(put(stock, 'network_g', net), 'x.yml', False, here=False))
    stock = put(stock, 'path.pretrain_network_g', '/elsewhere/x.pth')
    assert preflight(stock, 'x.yml', False, here=False) == []


@pytest.mark.parametrize(('place', 'wrong', 'says', 'right'), [
    ('datasets.train.dataset_enlarge_ratio', 0.5, 'at least 1', 1.5),  # some images never come
    ('datasets.train.max_error_share', 1, 'less than 1', 0.99),
    ('path.ignore_resume_networks', 'network_x', "Did you mean 'network_g'", 'network_g'),
    ('path.ignore_resume_networks', [['network_g']], 'no network', ['network_g']),
    ('val.prior_source', None, 'in quotes for the null prior', 'null'),  # YAML's null
])  # fmt: skip
def test_values_that_would_do_something_else_are_refused(request, place, wrong, says, right):
    for kind in ('plugin',) if place == 'val.prior_source' else ('stock', 'plugin'):
        options = put(request.getfixturevalue(kind), 'datasets.train.on_error', 'skip')
        (line,) = preflight(put(options, place, wrong), 'x.yml', True)
        assert f'{place}: ' in line
        assert re.search(says, line)
        assert preflight(put(options, place, right), 'x.yml', True) == []


def test_tiles_are_judged_after_their_alignment_to_the_network(plugin):
    plugin = put(plugin, 'val', {**plugin['val'], 'prior_source': 'null', 'tile': 36})
    assert 'at least 48 pixels' in problems_at(plugin, 'val.tile')
    assert problems_at(put(plugin, 'val.tile', 48), 'val.tile') == ''
    assert problems_at(put(plugin, 'val.tile_overlap', 16), 'val.tile') == ''


@pytest.mark.parametrize(('embedding', 'groups', 'says'), [
    ('learned', ['restoration', 'embedding'], ''),
    ('learned', ['restoration'], "no limit for the parameter group 'embedding'"),
    ('learned', ['restoration', 'embeding'], "'embeding'. Did you mean 'embedding'"),
    ('label', ['restoration'], ''),
    ('label', ['restoration', 'embedding'], "no parameter group 'embedding'"),
])  # fmt: skip
def test_limits_name_the_groups_that_are_trained(tmp_path, embedding, groups, says):
    options = put(vlunet_file(tmp_path), 'network_e', EMBEDDINGS[embedding])
    options['train'] |= {'use_grad_clip': True, 'grad_clip_norm': dict.fromkeys(groups, 1)}
    found = problems_at(options, 'train.grad_clip_norm')
    assert says in found
    assert (found == '') is (says == '')


def test_a_key_beside_the_one_that_it_resembles_is_no_slip_in_a_derived_class(stock, monkeypatch):
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, 'Talkative', Talkative)
    derived = put(put(stock, 'datasets.train.type', 'Talkative'), 'datasets.train.gt_sice', 16)
    misspelt = put(derived, 'datasets.train.pin_memry', True)
    assert "'pin_memory'" in problems_at(misspelt, 'datasets.train.pin_memry')
    alone, place = put(derived, 'datasets.train.gt_size', DELETE), 'datasets.train.gt_sice'
    assert problems_at(alone, place) == '', 'which its own __init__ may read'
    monkeypatch.delattr(Talkative, '__init__')
    assert "'gt_size'" in problems_at(alone, place)
    assert problems_at(derived, place) == ''


def test_switches_may_be_0_or_1_and_means_single_numbers(stock):
    for key, value in {'use_hflip': 1, 'use_rot': 0, 'mean': 0.5, 'std': 0.5}.items():
        stock = put(stock, f'datasets.train.{key}', value)
    assert preflight(stock, 'x.yml', True) == []


def test_packages_that_a_training_needs_later_are_asked_for_first(plugin, monkeypatch):
    for name in ('pyiqa', 'wandb'):
        monkeypatch.setitem(sys.modules, name, None)
    options = put(plugin, 'val.metrics', {'x': {'type': 'calculate_pyiqa', 'metric': 'niqe'}})
    options['logger'] |= {'use_tb_logger': True, 'wandb': {'project': 'x'}}
    assert 'pip install unfoldldm_basicsr[pyiqa]' in problems_at(options, 'val.metrics.x')
    assert 'pip install wandb' in problems_at(options, 'logger.wandb')
    assert problems_at(options | {'name': 'debug_x'}, 'logger.wandb') == ''


def test_a_constructor_may_set_values_of_its_weights(stock):
    ridnet = {'type': 'RIDNet', 'in_channels': 3, 'mid_channels': 8, 'out_channels': 3}
    assert problems_at(put(stock, 'network_g', ridnet), 'network_g') == ''


@pytest.mark.parametrize(('path', 'value', 'says'), [
    ('path.models', '/elsewhere', 'not read'),
    ('logger.wandb', {'entity': 'me'}, 'is not read.*Known: project'),
    ('path.strict_load_g', None, ''), ('val.save_img', None, ''),
    ('path.resume_state', '', ''), ('val.suffix', '', ''), ('val.suffix', '-x4', ''),
    ('name', "EDSR x4: (DIV2K) [Ü] it's #1 & 50% *", ''),
])  # fmt: skip
def test_what_basicsr_overwrites_or_ignores_is_no_reason_to_refuse(request, path, value, says):
    for kind in ('stock', 'plugin'):
        options = put(request.getfixturevalue(kind), path, value)
        opt = examine(options, 'x.yml', True).run.opt
        assert 'models' not in opt['path'], 'no folder is made of it'
        place = f'{path}.entity' if path == 'logger.wandb' else path
        assert re.search(says, warnings_at(options, place))


def test_more_gpus_than_there_are_matter_to_a_training_that_needs_them(stock, plugin, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    for options, refused in ((stock, False), (plugin, True)):
        more = put(options, 'num_gpu', 8)
        problems = preflight(more, 'x.yml', True)
        assert bool([line for line in problems if 'num_gpu: 8 asked for' in line]) == refused
        test = put(put(more, 'datasets', {'test': more['datasets']['val']}), 'train', DELETE)
        assert not [line for line in preflight(test, 'x.yml', False) if 'num_gpu' in line]
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    assert 'sees 0' in problems_at(put(stock, 'num_gpu', 8), 'num_gpu', launcher='pytorch')


class Enlarged(nn.Upsample):
    def __init__(self, *, scale: int = 2):
        super().__init__(scale_factor=scale)


def test_a_network_without_weights_is_tested_without_any(stock, monkeypatch):
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'Enlarged', Enlarged)
    test = put(put(stock, 'datasets', {'test': stock['datasets']['val']}), 'train', DELETE)
    assert problems_at(test, 'path.pretrain_network_g')
    assert preflight(put(test, 'network_g', {'type': 'Enlarged'}), 'x.yml', False) == []


def weights_of(options: dict, file: Path) -> Path:
    torch.save({'params': build_network(options['network_g']).state_dict()}, file)
    return file


def test_weights_that_fit_are_accepted_and_others_explained(stock, tmp_path):
    file = weights_of(stock, tmp_path / 'net_g.pth')
    stock = put(stock, 'path.pretrain_network_g', str(file))
    assert preflight(stock, 'x.yml', True) == []
    wider = put(stock, 'network_g.num_feat', 8)
    assert 'does not fit network_g (MSRResNet)' in problems_at(wider, 'path.pretrain_network_g')
    loose = put(wider, 'path.strict_load_g', False)
    assert problems_at(loose, 'path.pretrain_network_g') == ''
    other = put(loose, 'network_g', {'type': 'NAFNet', 'width': 4})
    assert 'another network' in problems_at(other, 'path.pretrain_network_g')
    assert problems_at(put(stock, 'path.param_key_g', 'params_emma'), 'path.pretrain_network_g')
    assert preflight(put(stock, 'path.param_key_g', 'params_ema'), 'x.yml', True) == []
    misnamed = put(stock, 'path.pretrain_network_g', str(tmp_path / 'net_q.pth'))
    assert "Did you mean 'net_g.pth'" in problems_at(misnamed, 'path.pretrain_network_g')
    file.write_bytes(file.read_bytes()[:-30])
    assert 'damaged' in problems_at(stock, 'path.pretrain_network_g')


@pytest.mark.parametrize(('path', 'value', 'says'), [
    ('train.isda_opt', {'type': 'ISDALoss', 'start': 3}, 'from stage 3, and num_stages is 2'),
    ('train.prior_context', True, 'nothing without train.progressive'),
    ('logger.keep_best', True, 'nothing without val.metrics'),
    ('train.warmup_iter', 11, r'longer than the training \(10\)'),
])  # fmt: skip
def test_what_has_no_effect_is_told(plugin, path, value, says):
    plugin['train']['total_iter'], plugin['val']['metrics'] = 10, None
    assert re.search(says, warnings_at(put(plugin, path, value), path))


@pytest.fixture
def phase2(plugin):
    plugin = put(plugin, 'model_type', 'UnfoldLDMPhase2Model')
    plugin = put(plugin, 'network_g.phase', 2)
    return put(plugin, 'train.diffusion_opt', {'type': 'LatentDiffusionLoss'})


def test_phase_two_starts_from_the_weights_of_its_phase_one(plugin, phase2, tmp_path):
    place = 'path.pretrain_network_phase1'
    file = str(weights_of(plugin, tmp_path / 'phase1.pth'))
    assert preflight(put(phase2, place, file), 'x.yml', True) == []
    missing = problems_at(put(phase2, place, 'experiments/my1/models/net_g_latest.pth'), place)
    assert 'no such file' in missing
    assert 'unfoldldm_basicsr.train -opt YOUR_PHASE1.yml' in missing
    second = str(weights_of(phase2, tmp_path / 'phase2.pth'))
    assert 'pretrain_network_g' in problems_at(put(phase2, place, second), place)
    both = put(put(phase2, place, file), 'path.pretrain_network_g', second)
    assert 'is not read' in warnings_at(both, place)


def test_a_resumed_run_needs_no_weights_to_start_from(
    phase2, plugin, tmp_path, monkeypatch, capsys
):
    """Its checkpoint replaces them; a fresh start needs them, and so does an ignored network."""
    place = 'path.pretrain_network_phase1'
    options = put(phase2, place, '/moved/away.pth')
    assert preflight(options, 'x.yml', True, resuming=True) == []
    assert 'no such file' in problems_at(options, place)
    gone = put(options, 'path.resume_state', '/no/4.state')
    assert preflight(gone, 'x.yml', True, resuming=True) == []
    assert 'does not exist' in problems_at(gone, 'path.resume_state', resuming=False)
    (tmp_path / '5.state').write_bytes(b'')
    named = put(options, 'path.resume_state', str(tmp_path / '5.state'))
    assert problems_at(named, place) == ''
    assert 'no such file' in problems_at(named, place, resuming=False)
    ignored = put(options, 'path.ignore_resume_networks', ['network_g'])
    assert 'no such file' in problems_at(ignored, place, resuming=True)
    place = 'path.pretrain_network_g'
    assert 'no such weight file' in problems_at(put(plugin, place, '/no.pth'), place)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['x', '-opt', str(write_options(tmp_path / 'x.yml', options))])
    sys.argv.append('--auto_resume')
    with pytest.raises(SystemExit):
        parse_options(str(tmp_path), is_train=True)
    assert '/moved/away.pth: no such file' in capsys.readouterr().err
    states = tmp_path / 'experiments' / options['name'] / 'training_states'
    states.mkdir(parents=True)
    (states / '5.state').write_bytes(b'')
    assert parse_options(str(tmp_path), is_train=True)[0]['auto_resume']
    sys.argv.pop()
    with pytest.raises(SystemExit):
        parse_options(str(tmp_path), is_train=True)
