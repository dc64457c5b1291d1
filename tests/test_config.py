"""The preflight: every mistake in an option file is found, named and explained before a run."""

from __future__ import annotations

import copy
import logging
import re
from pathlib import Path

import pytest
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils.logger import get_root_logger, initialized_logger
from basicsr.utils.registry import DATASET_REGISTRY
from helpers import (
    DELETE,
    problems_at,
    put,
    warnings_at,
)
from tiny_vlunet import vlunet_kwargs

from unfoldldm_basicsr.options.preflight import preflight


def test_correct_options_have_no_problems(stock, plugin):
    assert preflight(stock, 'x.yml', True) == []
    assert preflight(plugin, 'x.yml', True) == []


STOCK_FAULTS = [
    ('name', DELETE, 'is missing'),
    ('name', '/abs', 'becomes a folder'),
    ('trian', {}, "Did you mean 'train'"),
    ('model_type', 'SRModl', "Did you mean 'SRModel'"),
    ('scale', '4', 'must be a whole number.*without quotes'),
    ('num_gpu', 'all', "'auto'"),
    ('num_gpu', 99, 'torch sees'),
    ('manual_seed', -1, 'at least 0'),
    ('network_g.type', 'MSRResnet', "Did you mean 'MSRResNet'"),
    ('network_g.type', DELETE, 'is missing: the network to use'),
    ('network_g.num_fet', 8, "is not an option of MSRResNet. Did you mean 'num_feat'"),
    ('network_g.num_feat', '8', 'must be a number'),
    ('network_g.upscale', 1, ''),
    ('datasets.train', DELETE, 'is missing: the data to train on'),
    ('datasets.valid', {}, 'is not read: training reads train'),
    ('datasets.train.type', 'PairedDataset', 'no data set .PairedDataset. is registered'),
    ('datasets.train.gt_sze', 4, "Did you mean 'gt_size'"),
    ('datasets.train.batch_size_per_gpu', DELETE, 'is missing'),
    ('datasets.train.batch_size_per_gpu', 6, 'less than one batch of 6'),
    ('datasets.train.dataroot_gt', '/no/such/folder', 'no such folder'),
    ('datasets.train.dataroot_lq', 'relative', 'Relative paths start at'),
    ('datasets.train.meta_info_file', '/no/such/file', 'no such file'),
    ('datasets.train.io_backend.type', 'memcached', "must be 'disk' or 'lmdb'"),
    ('datasets.train.io_backend.sys_path', '/x', 'is not an option. Known: type'),
    ('datasets.train', {'type': 'PairedImageDataset', 'batch_size_per_gpu': 1}, 'does not work'),
    ('path.my_folder', 3, 'makes a folder'),
    ('val.suffix', '../../x', 'becomes part of a file name'),
    ('datasets.val.name', '../x', 'becomes a folder'),
    ('path.pretrain_network_g', '/no.pth', 'no such file'),
    ('path.resume_state', '/no.state', 'no such file'),
    ('train.total_iter', DELETE, 'is missing'),
    ('train.total_iter', 1e30, 'at most 1000000000'),
    ('train.ema_decy', 0.9, "Did you mean 'ema_decay'"),
    ('train.optim_g.type', 'AdamW', "no optimiser 'AdamW' is known.*RestorationModel"),
    ('train.optim_g.lr', float('nan'), 'must be a finite number|Invalid learning rate: nan'),
    ('train.optim_g.wd', 0.1, 'is not an option of Adam'),
    ('train.pixel_opt.loss_weight', 'much', 'must be a number'),
    ('train.scheduler.type', 'CosineAnnealingLR', 'no schedule'),
    ('train.scheduler.milestones', 5, 'look at milestones: 5'),
    ('train.scheduler.gama', 0.5, "Did you mean 'gamma'"),
    ('train.pixel_opt', DELETE, 'nothing would be learned'),
    ('train.pixel_opt.loss_wieght', 1, "Did you mean 'loss_weight'"),
    ('train.pixel_opt.reduction', 'avg', 'Unsupported reduction mode: avg'),
    ('val.metrics.psnr.type', 'psnr', 'no metric'),
    ('val.metrics.psnr.test_y_chanel', True, "Did you mean 'test_y_channel'"),
    ('val.metrics.psnr.crop_border', DELETE, 'is missing'),
    ('val.metrics.psnr.better', 'up', "must be 'higher' or 'lower'"),
    ('logger.printfreq', 1, "Did you mean 'print_freq'"),
    ('logger.wandb', {'projct': 'x'}, ''),
]


WHERE = {  # where a fault is named that stands elsewhere
    'network_g.upscale': 'network_g',
    'train.pixel_opt.reduction': 'train.pixel_opt',
    'train.scheduler.milestones': 'train.scheduler',
    'logger.wandb': 'logger.wandb.projct',
}


