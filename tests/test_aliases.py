"""Option files of Restormer and NAFNet run as they are, and train as their projects do."""

import copy

import numpy as np
import pytest
import torch
import yaml
from basicsr.utils.registry import DATASET_REGISTRY, MODEL_REGISTRY
from fork_options import nafnet_files, restormer_files
from helpers import DELETE, model_options, put, write_options
from model_runs import steps
from option_mutants import Mutant
from option_runs import short_run
from tiny_trainings import NAFNET
from torch import nn

from unfoldldm_basicsr import cli
from unfoldldm_basicsr.common.option_files import OptionLoader
from unfoldldm_basicsr.common.sections import SECTIONS
from unfoldldm_basicsr.data.degradations import DegradationChain
from unfoldldm_basicsr.models import RestorationModel
from unfoldldm_basicsr.options.aliases import TABLE, translate
from unfoldldm_basicsr.options.preflight import examine
from unfoldldm_basicsr.training.networks import Restored, restore_image
from unfoldldm_basicsr.training.options import ValOptions

FILES = {**restormer_files(), **nafnet_files()}
COLOUR = 'GaussianColorDenoising_Sigma15'


def translated(options: dict) -> dict:
    options = copy.deepcopy(options)
    translate(options)
    return options


@pytest.mark.usefixtures('networks_once')
@pytest.mark.parametrize('name', FILES)
def test_a_released_file_passes_and_so_does_its_plain_form(name, tmp_path):
    original = write_options(tmp_path / 'x.yml', FILES[name])
    report = examine(FILES[name], 'x.yml', 'train' in FILES[name], here=False)
    assert report.problems == report.warnings == []
    assert any(note.startswith('model_type: ') for note in report.notes)
    new = tmp_path / 'new.yml'
    assert cli.main(['migrate', str(original), '-o', str(new)]) == 0
    plain = yaml.load(new.read_text(), Loader=OptionLoader)
    assert new.read_text().count('# ') == len(report.notes)
    assert plain == translated(FILES[name])  # which the check has looked at
    assert translate(plain) == []
    assert cli.main(['migrate', str(original), '-o', str(new)]) == 2  # a file that is there stays


def test_every_row_of_the_table_is_of_use():
    """A new key that BasicSR had already would hide it."""
    for row in TABLE:
        section = SECTIONS.get(row.section)
        assert section is None or row.key not in section.model_fields, row


def test_nafnet_clips_unless_told_otherwise():
    options = translated(FILES['SIDD32'])
    assert options['train']['use_grad_clip'] is True
    for key in ('use_grad_clip', 'decay_all'):
        assert translated(put(FILES['GoPro32'], f'train.{key}', False))['train'][key] is False
    assert translate({**options, 'model_type': 'RestorationModel', 'train': {}}) == []


def moved(folder, model_type: str, gradient: list[float], **decay) -> tuple:
    """How a step of rate 1 moves biases of 1 and two weights with so large gradients."""
    options = model_options(folder, dict(NAFNET), optim_g={'type': 'SGD', 'lr': 1.0, **decay})
    translate(options | {'model_type': model_type})
    model = RestorationModel(options)
    weight, bias = model.net_g.intro.parameters()
    nn.init.ones_(bias)
    before, factors = weight.detach().clone(), torch.tensor(gradient)
    model.cri_pix.register_forward_hook(
        lambda loss, images, value: 0 * value + (factors * weight[:2, 0, 0, 0]).sum()
    )
    steps(model, 1)
    return (before - weight.detach())[:2, 0, 0, 0].tolist(), bias.detach().unique().tolist()


def test_a_gradient_is_cut_to_the_norm_that_nafnet_allows(tmp_path):
    """A gradient of (3, 4) has the norm 5; of the norm 0.01 it is (0.006, 0.008)."""
    weights, _ = moved(tmp_path, 'ImageRestorationModel', [3.0, 4.0])
    assert weights == pytest.approx([0.006, 0.008], rel=1e-4)


def test_pairs_that_are_shifted_are_pairs_of_basicsr():
    shift = {'mean': [0.5, 0.5, 0.5], 'std': [0.5, 0.5, 0.5]}
    options = copy.deepcopy(FILES['Deraining'])
    options['datasets']['train'] |= shift
    translate(options)
    train = options['datasets']['train']
    assert (train['type'], train['use_rot']) == ('PairedImageDataset', True)
    assert shift.items() <= train.items()
    assert examine(options, 'x.yml', True, here=False).problems == []


def test_noise_levels_and_flips_keep_their_meaning():
    file = FILES['GaussianGrayDenoising_Sigma']
    part = translated(put(file, 'datasets.train.iters', DELETE))
    assert [*part['train']['progressive']] == ['gt_sizes', 'mini_batch_sizes'], 'iters is missing'
    options = translated(file)
    train, val = options['datasets']['train'], options['datasets']['val']
    assert train['degradations'] == [{'type': 'gaussian_noise', 'sigma': [0, 50]}]
    assert val['degradations'] == [{'type': 'gaussian_noise', 'sigma': 25}]
    assert (train['lq_output'], train['color'], val['color']) == ('unclipped', 'grey', 'grey')
    assert train['use_hflip'] is train['use_rot'] is True
    assert not {'iters', 'gt_sizes', 'mini_batch_sizes', 'dataroot_lq'} & train.keys()
    assert options['train']['progressive']['mini_batch_sizes'] == [8, 5, 4, 2, 1, 1]


