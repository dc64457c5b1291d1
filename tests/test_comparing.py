"""Comparisons: what is equal is checked, budgets are kept, numbers and verdicts are right."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers import ROOT, write_options, write_photos
from torch.utils.flop_counter import FlopCounterMode

from unfoldldm_basicsr.cli import main
from unfoldldm_basicsr.common.cost import network_cost
from unfoldldm_basicsr.comparing import curves
from unfoldldm_basicsr.comparing.measuring import convolution_backward_flops
from unfoldldm_basicsr.comparing.report import (
    Entry,
    build,
    by_image,
    difference_table,
    disagreement_box,
    image_table,
    most_disagreeing,
    render,
    write_page,
)
from unfoldldm_basicsr.comparing.runs import check_equal
from unfoldldm_basicsr.comparing.statistics import paired_difference
from unfoldldm_basicsr.comparing.tables import latex, markdown, read_csv, write_csv
from unfoldldm_basicsr.comparing.task import read_task
from unfoldldm_basicsr.comparing.testing import CLASSICAL, lpips_works, metrics_of, scores
from unfoldldm_basicsr.comparing.workspace import Workspace
from unfoldldm_basicsr.options.preflight import preflight
from unfoldldm_basicsr.pictures import plots
from unfoldldm_basicsr.pictures.drawing import save_picture

NAFNET = {
    'type': 'NAFNet', 'width': 4, 'enc_blk_nums': [1], 'middle_blk_num': 1, 'dec_blk_nums': [1]
}  # fmt: skip
ADAM = {'type': 'AdamW', 'lr': 1e-3}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Option files of two tiny networks on pictures made up here."""
    photos = str(write_photos(tmp_path / 'photos', 9)[0].parent)
    data = {'type': 'SyntheticDegradationDataset', 'dataroot_gt': photos}
    noise = [{'type': 'gaussian_noise', 'sigma': 25}]
    place = tmp_path / 'task'
    place.mkdir()
    common = {
        'name': 'tiny',
        'scale': 1,
        'num_gpu': 0,
        'compare': {'budget': {'equal': 'iterations', 'amount': 8}, 'sizes': [32], 'seeds': [3]},
        'datasets': {
            'train': {**data, 'gt_size': 32, 'batch_size_per_gpu': 2, 'num_worker_per_gpu': 0,
                      'degradations': [{'type': 'gaussian_noise', 'sigma': [5, 45]}]},
            'val': {**data, 'name': 'held_out', 'degradations': noise},
            'test': {**data, 'name': 'shown', 'degradations': noise},
        },
        'train': {'optim_g': ADAM, 'pixel_opt': {'type': 'L1Loss'},
                  'scheduler': {'type': 'TrueCosineAnnealingLR', 'T_max': '100 %'}},
        'val': {'val_freq': '50 %',
                'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 0}}},
        'logger': {'print_freq': 2, 'save_checkpoint_freq': '50%', 'use_tb_logger': False},
    }  # fmt: skip
    write_options(place / 'common.yml', common)
    write_options(place / 'small.yml', {'model_type': 'RestorationModel', 'network_g': NAFNET})
    wide = {
        'title': 'wide & deep', 'model_type': 'RestorationModel',
        'network_g': {**NAFNET, 'width': 8}, 'train': {'optim_g': {**ADAM, 'lr': 2e-3}},
    }  # fmt: skip
    write_options(place / 'wide.yml', wide)
    return place


@pytest.fixture
def in_process(monkeypatch):
    """Trains and measures in this process: what processes are for is tested with kill -9."""

    def call(_place, arguments, log):
        _, module, *words = map(str, arguments)
        importlib.import_module(module).main(words)

    monkeypatch.setattr(Workspace, 'call', call)
    monkeypatch.setattr(sys, 'argv', ['x'])


def change(file: Path, path: str, value: object) -> None:
    """Sets a key of an option file."""
    options = yaml.safe_load(file.read_text())
    *sections, key = path.split('.')
    part = options
    for section in sections:
        part = part.setdefault(section, {})
    part[key] = value
    write_options(file, options)


def by_side(file: Path) -> dict[str, dict]:
    """Rows of a table, by the side they are about."""
    return {row['side']: row for row in read_csv(file).to_dict('records')}


# ---- what is equal, and what is a side's own ------------------------------------------------


def test_phases_share_the_budget_and_start_from_each_other():
    task = read_task(ROOT / 'options' / 'compare' / 'noise')
    side = next(s for s in task.sides if s.name == 'unfoldldm')
    first = task.options(side, 0, 200, 5, Path('/r'))
    second = task.options(side, 1, 100, 5, Path('/r'))
    assert (first['network_g']['phase'], second['network_g']['phase']) == (1, 2)
    assert first['network_g']['dim'] == second['network_g']['dim'] == 36
    assert second['train']['prior_warmup_iter'] == 8
    assert (first['train']['scheduler']['T_max'], first['val']['val_freq']) == (200, 50)
    weights = f'/r/experiments/{first["name"]}/models/net_g_latest.pth'
    assert second['path']['pretrain_network_phase1'] == weights
    assert second['train']['optim_g'] == first['train']['optim_g']
    assert second['train']['grad_clip_norm'] == {'restoration': 0.01, 'prior': 1.0}
    assert 'test' not in first['datasets']
    assert second['manual_seed'] == 5


@pytest.mark.parametrize('name', ['noise', 'dark'])
def test_rows_of_an_ablation_that_change_the_test_alone_are_not_trained_again(name):
    task = read_task(ROOT / 'options' / 'ablate' / name)
    assert task.settings.reference == 'unfoldldm'
    untrained = {s.name for s in task.sides if s.trained_as != s.name}
    assert untrained == {'prior_oracle', 'prior_null', 'prior_other'}
    null = next(s for s in task.sides if s.name == 'prior_null')
    base = task.test_options(task.sides[0], 0, Path('/r'))
    options = task.test_options(null, 0, Path('/r'))
    assert options['val'] == {**base['val'], 'prior_source': 'null'}
    assert options['path'] == base['path']
    assert options['name'] != base['name']


SHIPPED = sorted(p for kind in ('compare', 'ablate') for p in (ROOT / 'options' / kind).iterdir())


@pytest.mark.parametrize('place', SHIPPED, ids=lambda p: f'{p.parent.name}-{p.name}')
def test_shipped_comparisons_are_comparable_and_pass_the_check_of_option_files(place):
    task = read_task(place)
    check_equal(task)
    shared = place.parent.name == 'ablate' and place.name == 'dark'  # the rows of noise
    for side in task.sides[:1] if shared else task.sides:
        for phase in range(len(side.phases) if side.trained_as == side.name else 0):
            options = task.options(side, phase, 500, 0, Path('/r'))
            assert preflight(options, side.name, True, here=False) == []
        if side.phases and (side is task.sides[0] or side.file.test.model_fields_set):
            test = task.test_options(side, 0, Path('/r'))
            assert preflight(test, side.name, False, here=False) == []


@pytest.mark.parametrize(
    ('path', 'value', 'said'),
    [
        ('datasets.train.gt_size', 24, 'datasets.train.gt_size is 24, in common.yml 32'),
        ('datasets.test.dataroot_gt', '/x', "datasets.test.dataroot_gt is '/x'"),
        ('datasets.train.use_rot', True, "datasets.train.use_rot is True, in common.yml 'absent'"),
        ('train.mixing_augs', {'mixup': True}, 'train.mixing_augs.mixup is True'),
        ('val.metrics', {'psnr': {'crop_border': 4}}, 'val.metrics.psnr.crop_border is 4'),
    ],
)
def test_sides_that_are_not_comparable_are_refused_with_the_difference(
    folder, path, value, said, capsys
):
    change(folder / 'wide.yml', path, value)
    assert main(['compare', '-opt', str(folder), '--root', str(folder.parent)]) == 2
    assert f'wide: {said}' in capsys.readouterr().err
    change(folder / 'common.yml', 'compare.allow', [path])
    check_equal(read_task(folder))


@pytest.mark.parametrize(
    ('file', 'path', 'value', 'said'),
    [
        ('common.yml', 'compare.budget', {'equal': 'days', 'amount': 1}, 'compare: budget'),
        ('common.yml', 'compare.reference', 'smal', "no side 'smal'. Did you mean 'small'?"),
        ('common.yml', 'compare.sedes', [1], "Did you mean 'seeds'?"),
        ('common.yml', 'network_g', NAFNET, 'network_g belongs into the file of a side'),
        ('wide.yml', 'phases', [{'share': 0.5}, {'share': 0.6}], 'their sum is 1, got [0.5, 0.6]'),
        ('wide.yml', 'network_g', {**NAFNET, 'widht': 1}, 'network_g.widht'),
        ('wide.yml', 'test', {'val': {'tile': 32}}, 'is not larger than its overlap'),
        ('wide.yml', 'of', 'smal', "no side 'smal'. Did you mean 'small'?"),
    ],
)  # fmt: skip
def test_wrong_option_files_are_refused_before_anything_is_trained(
    folder, file, path, value, said, capsys
):
    change(folder / file, path, value)
    assert main(['compare', '-opt', str(folder), '--root', str(folder.parent)]) == 2
    assert said in capsys.readouterr().err
    assert not (folder.parent / 'experiments').exists()


def test_non_local_means_denoises_without_knowing_the_noise():
    clean = torch.linspace(0.2, 0.8, 48).expand(1, 3, 48, 48)
    noisy = clean + 0.08 * torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    restored = CLASSICAL['non_local_means'](noisy)
    errors = [(image - clean).square().mean() for image in (noisy, restored)]
    assert errors[1] < errors[0] / 4


def test_the_classical_method_for_dark_photos_brightens_and_denoises():
    clean = torch.linspace(0.2, 0.7, 48).expand(1, 3, 48, 48)
    dark = clean**2.2 + 0.02 * torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    errors = {
        name: (method(dark.clamp(0, 1)) - clean).square().mean()
        for name, method in CLASSICAL.items()
    }
    assert errors['non_local_means_gamma'] < errors['non_local_means'] / 20


# ---- statistics -----------------------------------------------------------------------------


def test_the_interval_is_that_of_a_case_worked_out_by_hand():
    # Means of 10 draws from five 0 and five 1 are binomial; symmetric, so BCa corrects nothing:
    # P(mean <= 0.1) = 11/1024 < 2.5 % < P(mean <= 0.2) = 56/1024.
    gain = paired_difference([0.0] * 5 + [1.0] * 5)
    assert (gain.mean, gain.low, gain.high) == (0.5, pytest.approx(0.2), pytest.approx(0.8))
    assert gain.verdict() == 'better'
    assert gain.verdict(higher_is_better=False) == 'worse'
    assert gain._replace(low=-0.1).verdict() == 'no verdict'
    assert gain._replace(low=-0.8, high=-0.2).verdict() == 'worse'
    assert 'fewer than' in gain._replace(images=3).verdict()


def test_equal_networks_are_called_better_about_as_often_as_promised():
    rng, verdicts = np.random.default_rng(0), []
    for _ in range(1000):
        images = rng.normal(28, 3, 40)  # hard and easy ones
        one, other = (images + rng.normal(0, 0.2, 40) for _ in range(2))
        verdicts.append(paired_difference(one - other, resamples=999).verdict())
    for verdict in ('better', 'worse'):
        assert 10 <= verdicts.count(verdict) <= 45  # 2.5 % of 1000, with the bootstrap's small bias


# ---- costs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'layer',
    [
        torch.nn.Conv2d(8, 8, 3, padding=1, groups=8),
        torch.nn.Conv2d(8, 12, 3, stride=2, padding=1),
        torch.nn.ConvTranspose2d(8, 4, 2, stride=2),
    ],
)
def test_a_backward_convolution_costs_two_forward_ones(layer):
    x = torch.rand(2, 8, 16, 16, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        y = layer(x)
    formulas = {torch.ops.aten.convolution_backward: convolution_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=formulas) as backward:
        y.sum().backward()
    assert backward.get_total_flops() == 2 * forward.get_total_flops()


def test_published_operation_counts_follow_from_the_same_networks():
    # Restormer: its authors count convolutions only, one by one. The attention's products come on
    # top; the product of its weights with the projection saves a convolution.
    blocks, heads = [4, 6, 6, 8], [1, 2, 4, 8]
    network = {'type': 'Restormer', 'dim': 48, 'num_blocks': blocks, 'heads': heads,
               'num_refinement_blocks': 4, 'ffn_expansion_factor': 2.66}  # fmt: skip
    levels = [(level, count, 48 * 2**level) for level, count in enumerate(blocks)]
    levels += [(2, 6, 192), (1, 6, 96), (0, 4 + 4, 96)]  # decoder and refinement
    products = projections = 0
    for level, count, width in levels:
        products += count * (256**2 // 4**level) * width**2 // heads[level]  # q k^T
        projections += count * width**3 // heads[level]  # its weights times the projection
    published = 140.99e9
    assert network_cost(network, 256).macs == pytest.approx(
        published + products + projections, abs=0.01e9
    )
    nafnet = {'type': 'NAFNet', 'width': 64, 'middle_blk_num': 12, 'enc_blk_nums': [2, 2, 4, 8],
              'dec_blk_nums': [2, 2, 2, 2]}  # fmt: skip
    assert network_cost(nafnet, 256).macs == pytest.approx(63.33e9, rel=0.002)  # ptflops


# ---- tables ---------------------------------------------------------------------------------

TABLE = pd.DataFrame(
    {
        'side': ['cat', 'a|b_'], 'psnr': [20.125, float('nan')], 'ssim': [0.81234, 0.8],
        'n': [3, 4], 'nothing': [float('nan')] * 2,
    }
)  # fmt: skip


def test_tables_have_the_usual_decimals_and_no_live_characters(tmp_path):
    lines = markdown(TABLE, 'RGB.').splitlines()
    assert lines[:2] == ['RGB.', '']
    cells = [[cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]] for line in lines[2:]]
    assert cells[0] == ['side', 'psnr', 'ssim', 'n']
    assert [cell[-1] == ':' for cell in cells[1]] == [False, True, True, True]
    assert cells[2:] == [['cat', '20.12', '0.8123', '3'], [r'a\|b_', '-', '0.8000', '4']]
    assert r'b\_' in latex(TABLE)
    write_csv(TABLE, tmp_path / 'new' / 'x.csv')
    pd.testing.assert_frame_equal(read_csv(tmp_path / 'new' / 'x.csv'), TABLE)
    with pytest.raises(ValueError, match='needs rows, and a note'):
        markdown(TABLE, ' ')


# ---- report ---------------------------------------------------------------------------------


def made_up_sides(folder: Path) -> tuple[list[Entry], dict[tuple[str, int], pd.DataFrame]]:
    """Two sides on ten images, with two seeds; they differ most on image 7, in its lower right."""
    rng, entries, scores = np.random.default_rng(0), [], {}
    truth = rng.integers(0, 256, (10, 64, 64, 3), dtype=np.uint8)
    for number, name in enumerate(('one', 'other_net')):
        for seed in range(2):
            scores[name, seed] = pd.DataFrame(
                {
                    'set': 'shown', 'image': f'{i:04d}_x', 'input': f'h{i}',
                    'psnr': 30 + i / 10 + number * (1 + 4 * (i == 7)) + seed / 100,
                    'degraded psnr': 20.0,
                }
                for i in range(10)
            )  # fmt: skip
        for i, image in enumerate(truth):
            image = image.copy()
            image[40:60, 40:60] += np.uint8(100 * number)
            for kind in (name, 'degraded', 'truth'):
                save_picture(folder / 'restored' / kind / 'shown' / f'{i:04d}_x.png', image)
        entries.append(Entry(name, name, None, [{'name': name}], []))
    return entries, scores


def test_a_report_says_what_differs_by_how_much_and_how_often_it_was_asked(tmp_path):
    entries, scores = made_up_sides(tmp_path)
    costs = pd.DataFrame(
        {'side': e.name, 'size': 32, 'params_M': 1.0, 'GMACs': 2.0 + n, 'latency_ms': 3.0 + n,
         'peak_MiB': 4.0}
        for n, e in enumerate(entries)
    )  # fmt: skip
    protocol = {'title': 'made up', 'test data': 'ten images'}
    metrics = {'psnr': {'type': 'calculate_psnr'}}
    build(tmp_path, entries, scores, protocol, costs, metrics=metrics)
    quality = by_side(tmp_path / 'quality.csv')
    assert quality['one']['psnr'] == pytest.approx(30.455)
    assert quality['other_net']['psnr'] == pytest.approx(31.855)
    assert quality['one']['psnr spread'] == pytest.approx(0.01 / 2**0.5)
    (row,) = read_csv(tmp_path / 'differences.csv').to_dict('records')
    assert row['difference'] == pytest.approx(-1.4)
    assert row['verdict'] == 'worse'
    page = (tmp_path / 'report.md').read_text()
    assert 'Comparisons in this report: 1;' in page
    assert 'other_net' in page
    assert '31.86' in page
    assert r'other\_net' in (tmp_path / 'quality.tex').read_text()
    for name in ('quality_against_GMACs', 'quality_against_latency_ms', 'images', 'crops'):
        assert f'{name}.png' in page
        assert (tmp_path / f'{name}.png').stat().st_size > 1000
    assert page == render(tmp_path)
    assert main(['report', str(tmp_path), '--page', str(tmp_path / 'docs' / 'page.md')]) == 0
    shown = (tmp_path / 'docs' / 'page.md').read_text()
    assert f'](page/{tmp_path.name}/crops.png)' in shown
    for name in ('crops.png', 'quality.csv'):
        copy = tmp_path / 'docs' / 'page' / tmp_path.name / name
        assert copy.read_bytes() == (tmp_path / name).read_bytes()
    assert main(['report', str(tmp_path), '--no-crops', '--page', str(tmp_path / 'x.md')]) == 0
    assert 'images.png' in (tmp_path / 'x.md').read_text()
    assert 'crops.png' not in (tmp_path / 'x.md').read_text()


def test_crops_show_where_the_sides_disagree_most(tmp_path):
    _, tables = made_up_sides(tmp_path)
    scores = by_image(image_table(tables), 'shown', 'psnr')
    assert scores['one']['0003_x'] == pytest.approx(30.305)  # mean of the seeds
    assert most_disagreeing(scores)[0] == '0007_x'
    flat = np.zeros((64, 64, 3), np.uint8)
    spot = flat.copy()
    spot[40:60, 30:50] = 90
    assert disagreement_box([flat, spot, flat], 20) == (40, 30, 20, 20)


def test_sides_tested_on_other_images_are_refused(tmp_path):
    _, tables = made_up_sides(tmp_path)
    tables['other_net', 1].loc[3, 'input'] = 'h_other'
    with pytest.raises(ValueError, match='other_net and one were not tested on the same degraded'):
        image_table(tables)


class LPIPS(torch.nn.Module):
    """Stands in for the class of the package ``lpips``."""

    reachable = False

    def __init__(self, **_):
        super().__init__()
        if not self.reachable:
            raise OSError('no network')

    def forward(self, x, y):
        return (x - y).abs().mean()


def test_lpips_is_reported_where_it_can_be_measured(tmp_path, monkeypatch, log):
    lpips_works.cache_clear()
    asked = {'val': {'metrics': {'psnr': {}}}}
    assert metrics_of(asked) == {'psnr': {}}
    package = types.ModuleType('lpips')
    package.LPIPS, package.__spec__ = LPIPS, ModuleSpec('lpips', None)
    monkeypatch.setitem(sys.modules, 'lpips', package)
    lpips_works.cache_clear()
    assert metrics_of(asked) == {'psnr': {}}
    assert 'no weights for it: no network' in log.text
    monkeypatch.setattr(LPIPS, 'reachable', True)
    lpips_works.cache_clear()
    metric = {'lpips': metrics_of(asked)['lpips']}
    lpips_works.cache_clear()
    black, grey = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 51, np.uint8)
    assert scores(black, grey, metric) == {'lpips': pytest.approx(0.4)}
    entries, tables = made_up_sides(tmp_path)
    images = image_table(tables).rename(columns={'psnr': 'lpips'})
    (row,) = difference_table(images, entries, metric, None).to_dict('records')
    assert row['verdict'] == 'better'  # the first has less


