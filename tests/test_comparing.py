"""Comparisons: what is equal is checked, budgets are kept, numbers and verdicts are right."""

import importlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import torch
from basicsr.archs import build_network
from basicsr.metrics import calculate_psnr
from basicsr.utils.registry import ARCH_REGISTRY
from helpers import ROOT, change, preflight, write_options, write_photos
from tiny_trainings import NAFNET

from unfoldldm_basicsr.common.files import write_bytes_atomic
from unfoldldm_basicsr.comparing import comparison, measuring, runs, testing
from unfoldldm_basicsr.comparing.comparison import named_files, words_of_task
from unfoldldm_basicsr.comparing.runs import Run, check_equal, check_runs, check_seeds, read_run
from unfoldldm_basicsr.comparing.tables import read_csv
from unfoldldm_basicsr.comparing.task import merged, options_of_test, read_task
from unfoldldm_basicsr.comparing.testing import CLASSICAL, DEGRADED, TRUTH
from unfoldldm_basicsr.comparing.workspace import Workspace
from unfoldldm_basicsr.pictures import plots

ADAM = {'type': 'AdamW', 'lr': 1e-3}
PSNR = {'psnr_y': {'type': 'calculate_psnr', 'crop_border': 0, 'test_y_channel': True}}


@pytest.fixture
def folder(tmp_path) -> Path:
    photos = str(write_photos(tmp_path / 'photos', 2)[0].parent)
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
            'test': {**data, 'name': 'shown', 'degradations': noise, 'repeat': 2},
        },
        'train': {'optim_g': ADAM, 'pixel_opt': {'type': 'L1Loss'},
                  'scheduler': {'type': 'TrueCosineAnnealingLR', 'T_max': '100 %'}},
        'val': {'val_freq': '50 %', 'metrics': PSNR},
        'logger': {'print_freq': 2, 'save_checkpoint_freq': '50%', 'use_tb_logger': False},
    }  # fmt: skip
    small = {'model_type': 'RestorationModel', 'network_g': NAFNET}
    wide = {**small, 'title': 'wide & deep', 'network_g': {**NAFNET, 'width': 8},
            'train': {'optim_g': {**ADAM, 'lr': 2e-3}}}  # fmt: skip
    for name, options in (('common', common), ('small', small), ('wide', wide)):
        write_options(place / f'{name}.yml', options)
    return place


@pytest.fixture
def in_process(monkeypatch):
    """Trains and measures in this process: what processes are for is tested with kill -9.

    Plots are drawn, but not rendered, which takes a second each.
    """

    def call(_place, arguments, log):
        _, module, *words = map(str, arguments)
        importlib.import_module(module).main(words)

    monkeypatch.setattr(Workspace, 'call', call)
    monkeypatch.setattr(plots, 'save_picture', lambda path, _: write_bytes_atomic(path, b''))
    monkeypatch.setattr(sys, 'argv', ['x'])


def by_side(file: Path) -> dict[str, dict]:
    return read_csv(file).set_index('side').to_dict('index')


def test_phases_share_the_budget_and_start_from_each_other():
    task = read_task(ROOT / 'options' / 'compare' / 'noise')
    side = next(s for s in task.sides if s.name == 'unfoldldm')
    first = task.options(side, 0, 200, 5, Path('/r'))
    second = task.options(side, 1, 100, 5, Path('/r'))
    assert (first['network_g']['phase'], second['network_g']['phase']) == (1, 2)
    assert first['network_g']['dim'] == second['network_g']['dim'] == 40
    assert (second['train']['prior_warmup_iter'], second['manual_seed']) == (8, 5)
    assert (first['train']['scheduler']['T_max'], first['val']['val_freq']) == (200, 50)
    weights = f'/r/experiments/{first["name"]}/models/net_g_latest.pth'
    assert second['path']['pretrain_network_phase1'] == weights
    assert second['train']['optim_g'] == first['train']['optim_g']
    assert second['train']['grad_clip_norm'] == {'restoration': 0.01, 'prior': 1.0}
    assert 'test' not in first['datasets']
    assert merged({'s': {'type': 'a', 'x': 1}}, {'s': {'type': 'b'}}) == {'s': {'type': 'b'}}