def test_of_several_noise_levels_each_is_drawn_as_often():
    options = copy.deepcopy(FILES[COLOUR])
    unused = {'mean': [0.5] * 3, 'std': [0.5] * 3, 'sigma_test': 10}
    options['datasets']['train'] |= {'sigma_type': 'choice', 'sigma_range': [15, 50], **unused}
    options['datasets']['val'] |= {'sigma_type': 'random', 'sigma_range': [0, 50]}
    translate(options)
    assert examine(options, 'x.yml', True, here=False).problems == []
    train, val = options['datasets']['train'], options['datasets']['val']
    assert val['degradations'] == [{'type': 'gaussian_noise', 'sigma': 15}]
    chain, rng = DegradationChain(degradations=train['degradations']), np.random.default_rng(0)
    drawn = [parameters['sigma'] for _ in range(200) for _, parameters in chain.sample(rng)]
    assert set(drawn) == {15, 50}
    assert 70 < drawn.count(15) < 130


@pytest.mark.parametrize(('crops', 'tile'), [
    ({'crop_size_h': 256, 'crop_size_w': 128}, 256), ({'crop_size': 256}, 256),
    ({'crop_size_h_ratio': 0.5, 'crop_size_w_ratio': 0.25}, 0.5),
    ({'crop_size_h_ratio': 1.0, 'crop_size_w_ratio': 1.0}, None),
])  # fmt: skip
def test_grids_are_tiles(crops, tile):
    options = copy.deepcopy(FILES['GoPro32_test'])
    options['val'] |= {'grids': True, **crops}
    translate(options)
    assert options['val'].get('tile') == tile
    assert examine(options, 'x.yml', False, here=False).problems == []


def test_a_project_keeps_its_own_classes_of_these_names(monkeypatch):
    for registry, name in (
        (MODEL_REGISTRY, 'ImageCleanModel'),
        (DATASET_REGISTRY, 'Dataset_PairedImage'),
    ):
        monkeypatch.setitem(registry._obj_map, name, RestorationModel)
    options, before = copy.deepcopy(FILES['Deraining']), copy.deepcopy(FILES['Deraining'])
    assert translate(options) == []
    assert options == before


def test_a_tile_may_be_a_share_of_the_image():
    seen = []
    net = nn.Conv2d(3, 3, 1)
    net.register_forward_pre_hook(lambda net, images: seen.append(tuple(images[0].shape[-2:])))
    restore_image(net, torch.rand(1, 3, 24, 64), {}, ValOptions(tile=0.5))
    assert len(seen) == 3  # they overlap
    assert set(seen) == {(24, 32)}


@pytest.mark.parametrize(('name', 'key', 'value', 'says'), [
    (COLOUR, 'datasets.train.sigma_type', 'choose', 'constant, random'),
    (COLOUR, 'datasets.train.sigma_type', 'choice', 'must be a list'),
    ('GoPro32_test', 'val.grids', True, 'needs crop_size, crop_size_h'),
    ('SIDD32', 'train.mixup', True, 'write mixing_augs'),
    ('GoPro32', 'datasets.train.use_hflip', False, 'use_hflip is there too'),
])  # fmt: skip
def test_what_is_not_understood_is_left_to_the_check_and_said(name, key, value, says):
    options = put(FILES[name], key, value)
    report = examine(options, 'x.yml', 'train' in options, here=False)
    assert report.problems != []
    assert says in ' '.join(report.notes)
    assert len([note for note in report.notes if note.startswith(f'{key}: ')]) <= 1


def test_biases_decay_where_they_do_in_the_forks(tmp_path):
    """A rate of 1 and a decay of 0.1 make 0.9 of a bias of 1, with no gradient."""
    for model_type, bias in (('ImageCleanModel', 0.9), ('RestorationModel', 1.0)):
        _, biases = moved(tmp_path, model_type, [0.0, 0.0], weight_decay=0.1)
        assert biases == pytest.approx([bias])
    without = translated(put(FILES['SIDD32'], 'train.optim_g.weight_decay', 0))
    assert 'decay_all' not in without['train']


def test_floats_are_measured_where_the_file_says_so(tmp_path):
    """An error of 0.001 of red vanishes in 8 bits; without them it counts as one of red."""
    found, luma = {}, {'type': 'calculate_psnr', 'crop_border': 0, 'test_y_channel': True}
    for use_image in (True, False):
        options = model_options(tmp_path, dict(NAFNET))
        options['val']['use_image'] = use_image
        options['val']['metrics']['luma'] = luma
        model = RestorationModel(options)
        gt = torch.full((1, 3, 8, 8), 100 / 255)
        item = {'lq': gt[0], 'gt': gt[0], 'lq_path': 'x.png'}
        red = torch.tensor([0.001, 0, 0]).view(3, 1, 1)
        model.evaluator.restore = lambda batch, red=red: Restored(batch['gt'] + red)
        loader = torch.utils.data.DataLoader([item])
        (result,) = model.evaluator.evaluate(loader, 'x', save_img=False)
        found[use_image] = [*result.metrics.values()]
    assert found[True] == [np.inf, np.inf]
    expected = 60 + 10 * np.log10([3, (255 / 65.481) ** 2])
    assert found[False] == pytest.approx(expected, abs=0.01)


IN_SHORT = ['GaussianGrayDenoising_Sigma', 'DefocusDeblur_DualPixel_16bit', 'SIDD32']
IN_SHORT += ['GoPro32_test', 'SIDD32_test']


@pytest.mark.parametrize(
    'name', [n if n in IN_SHORT else pytest.param(n, marks=pytest.mark.slow) for n in FILES]
)
def test_a_released_file_runs_and_says_how_it_was_read(name, tmp_path, log):
    notes = translate(short_run(Mutant('', FILES[name], (), ()), tmp_path))
    assert [log.text.count(note) for note in notes] == [1] * len(notes) != []
    assert '# psnr' in log.text