@pytest.mark.parametrize(
    ('path', 'value', 'says'),
    STOCK_FAULTS,
    ids=[f'{path}-{says}'[:40] for path, _, says in STOCK_FAULTS],
)
def test_a_fault_with_stock_classes_is_explained_where_it_is(stock, path, value, says):
    where = WHERE.get(path, path)
    found = problems_at(put(stock, path, value), where)
    assert found
    assert re.search(says, found), found


PLUGIN_FAULTS = [
    ('network_g.num_stage', 3, "network_g.num_stage: .*Did you mean 'num_stages'"),
    ('network_g.num_blocks', [1, 'a', 1, 1], 'network_g.num_blocks.1: must be'),
    ('network_g.cond_detach', 'yes', 'network_g.cond_detach: must be true or false'),
    ('network_g.prior_input', 'gtt', "network_g.prior_input: .*Did you mean 'gt'"),
    ('network_g.num_stages', 0, 'network_g.num_stages: must be greater than 0'),
    ('datasets.train.dataroot_gt', '/no/such', 'datasets.train.dataroot_gt: .*/no/such'),
    ('train.scheduler.periods', [4, 5], 'train.scheduler.periods: .*total_iter'),
    ('train.optim_g.type', 'Adamw', "train.optim_g.type: .*Did you mean 'AdamW'"),
    ('train.grad_clip_nrm', 1, "train.grad_clip_nrm: .*Did you mean 'grad_clip_norm'"),
    ('train.isda_opt.start_stage', 2, 'train.isda_opt.start_stage: is not an option of ISDALoss'),
    ('train.isda_opt.norm', 'l3', 'train.isda_opt: ISDALoss'),
    ('val.tile', '512', 'val.tile: must be a whole number'),
]


@pytest.mark.parametrize(
    ('path', 'value', 'says'), PLUGIN_FAULTS, ids=[p for p, *_ in PLUGIN_FAULTS]
)
def test_a_fault_with_classes_of_this_package_is_explained(plugin, path, value, says):
    text = '\n'.join(preflight(put(plugin, path, value), 'x.yml', True))
    assert re.search(f'x.yml: {says}', text), text


def test_all_problems_are_reported_at_once(stock):
    paths = (
        'train.ema_decy',
        'val.sufix',
        'datasets.train.gtsize',
        'network_g.z',
        'logger.prnt_freq',
    )
    for path in paths:
        stock = put(stock, path, 1)
    assert len(preflight(stock, 'x.yml', True)) == len(paths)
    assert all(problems_at(stock, path) for path in paths)


def test_nothing_is_changed_written_or_logged(stock, plugin, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    before = sorted(p for p in tmp_path.rglob('*'))
    loggers = dict(initialized_logger), list(logging.getLogger('basicsr').handlers)
    for options in (stock, plugin):
        original = copy.deepcopy(options)
        preflight(options, 'x.yml', True)
        assert options == original
    assert sorted(p for p in tmp_path.rglob('*')) == before
    assert loggers == (dict(initialized_logger), list(logging.getLogger('basicsr').handlers))
    assert capfd.readouterr() == ('', '')


class Talkative(PairedImageDataset):
    """Sets BasicSR's logger up, as several classes of BasicSR do."""

    def __init__(self, opt):
        super().__init__(opt)
        get_root_logger().warning('set up')


def test_basicsr_can_still_set_its_logger_up_afterwards(stock, monkeypatch, capfd):
    """The first call decides about the log file, and it belongs to the training."""
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, 'Talkative', Talkative)
    monkeypatch.delitem(initialized_logger, 'basicsr', raising=False)
    handlers = list(logging.getLogger('basicsr').handlers)
    assert preflight(put(stock, 'datasets.train.type', 'Talkative'), 'x.yml', True) == []
    assert 'basicsr' not in initialized_logger
    assert logging.getLogger('basicsr').handlers == handlers
    assert capfd.readouterr() == ('', '')


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


def test_two_validation_sets_need_two_names(stock):
    stock['datasets']['val_2'] = copy.deepcopy(stock['datasets']['val'])
    assert 'datasets.val too' in problems_at(stock, 'datasets.val_2.name')


def test_a_metric_with_ground_truth_needs_one(stock):
    single = {'type': 'SingleImageDataset', 'dataroot_lq': stock['datasets']['val']['dataroot_lq']}
    stock['datasets']['val'] = single
    assert 'ground truth' in problems_at(stock, 'val.metrics.psnr')


def test_the_first_image_is_read(stock):
    for image in Path(stock['datasets']['val']['dataroot_lq']).iterdir():
        image.write_bytes(b'no image')
    assert 'does not work' in problems_at(stock, 'datasets.val')