def test_rows_of_an_ablation_that_change_the_test_alone_are_not_trained_again():
    folder = ROOT / 'options' / 'ablate' / 'dark'
    with pytest.raises(ValueError, match='Name its folder'):
        read_task(folder / 'rows.yml')
    task = read_task(folder)
    assert (task.name, read_task(folder, ['name=mine']).name) == ('ablate_dark', 'mine')
    assert task.settings.reference == 'unfoldldm'
    untrained = {s.name for s in task.sides if s.trained_as != s.name}
    as_the_base = {'isda', 'from_x', 'windows', 'half'}
    assert untrained == {'prior_oracle', 'prior_null', 'prior_other', 'one_window'} | as_the_base
    null = next(s for s in task.sides if s.name == 'prior_null')
    base = task.test_options(task.sides[0], 0, Path('/r'))
    options = task.test_options(null, 0, Path('/r'))
    assert options['val'] == {**base['val'], 'prior_source': 'null'}
    assert options['path'] == base['path']
    assert options['name'] != base['name']


@pytest.mark.parametrize(
    ('place', 'named'), [('ablate/dark', 'UnfoldLDM: '), ('compare/dark', 'UnfoldLDM, UnfoldLDM, ')]
)
def test_a_report_names_own_options_once_and_what_was_trained_on(place, named):
    words = words_of_task(read_task(ROOT / 'options' / place))['own options']
    assert named in words
    assert words.count('train.stage_loss_weight') == 1
    assert 'train.stage_loss_weight 0.3 then 0.05' in words  # of Phase I and II
    assert ['grad_clip_norm not set' in words, 'path' in words] == [False, False]
    assert words.count(' then ') == 1  # what both phases have alike is said once
    task = read_task(ROOT / 'options' / 'compare' / 'dark', ['datasets:test_real=~'])
    words = words_of_task(task)
    assert words['unseen'] == 'CBSD68_unseen_strength'
    assert words['test data'].count('; 6 draws of each image') == 1
    assert '; center_crop ' in words_of_task(read_task(ROOT / 'options/compare/smoke'))['test data']
    mixture = words_of_task(read_task(ROOT / 'options' / 'compare' / 'all_in_one'))
    assert 'draws' not in mixture['training data']  # its repeat is of the epoch
    assert 'patches of 48 then 144 cut from 144, batch 8 then 1' in words['training data']
    noise = words_of_task(read_task(ROOT / 'options' / 'compare' / 'noise'))
    assert 'patches of 48, batch 8' in noise['training data']


SHIPPED = sorted(p for kind in ('compare', 'ablate') for p in (ROOT / 'options' / kind).iterdir())


@pytest.mark.usefixtures('networks_once')
@pytest.mark.parametrize('place', SHIPPED, ids=lambda p: f'{p.parent.name}-{p.name}')
def test_shipped_comparisons_are_comparable_and_pass_the_check_of_option_files(place):
    task = read_task(place)
    check_equal(task)
    for side in task.sides:
        for phase in range(len(side.phases) if side.trained_as == side.name else 0):
            options = task.options(side, phase, 500, 0, Path('/r'))
            assert preflight(options, side.name, True, here=False) == []
        if side.phases and (side is task.sides[0] or side.file.test.model_fields_set):
            test = task.test_options(side, 0, Path('/r'))
            assert preflight(test, side.name, False, here=False) == []