def test_what_a_resumed_training_repeats_counts_once(tmp_path):
    (tmp_path / 'validation_set.csv').write_text(
        'iteration,degradation,images,psnr\n4,all,3,20.5\n8,all,3,21\n8,all,3,21.25\n'
    )
    assert list(curves.validations(tmp_path)['value']) == [20.5, 21.25]
    line = '2026-01-01 INFO: [tiny][epoch:  0, iter:{:>8}, lr:(1.0e-03,)] [eta: 0:00] l_pix: {} \n'
    (tmp_path / 'train_a.log').write_text(line.format('1,025', '5.0e-01'))
    (tmp_path / 'train_b.log').write_text(line.format('1,025', '4.0e-01'))
    expected = [{'figure': 'l_pix', 'iteration': 1025, 'value': 0.4}]
    assert curves.log(tmp_path).to_dict('records') == expected


# ---- the whole way --------------------------------------------------------------------------


def test_a_comparison_runs_from_option_files_to_its_report_and_repeats_nothing(
    folder, in_process, capsys
):
    root = folder.parent
    tiles = {'of': 'small', 'test': {'val': {'tile': 40, 'tile_overlap': 8}}}
    write_options(folder / 'small_tiled.yml', tiles)
    write_options(folder / 'without.yml', {'classical': 'non_local_means'})
    command = ['compare', '-opt', str(folder), '--root', str(root)]
    assert main(command) == 0
    report = root / 'results' / 'tiny_iterations8'
    assert '[2/2] tiny_iterations8_wide_seed3: 8 iterations, about' in capsys.readouterr().out
    page = (report / 'report.md').read_text()
    assert '"tile": 40' in page
    assert 'wide & deep' in page
    assert len(read_csv(report / 'images.csv')) == 5 * 9
    costs = by_side(report / 'costs.csv')
    assert costs['wide & deep']['GMACs'] > costs['small']['GMACs'] > 0
    assert costs['small']['training_TMACs'] > 0
    assert costs['small']['latency_ms'] > 0
    before = {file: file.read_bytes() for file in report.glob('*.*')}
    assert main(command) == 0
    assert ' iterations' not in capsys.readouterr().out
    assert {file: file.read_bytes() for file in report.glob('*.*')} == before

    weights = root / 'experiments' / 'tiny_iterations8_wide_seed3' / 'models' / 'net_g_latest.pth'
    finished = ['compare', '--root', str(root), '--sizes', '32', '-opt', str(folder / 'common.yml')]
    assert main([*finished, '--runs', 'tiny_iterations8_small_seed3', str(weights)]) == 0
    other = by_side(root / 'results' / 'runs' / 'quality.csv')
    first = by_side(report / 'quality.csv')
    assert other['tiny_iterations8_small']['psnr'] == first['small']['psnr']
    assert other['net_g_latest']['psnr'] == pytest.approx(first['wide & deep']['psnr'], abs=1e-3)

    assert main(['report', 'tiny_iterations8_small_seed3', '--root', str(root)]) == 0
    single = root / 'results' / 'report_tiny_iterations8_small_seed3'
    assert 'validation_psnr.png' in (single / 'report.md').read_text()

    change(folder / 'wide.yml', 'network_g.width', 6)
    assert main(command) == 2
    assert 'was trained with network_g.width 8, now 6' in capsys.readouterr().err