def test_a_test_file_is_checked_as_such(stock):
    data = stock['datasets']['val']
    stock['datasets'] = {'test_1': data, 'train': data}
    del stock['train'], stock['logger']
    assert 'a test reads val' in problems_at(stock, 'datasets.train')
    del stock['datasets']['train']
    assert preflight(stock, 'x.yml', False, here=False) == [
        'x.yml: path.pretrain_network_g: is empty: the test would score a random network.'
    ]
    stock = put(stock, 'path.pretrain_network_g', '/elsewhere/x.pth')
    assert preflight(stock, 'x.yml', False, here=False) == []


# ---- options that would do something else than they say ------------------------------------------


@pytest.mark.parametrize('kind', ['stock', 'plugin'])
@pytest.mark.parametrize(
    ('place', 'wrong', 'says', 'right'),
    [  # BasicSR would draw from the first part of the images only
        ('datasets.train.dataset_enlarge_ratio', 0.5, 'at least 1', 1.5),
        ('datasets.train.max_error_share', 1, 'less than 1', 0.99),
        ('path.ignore_resume_networks', ['network_x'], "Did you mean 'network_g'", ['network_g']),
        ('path.ignore_resume_networks', [['network_g']], 'no network', ['network_g']),
    ],
)
def test_values_that_would_do_something_else_are_refused(request, kind, place, wrong, says, right):
    options = put(request.getfixturevalue(kind), 'datasets.train.on_error', 'skip')
    assert says in problems_at(put(options, place, wrong), place)
    assert problems_at(put(options, place, right), place) == ''


def test_keeping_the_best_needs_a_validation(plugin):
    place = 'logger.keep_best'
    plugin = put(plugin, place, True)
    assert problems_at(plugin, place) == ''
    without = {**plugin, 'datasets': {'train': plugin['datasets']['train']}}
    assert 'nothing is validated' in problems_at(without, place)
    assert 'val.metrics' in problems_at({**plugin, 'val': None}, place)


@pytest.mark.parametrize(
    ('stages', 'start', 'ok'),
    [(2, 2, True), (2, 3, False), (1, None, False), (None, 99, False)],
)
def test_consistency_needs_a_stage_that_counts(plugin, stages, start, ok):
    plugin = put(plugin, 'network_g.num_stages', DELETE if stages is None else stages)
    if start is not None:
        plugin['train']['isda_opt']['start'] = start
    found = problems_at(plugin, 'train.isda_opt.start')
    assert (found == '') is ok
    assert ok or f'num_stages is {stages or 3}, so the loss would be 0' in found


# ---- tiles --------------------------------------------------------------------------------------


def test_tiles_are_judged_after_their_alignment_to_the_network(plugin):
    plugin = put(plugin, 'val', {**plugin['val'], 'prior_source': 'null', 'tile': 36})
    assert 'at least 48 pixels' in problems_at(plugin, 'val.tile')
    assert problems_at(put(plugin, 'val.tile', 48), 'val.tile') == ''
    assert problems_at(put(plugin, 'val.tile_overlap', 16), 'val.tile') == ''


# ---- limits of the gradient norm ----------------------------------------------------------------

LABELS = {'type': 'LabelDegradationEmbedding', 'num_degradations': 1, 'embed_dim': 16}
LEARNED = {'type': 'LearnedDegradationEmbedding', 'embed_dim': 16}


@pytest.mark.parametrize(
    ('embedding', 'limits', 'says'),
    [
        (LEARNED, {'restoration': 1, 'embedding': 1}, ''),
        (LEARNED, {'restoration': 1}, "no limit for the parameter group 'embedding'"),
        (
            LEARNED,
            {'restoration': 1, 'embeding': 1},
            "no parameter group 'embeding'. Did you mean 'embedding'",
        ),
        (LABELS, {'restoration': 1}, ''),
        (LABELS, {'restoration': 1, 'embedding': 1}, "no parameter group 'embedding'"),
    ],
)
def test_limits_name_the_groups_that_are_trained(plugin, embedding, limits, says):
    names = {'degradation_names': ['noise'], 'degradation_name': 'noise'}
    for data in plugin['datasets'].values():
        data.update(names)
    plugin['train'].pop('isda_opt')
    plugin |= {
        'model_type': 'VLUNetModel',
        'network_g': {'type': 'VLUNet', **vlunet_kwargs(embed_dim=16)},
        'network_e': embedding,
    }
    plugin['train'] |= {'use_grad_clip': True, 'grad_clip_norm': limits}
    found = problems_at(plugin, 'train.grad_clip_norm')
    assert says in found
    assert (found == '') is (says == '')


@pytest.mark.parametrize('kind', ['stock', 'plugin'])
def test_a_note_at_the_top_is_left_alone(kind, request):
    options = put(request.getfixturevalue(kind), 'note', 'first try')
    assert not problems_at(options, 'note')
    assert 'left as it is' in warnings_at(options, 'note')