@pytest.mark.parametrize(('path', 'value', 'said'), [
    ('datasets.train.gt_size', 24, 'datasets.train.gt_size is 24, in common.yml 32'),
    ('datasets.train.use_rot', True, "datasets.train.use_rot is True, in common.yml 'not set'"),
    ('path', {'pretrain_network_g': 'x.pth'}, "path.pretrain_network_g is 'x.pth', in common"),
])  # fmt: skip
def test_sides_that_are_not_comparable_are_refused_with_the_difference(
    folder, path, value, said, output_of
):
    change(folder / 'wide.yml', path, value)
    for command in (
        ['compare', '-opt', folder, '--root', folder.parent],
        ['check', '-opt', folder],
    ):
        assert f'wide: {said}' in output_of(*command, status=2)
    change(folder / 'common.yml', 'compare.allow', [path])
    assert 'OK (a comparison, 4 tr' in output_of('check', '-opt', folder)
    change(folder / 'wide.yml', 'network_g.widht', 8)
    assert output_of('check', '-opt', folder, status=2).count('wide.yml: network_g.widht') == 1
    assert 'OK' in output_of('check', '-opt', folder, '--no-strict')  # a warning
    assert 'check its folder' in output_of('check', '-opt', folder / 'wide.yml', status=2)


def test_finished_runs_are_compared_phase_by_phase(tmp_path):
    def run(name: str, photos='photos', path=None, lr=1.0) -> Run:
        data = {'datasets': {'train': {'dataroot_gt': photos}}, 'network_g': {'type': 'NAFNet'}}
        made = Run(tmp_path / name, {'name': name, **data, 'path': path, 'train': {'lr': lr}})
        write_bytes_atomic(made.weights, b'')
        return made

    one, before = run('one'), run('before', photos='tests')
    after = run('after', path={'pretrain_network_g': str(before.weights)})
    loose = run('loose', path={'pretrain_network_g': 'x.pth'})
    for pair in ([[one], [before, after]], [[before, after], [one]]):
        with pytest.raises(ValueError, match=r"before: datasets\.train\.dataroot_gt is 'tests'"):
            check_runs(pair, ())
        check_runs(pair, ('datasets.train',))
    with pytest.raises(ValueError, match=r'loose: path\.pretrain_network_g is x\.pth, trained on'):
        check_runs([[one], [loose]], ())
    check_runs([[one], [loose]], ('path',))
    with pytest.raises(ValueError, match=r'two: train\.lr is 2\.0, in one 1\.0'):
        check_seeds([[one], [run('two', lr=2.0)]], ())
    check_seeds([[one], [run('two', lr=2.0)]], ('train.lr',))
    one.weights.unlink()
    with pytest.raises(ValueError, match='one: is not finished'):
        check_runs([[one]], ())


def test_the_code_of_a_network_of_a_project_is_that_of_its_package(tmp_path, monkeypatch, capsys):
    write_bytes_atomic(tmp_path / 'own_nets' / '__init__.py', b'class Mine: ...')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'Mine', importlib.import_module('own_nets').Mine)
    before = measuring.code_of({'type': 'Mine'})
    steps = measuring.key_of({'network_g': {'type': 'Mine'}})  # measured with this code
    write_bytes_atomic(tmp_path / 'own_nets' / 'later.py', b'# \xe9')  # not imported yet
    assert measuring.code_of({'type': 'Mine'})[:-1] == before != []
    assert measuring.key_of({'network_g': {'type': 'Mine'}}) != steps
    run = Run(tmp_path / 'run', {'name': 'mine', 'network_g': {'type': 'Mine'}})
    place = Workspace(tmp_path, tmp_path, 1)
    runs.tell_of_new_code([run], place)
    run.folder.mkdir()  # begun
    runs.tell_of_new_code([run], place)
    assert capsys.readouterr().out == ''
    write_bytes_atomic(tmp_path / 'own_nets' / 'last.py', b'')
    runs.tell_of_new_code([run], place)
    assert 'mine: the code of its project has changed' in capsys.readouterr().out
    assert measuring.code_of(NAFNET) == []


def test_sides_may_differ_in_what_leaves_the_result_as_it_is(folder):
    own = {'train.use_compile': True, 'logger.print_freq': 7, 'train.ema_decay': 0.5}
    for path, value in own.items():
        change(folder / 'wide.yml', path, value)
    with pytest.raises(ValueError, match='not comparable') as caught:
        check_equal(read_task(folder))
    named = [path for path in own if path in str(caught.value)]
    assert named == ['train.ema_decay']


