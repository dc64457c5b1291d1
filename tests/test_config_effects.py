"""Options that would do nothing, or something else than they say, are refused."""

from __future__ import annotations

import pytest
from helpers import problems_at, put, tiny_unfoldldm, warnings_at
from tiny_vlunet import vlunet_kwargs

from unfoldldm_basicsr.options.preflight import preflight

# ---- keys of training data in a validation set --------------------------------------------------

OF_TRAINING = {
    'num_worker_per_gpu': 2,
    'batch_size_per_gpu': 1,
    'dataset_enlarge_ratio': 2,
    'use_shuffle': True,
    'persistent_workers': True,
}
OF_LOADER = {'prefetch_mode': 'cpu', 'pin_memory': True}
OF_PATCHES = {'gt_size': 32, 'use_hflip': True, 'use_rot': False}


@pytest.mark.parametrize('key', [*OF_TRAINING, *OF_LOADER, *OF_PATCHES])
def test_a_validation_set_knows_no_keys_of_training(plugin, key):
    place = f'datasets.val.{key}'
    value = (OF_TRAINING | OF_LOADER | OF_PATCHES)[key]
    assert 'has no effect here' in warnings_at(put(plugin, place, value), place)


@pytest.mark.parametrize('key', OF_TRAINING)
def test_nor_does_one_of_a_stock_model(stock, key):
    place = f'datasets.val.{key}'
    assert 'has no effect here' in warnings_at(put(stock, place, OF_TRAINING[key]), place)


@pytest.mark.parametrize(('key', 'value'), (OF_LOADER | OF_PATCHES).items())
def test_what_the_loader_of_a_stock_model_or_a_stock_set_may_read_stays(stock, key, value):
    place = f'datasets.val.{key}'
    assert warnings_at(put(stock, place, value), place) == ''


@pytest.mark.parametrize('value', [{'timeout': 60}, {'on_error': 'raise'}])
def test_what_has_an_effect_in_a_validation_stays(plugin, value):
    plugin['datasets']['val'].update(value)
    assert preflight(plugin, 'x.yml', True) == []


def test_the_parts_of_a_mixture_know_none_either(plugin):
    part = {k: v for k, v in plugin['datasets']['val'].items() if k != 'name'}
    part |= {'degradation_name': 'noise', 'use_rot': True}
    plugin['datasets']['val'] = {
        'type': 'MixedDegradationDataset',
        'degradation_names': ['noise'],
        'sets': [part],
    }
    assert 'has no effect here' in warnings_at(plugin, 'datasets.val.sets.0.use_rot')
    del part['use_rot']
    assert preflight(plugin, 'x.yml', True) == []


# ---- other keys ---------------------------------------------------------------------------------


def test_a_queue_needs_its_prefetcher(plugin):
    place = 'datasets.train.num_prefetch_queue'
    plugin = put(plugin, place, 3)
    assert 'prefetch_mode: cpu' in warnings_at(plugin, place)
    assert preflight(put(plugin, 'datasets.train.prefetch_mode', 'cpu'), 'x.yml', True) == []


@pytest.mark.parametrize('kind', ['stock', 'plugin'])
def test_less_than_one_pass_over_the_data_is_refused(request, kind):
    """BasicSR would draw from the first part of the images only."""
    options, place = request.getfixturevalue(kind), 'datasets.train.dataset_enlarge_ratio'
    assert 'at least 1' in problems_at(put(options, place, 0.5), place)
    assert problems_at(put(options, place, 1.5), place) == ''


@pytest.mark.parametrize('kind', ['stock', 'plugin'])
def test_not_all_images_may_be_unreadable(request, kind):
    options = put(request.getfixturevalue(kind), 'datasets.train.on_error', 'skip')
    place = 'datasets.train.max_error_share'
    assert 'less than 1' in problems_at(put(options, place, 1), place)
    assert problems_at(put(options, place, 0.99), place) == ''


@pytest.mark.parametrize('kind', ['stock', 'plugin'])
def test_only_networks_of_the_file_can_be_left_out_of_a_resumption(request, kind):
    options, place = request.getfixturevalue(kind), 'path.ignore_resume_networks'
    assert "Did you mean 'network_g'" in problems_at(put(options, place, ['network_x']), place)
    assert 'no network' in problems_at(put(options, place, [['network_g']]), place)
    assert problems_at(put(options, place, ['network_g']), place) == ''


def test_keeping_the_best_needs_a_validation(plugin):
    place = 'logger.keep_best'
    plugin = put(plugin, place, True)
    assert problems_at(plugin, place) == ''
    without = {**plugin, 'datasets': {'train': plugin['datasets']['train']}}
    assert 'nothing is validated' in problems_at(without, place)
    assert 'val.metrics' in problems_at({**plugin, 'val': None}, place)


@pytest.mark.parametrize(
    ('stages', 'start', 'ok'), [(2, 2, True), (2, 3, False), (1, 1, True), (1, None, False)]
)
def test_consistency_needs_a_stage_that_counts(plugin, stages, start, ok):
    plugin = put(plugin, 'network_g.num_stages', stages)
    if start is not None:
        plugin['train']['isda_opt']['start'] = start
    found = problems_at(plugin, 'train.isda_opt.start')
    assert (found == '') is ok
    assert ok or f'num_stages is {stages}' in found


def test_the_stages_that_a_network_has_by_default_count_too(plugin):
    del plugin['network_g']['num_stages']
    plugin['train']['isda_opt']['start'] = 99
    assert 'would be 0' in problems_at(plugin, 'train.isda_opt.start')


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
        (LEARNED, {'restoration': 1, 'embeding': 1}, "Did you mean 'embedding'"),
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


def test_both_phases_name_their_groups(plugin):
    plugin['network_g'] = tiny_unfoldldm('joint')
    plugin['model_type'] = 'UnfoldLDMPhase2Model'
    plugin['train'] |= {
        'use_grad_clip': True,
        'diffusion_opt': {'type': 'LatentDiffusionLoss'},
    }
    place = 'train.grad_clip_norm'
    plugin = put(plugin, place, {'restoration': 0.01, 'prior': 1.0})
    assert problems_at(plugin, place) == ''
    assert 'no limit' in problems_at(put(plugin, place, {'restoration': 0.01}), place)