@pytest.mark.faults
def test_a_killed_comparison_goes_on_and_ends_with_the_same_numbers(folder):
    change(folder / 'common.yml', 'compare.budget.amount', 40)
    roots = [folder.parent / name for name in ('whole', 'killed')]
    command = [sys.executable, '-m', 'unfoldldm_basicsr.cli', 'compare', '-opt', str(folder)]
    started = subprocess.Popen([*command, '--root', str(roots[1])], start_new_session=True)
    states = roots[1] / 'experiments' / 'tiny_iterations40_wide_seed3' / 'training_states'
    while started.poll() is None and not list(states.glob('*.state')):
        time.sleep(0.2)
    os.killpg(started.pid, signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    for root in roots:
        subprocess.run([*command, '--root', str(root)], check=True)
    whole, killed = (root / 'results' / 'tiny_iterations40' for root in roots)
    for name in ('images', 'quality', 'differences'):
        assert (whole / f'{name}.csv').read_bytes() == (killed / f'{name}.csv').read_bytes()


def test_the_results_page_is_rendered_from_the_tables_of_real_runs(tmp_path, monkeypatch):
    shutil.copytree(ROOT / 'docs' / 'results', tmp_path / 'docs' / 'results')
    monkeypatch.chdir(tmp_path)
    write_page(Path('docs/results.md'), [])
    assert Path('docs/results.md').read_text() == (ROOT / 'docs' / 'results.md').read_text()


def test_every_side_of_a_curve_is_named_where_all_end_alike():
    names = [f'side {n}' for n in range(4)]
    table = pd.DataFrame([(n, x, 27 + x / 100) for n in names for x in (0, 100)],
                         columns=['side', 'seconds', 'value'])  # fmt: skip
    figure = plots.curves(table, 'seconds', plots.Labels('s', 'psnr', ''), plots.looks(names))
    figure.canvas.draw()
    texts = [text for text in figure.axes[0].texts if text.get_text() in names]
    assert [text.get_tightbbox().width > 0 for text in texts] == [True] * 4