@pytest.mark.parametrize(('file', 'path', 'value', 'said'), [
    ('common.yml', 'compare.budget', {'equal': 'days', 'amount': 1}, 'compare.budget.equal'),
    ('common.yml', 'compare.reference', 'smal', "unknown value 'smal'. Did you mean 'small'?"),
    ('common.yml', 'compare.sedes', [1], "Did you mean 'seeds'?"),
    ('common.yml', 'datasets', {}, 'datasets'),
    ('wide.yml', 'phases', [{'share': 0.5}, {'share': 0.6}], 'their sum is 1, got [0.5, 0.6]'),
    ('wide.yml', 'network_g', {**NAFNET, 'widht': 1}, 'network_g.widht'),
    ('wide.yml', 'test', {'val': {'tile': 32}}, 'is not larger than its overlap'),
    ('wide.yml', 'of', 'smal', "unknown value 'smal'. Did you mean 'small'?"),
    ('common.yml', 'train.total_iter', 5, 'train.total_iter is set by compare.budget'),
])  # fmt: skip
def test_wrong_option_files_are_refused_before_anything_is_trained(
    folder, file, path, value, said, output_of
):
    change(folder / file, path, value)
    assert said in output_of('compare', '-opt', folder, '--root', folder.parent, status=2)
    assert not (folder.parent / 'experiments').exists()


def test_a_row_with_the_name_of_the_base_is_refused(folder, output_of):
    write_options(folder / 'rows.yml', {'of': '.', 'base': 'wide', 'rows': {'wide': {}}})
    assert 'rows.wide has the name of the base' in output_of('ablate', '-opt', folder, status=2)


def test_every_side_is_tested_with_the_average_that_it_was_validated_with(tmp_path):
    weights, average = tmp_path / 'x.pth', {'ema_decay': 0.9}
    for train, key in ((average, 'params_ema'), ({}, None), (average, 'params')):
        assert options_of_test('', {'train': train}, {}, weights)['path'].get('param_key_g') == key
        if not train:  # next, of a model of a project that keeps no average
            torch.save({'params': {'gain': torch.ones(1)}}, weights)


def test_classical_methods_denoise_without_knowing_the_noise_and_brighten_dark_photos():
    clean, noise = torch.linspace(0.2, 0.7, 48).expand(1, 3, 48, 48), torch.randn(1, 3, 48, 48)
    noisy, dark = clean + 0.08 * noise, (clean**2.2 + 0.02 * noise).clamp(0, 1)
    denoise, brighten = CLASSICAL['non_local_means'], CLASSICAL['non_local_means_gamma']
    images = noisy, denoise(noisy), denoise(dark), brighten(dark)
    errors = [float((image - clean).square().mean()) for image in images]
    assert errors[1] < errors[0] / 4
    assert errors[3] < errors[2] / 20


@pytest.mark.usefixtures('in_process')
def test_a_comparison_runs_from_option_files_to_its_report_and_repeats_nothing(
    folder, output_of, monkeypatch
):
    root = folder.parent
    tiles = {'of': 'small', 'test': {'val': {'tile': 40, 'tile_overlap': 8}}}
    write_options(folder / 'small_tiled.yml', tiles)
    write_options(folder / 'without.yml', {'classical': 'non_local_means'})
    command = ['compare', '-opt', folder, '--root', root]
    assert '[2/2] tiny_iterations8_wide_seed3: 8 iterations, about' in output_of(*command)
    report = root / 'results' / 'tiny_iterations8'
    page = (report / 'report.md').read_text()
    said = '"tile": 40', 'wide & deep: type NAFNet, width 8, ', 'learning rate 0.002', 'no network'
    assert all(text in page for text in said)
    images = read_csv(report / 'images.csv')
    assert len(images) == 5 * 2 * 2  # each image with two draws of its noise
    assert (images['image'].nunique(), images['input'].nunique()) == (2, 4)
    assert {*read_csv(report / 'quality.csv')['images']} == {2}  # what intervals are over
    assert '2 draws of each image' in page
    kinds = [report / 'restored' / kind / 'shown' for kind in (DEGRADED, TRUTH)]  # the first draw
    saved = [cv2.imread(str(next(folder.glob('0000_*')))) for folder in kinds]
    psnr = calculate_psnr(*saved, crop_border=0, test_y_channel=True)
    assert psnr == pytest.approx(images['psnr_y'].iloc[0], abs=1e-9)
    assert {*read_csv(report / 'curves.csv')['seed']} == {3}
    costs = by_side(report / 'costs.csv')
    assert costs['wide & deep']['GMACs'] > costs['small']['GMACs'] > 0
    assert costs['small']['training_TMACs'] > 0 < costs['small']['latency_ms']
    os.utime(costs := report / 'deployment.csv', (0, 0))
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(comparison, 'machine', lambda _: 'another one')
        assert ' iterations' not in output_of(*command)
    assert costs.stat().st_mtime > 0  # measured there
    weights = root / 'experiments' / 'tiny_iterations8_wide_seed3' / 'models' / 'net_g_latest.pth'
    finished = ['compare', '--root', root, '--sizes', '32', '-opt', folder / 'common.yml']
    output_of(*finished, '--runs', 'tiny_iterations8_small_seed3', weights)
    made = f'unfoldldm compare --root {root} --sizes 32 -opt {folder / "common.yml"} --runs'
    protocol = (root / 'results' / 'runs' / 'protocol.csv').read_text()
    assert all(words in protocol for words in (made, 'patches of 32, batch 2', 'seeds,3'))
    other = by_side(root / 'results' / 'runs' / 'quality.csv')
    first = by_side(report / 'quality.csv')
    assert other['tiny_iterations8_small']['psnr_y'] == first['small']['psnr_y']
    wide = pytest.approx(first['wide & deep']['psnr_y'], abs=1e-3)
    assert other['net_g_latest']['psnr_y'] == wide
    other = weights.parents[2] / 'tiny_iterations8_small_seed3' / 'models' / weights.name
    output_of(*finished, '-o', root / 'alike', '--runs', other, weights)  # no run among them
    runs = {f'tiny_iterations8_{name}_seed3_models_net_g_latest.pth' for name in ('small', 'wide')}
    assert by_side(root / 'alike' / 'quality.csv').keys() == {'degraded', *runs}
    run = ['--runs', 'tiny_iterations8_small_seed3']
    for words, message in (
        ([*run, '--only', 'small'], '--only is for comparisons that train'),
        ([*run, '--reference', 'nobody'], "--reference: unknown value 'nobody'"),
        ([*run, '--threads', '0'], '--runs: threads must be'),
        (['--threads', '2'], '--threads is for --runs'),
    ):
        assert message in output_of(*finished if '--runs' in words else command, *words, status=2)
    change(folder / 'common.yml', 'val.metrics', {})
    for words in ([*finished, *run], [*command, '--force_yml', 'name=other']):
        assert 'nothing to compare by' in output_of(*words, status=2)
    assert [*root.glob('experiments/other*')] == []
    change(folder / 'common.yml', 'val.metrics', PSNR)
    output_of(*(single := ('report', 'tiny_iterations8_small_seed3', '--root', root)))
    page = root / 'results' / 'report_tiny_iterations8_small_seed3' / 'report.md'
    assert 'validation_psnr_y.png' in page.read_text()
    assert (report / 'quality_over_iteration.png').exists()
    shutil.rmtree(report / 'restored')  # as a call that drew other seeds leaves it
    output_of(*command, '--only', 'small')
    assert not (report / 'differences.csv').exists()  # of both sides
    before = by_side(report / 'quality.csv')['degraded']['psnr_y']
    write_photos(root / 'photos', 2, seed=1)  # others in the same place
    output_of(*command, '--only', 'small')
    assert by_side(report / 'quality.csv')['degraded']['psnr_y'] != before
    more = [*command, '--force_yml', 'compare:seeds=[3,4]']
    assert 'datasets.train: its files are others' in output_of(*more, status=2)
    quality, file = root / 'results' / 'runs' / 'quality.csv', root / 'candidate.pth'
    shutil.copy(weights.with_name('net_g_4.pth'), file)
    output_of(*finished, '--runs', file)
    before = by_side(quality)['candidate']['psnr_y']
    os.utime(weights, (0, 0))  # older than the table of what it replaces
    weights.replace(file)
    output_of(*finished, '--runs', file)
    assert by_side(quality)['candidate']['psnr_y'] != before
    change(folder / 'wide.yml', 'network_g.width', 6)
    shutil.rmtree(report)  # the runs themselves know how they were trained
    assert 'was trained with network_g.width 8, now 6' in output_of(*command, status=2)
    for file in (root / 'experiments' / single[1]).glob('validation_*.csv'):
        file.unlink()
    output_of(*single)
    assert 'No validations' in page.read_text()


def test_a_test_is_made_again_for_another_metric_or_version_and_scores_the_first_of_two_views(
    tmp_path, monkeypatch
):
    roots = {f'dataroot_{key}': tmp_path / key for key in ('gt', 'lq', 'lq_right')}
    for seed, root in enumerate(roots.values()):
        write_photos(root, 1, (32, 32), seed=seed)
    data = {'type': 'DualPixelDataset', 'name': 'views', **{k: str(v) for k, v in roots.items()}}
    restormer = {'type': 'Restormer', 'dim': 8, 'num_blocks': [1] * 4, 'heads': [1] * 4}
    network = {**restormer, 'inp_channels': 6, 'dual_pixel_task': True}
    torch.save({'params': build_network(dict(network)).state_dict()}, tmp_path / 'x.pth')
    own = {'model_type': 'RestorationModel', 'network_g': network, 'num_gpu': 0, 'scale': 1}
    options = options_of_test('x', {**own, 'val': {'metrics': PSNR}}, {'test': data}, 'x.pth')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['x'])
    place = Workspace(tmp_path, tmp_path / 'report', 1)
    (first,) = testing.tested(options, place, pictures=False).to_dict('records')
    files = (next(roots[f'dataroot_{key}'].iterdir()) for key in ('lq', 'gt'))
    psnr = calculate_psnr(*(cv2.imread(str(file)) for file in files), 0, test_y_channel=True)
    assert first['degraded psnr_y'] == pytest.approx(psnr, abs=1e-9)
    more = {**PSNR, 'ssim': {'type': 'calculate_ssim', 'crop_border': 0}}
    monkeypatch.setattr(testing, 'metrics_of', lambda _: more)  # as when LPIPS can be fetched again
    assert 'ssim' in testing.tested(options, place, pictures=False)
    made, restoring = [], testing.restoring
    monkeypatch.setattr(testing, 'restoring', lambda *given: made.append(1) or restoring(*given))
    for changed, value, tests in (
        ('__version__', testing.__version__, 0), ('__version__', 'another', 1),
        ('code_of', lambda _: ['edited'], 2),
    ):  # fmt: skip
        monkeypatch.setattr(testing, changed, value)
        testing.tested(options, place, pictures=False)
        assert len(made) == tests


@pytest.mark.usefixtures('in_process')
def test_a_comparison_that_was_moved_is_not_trained_again(folder, output_of):
    phases = [{'share': 0.5}, {'share': 0.5, 'path': {'pretrain_network_g': 'previous'}}]
    small = {'model_type': 'RestorationModel', 'network_g': NAFNET, 'phases': phases}
    write_options(folder / 'small.yml', small)
    command = ['compare', '-opt', folder, '--only', 'small', '--root']
    here, moved = folder.parent / 'here', folder.parent / 'moved'
    output_of(*command, here)
    here.rename(moved)
    assert ' iterations' not in output_of(*command, moved)
    runs = read_run(Path('tiny_iterations8_small_seed3_phase2'), moved)
    assert [(run.folder.parents[1], run.iterations) for run in runs] == [(moved, 4), (moved, 4)]
    runs[1].folder.rename(folder / 'elsewhere')
    runs[1].folder.symlink_to(folder / 'elsewhere')
    (folder / 'runs').symlink_to(moved / 'experiments')  # on another disk
    assert read_run(folder / 'runs' / runs[1].name, moved)[1].weights.is_file()
    change(folder / 'small.yml', 'phases', [phases[0], {'share': 0.5}])
    assert 'was trained with path' in output_of(*command, moved, status=2)


@pytest.mark.parametrize(('name', 'command', 'changed'), [
    ('debug_b', "train -opt a.yml --debug --force_yml name=b 'train:lr=[1, 2]'", [1, 2]),
    ('b', 'train -opt a.yml --force_yml=name=b', 0),
    ('debug_a', 'train -opt a.yml --debug', 0),
    ('a', "/o'brien/train.py -opt a.yml", 0),  # cannot be taken apart
    ('a', 'x --force_yml train:lr=[1, 2]', 0),
])  # fmt: skip
def test_a_run_is_read_with_what_its_command_line_changed(tmp_path, name, command, changed):
    folder = tmp_path / 'experiments' / name
    folder.mkdir(parents=True)
    for own in ('a', 'debug_a')[: 1 if name == 'a' else 2]:  # BasicSR's own start adds no second
        text = f'# GENERATE TIME: now\n# CMD:\n# {command}\n\nname: {own}\ntrain: {{lr: 0}}\n'
        (folder / 'a.yml').write_text(text)
        (run,) = read_run(Path(name), tmp_path)
        assert run.options == {'name': name, 'train': {'lr': changed}}


def test_a_warm_up_of_8_percent_counts_in_the_cost_of_a_step(monkeypatch):
    training = SimpleNamespace(count=lambda progress: {'progress': progress})
    monkeypatch.setattr(measuring, 'Training', lambda *_: training)
    progress = measuring.steps('', [{}], rounds=0)['progress']
    assert (progress <= 0.08).mean() == pytest.approx(0.08, abs=0.01)


def test_cost_is_that_of_the_fastest_or_largest_round_and_of_what_is_deployed(monkeypatch):
    seconds = iter([9.0, 3.0, 2.0, 4.0])  # the first warms up
    growths = iter([9.0, 3.0, 5.0, 4.0])
    monkeypatch.setattr(measuring, 'seconds_of', lambda *_: next(seconds))
    monkeypatch.setattr(measuring, 'peak_growth', lambda *_: next(growths))
    networks = {'a': {'type': 'NAFNet', 'img_channel': 1, 'width': 4}}
    (row,) = measuring.deployment(networks, [16], 1, rounds=3).to_dict('records')
    assert (row['latency_ms'], row['peak_MiB']) == (2000, 5)
    for phase in ({'phase': 2}, {'phase': 'joint'}, {}):  # 2 is the default
        assert measuring.deployed({'type': 'UnfoldLDM', **phase})['phase'] == 'inference'


@pytest.mark.skipif(sys.platform != 'linux', reason='nothing tells the peak')
def test_peak_memory_is_what_this_call_needs_above_the_state_before():
    torch.ones(2**26)  # 256 MiB, freed
    assert 60 < measuring.peak_growth(lambda: torch.ones(2**24), 'cpu') < 100


def test_files_of_one_name_are_told_apart():
    files = [Path('/r/A/net_g.pth'), Path('/r/B/net_g.pth'), Path('/r/x.pth'), Path('/r/x.st')]
    names = [*named_files([*files, Path('/q/y.pth')]).values()]
    assert names == ['A_net_g.pth', 'B_net_g.pth', 'x.pth', 'x.st', 'y']


def test_what_is_told_to_stop_is_waited_for(tmp_path, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which jobs in & ignore
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    program = (
        'import signal, sys, time\n'
        'signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), print("saved"), sys.exit()))\n'
        'print("ready", flush=True)\ntime.sleep(60)'
    )
    log = tmp_path / 'logs' / 'x.txt'

    def interrupt():
        while not (log.exists() and 'ready' in log.read_text()):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        Workspace(tmp_path, tmp_path, 1).call(['-c', program], log='x')
    assert log.read_text() == 'ready\nsaved\n'


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
