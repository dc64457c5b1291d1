"""What a validation reads, writes and shows: named when it fails, no two in one file."""

import math
import os
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from unittest.mock import Mock

import cv2
import pytest
import torch
from basicsr.data import build_dataset
from dataset_options import paired, synthetic
from helpers import csv_rows, model_options, stock_options, write_photos
from model_runs import Board, Pictures, validate
from torch.utils.data import DataLoader

from unfoldldm_basicsr.common.errors import DataFault, OutputWriteError
from unfoldldm_basicsr.models import RestorationModel
from unfoldldm_basicsr.preparing.lmdb_writer import write_lmdb
from unfoldldm_basicsr.training.evaluation import Evaluator
from unfoldldm_basicsr.training.networks import Restored
from unfoldldm_basicsr.training.validation_report import (
    ImageResult,
    SavedImages,
    append_rows,
    degradation_rows,
    listed_names,
    write_validation_csv,
)


@pytest.fixture
def model(tmp_path) -> RestorationModel:
    return RestorationModel(model_options(tmp_path / 'run', {'type': 'TinyConvNet'}))


@pytest.fixture
def photos(tmp_path) -> dict:
    write_photos(tmp_path / 'photos', 3, (24, 32))
    return synthetic(tmp_path / 'photos', 'val')


def saved(model: RestorationModel) -> list[str]:
    folder = Path(model.opt['path']['visualization'])
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*.png'))


def test_a_hanging_disk_ends_a_validation_after_the_timeout_of_its_section(model, photos):
    loader = DataLoader(build_dataset(photos | {'timeout': 0.3}))
    path = Path(photos['dataroot_gt'], 'img_2.png')
    path.unlink()
    os.mkfifo(path)  # nobody writes to it
    fault = r'img_2\.png: .*no answer within 0\.3 s \(its option timeout\)'
    with pytest.raises(DataFault, match=fault):
        model.evaluator.evaluate(loader, '1', save_img=False)


def test_a_pair_that_no_metric_compares_is_named(model, tmp_path):
    for side, height in (('gt', 24), ('lq', 32)):
        write_photos(tmp_path / side, 1, (height, 32))
    options = paired(tmp_path / 'gt', tmp_path / 'lq', 'val', type='PairedImageDataset')
    with pytest.raises(DataFault, match=r'lq/img_0\.png, .*gt/img_0\.png: .* 32x32 .* 32x24'):
        validate(model, build_dataset(options))


@pytest.mark.parametrize(
    ('key', 'save_img', 'file'),
    [('log', False, 'validation_photos.csv'), ('visualization', True, 'img_0_')],
)
def test_a_result_that_cannot_be_written_is_named(model, photos, key, save_img, file):
    folder = Path(model.opt['path'][key])
    model.opt['path'][key] = str(folder / 'in_the_way')
    (folder / 'in_the_way').write_text('')
    with pytest.raises(OutputWriteError, match=r'\. Free space') as caught:
        validate(model, build_dataset(photos), save_img=save_img)
    assert str(caught.value).startswith(f'cannot write {folder}/in_the_way/{file}')
    assert '\n' not in str(caught.value)


def test_a_table_gets_all_rows_of_a_validation_or_none(tmp_path, monkeypatch):
    path = tmp_path / 'x.csv'
    append_rows(path, [{'iteration': '1', 'image': 'a'}, {'iteration': '2', 'image': 'b'}])
    append_rows(path, [{'iteration': '3', 'image': 'c'}])
    before = path.read_bytes()
    assert before == b'iteration,image\r\n1,a\r\n2,b\r\n3,c\r\n'
    monkeypatch.setattr(os, 'fsync', Mock(side_effect=OSError(28, 'No space left on device')))
    with pytest.raises(OutputWriteError, match=r'cannot write .*x\.csv: No space left on device'):
        append_rows(path, [{'iteration': '4', 'image': 'd'}])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ['x.csv']


def test_a_degradation_without_a_defined_value_makes_the_average_undefined():
    results = [ImageResult(0, 'x', 'a', {'psnr': math.nan}), ImageResult(1, 'y', 'b', {'psnr': 3})]
    assert math.isnan(degradation_rows(results)['average'][1]['psnr'])
    assert degradation_rows(results[:1]) == {}


def test_images_without_named_degradations_leave_one_row_and_a_new_metric_gets_a_column(tmp_path):
    path = tmp_path / 'validation_x.csv'
    for label, metrics in (('1', {}), ('2', {'ssim': 0.5}), ('3', {})):
        results = [ImageResult(i, 'x', None, {'psnr': 20.0 + i, **metrics}) for i in range(3)]
        write_validation_csv(results, path, label)
    assert path.read_text().splitlines() == [
        'iteration,degradation,images,psnr,ssim', '1,all,3,21.0000,', '2,all,3,21.0000,0.5000',
        '3,all,3,21.0000,',
    ]  # fmt: skip
    assert [*tmp_path.iterdir()] == [path]
    write_validation_csv([ImageResult(0, 'x', None)], tmp_path / 'validation_y.csv', '1')
    assert [*tmp_path.iterdir()] == [path]


def test_images_of_one_name_in_two_sets_go_to_two_files(model, tmp_path):
    folders = [write_photos(tmp_path / name, 1, seed=i)[0].parent for i, name in enumerate('ab')]
    sets = [build_dataset(synthetic(f, 'val', name=f'set_{f.name}')) for f in folders]
    validate(model, sets[0], 7, save_img=True)  # alone, as BasicSR does it
    (name,) = saved(model)
    image = name.split('/')[0]
    assert name == f'{image}/{image}_7.png'
    assert image.startswith('img_0')
    model.opt['datasets'] = {'train': {}, 'val': {}, 'val_2': {}}
    for each in sets:
        validate(model, each, 8, save_img=True)
    assert saved(model)[1:] == [f'set_{s}/{image}/{image}_8.png' for s in 'ab']
    folder = model.opt['path']['visualization']
    first, second = (cv2.imread(f'{folder}/{file}') for file in saved(model)[1:])
    assert (first != second).any()


def test_images_that_differ_only_in_their_ending_go_to_two_files(model, tmp_path):
    folder = write_photos(tmp_path / 'p', 2, (24, 32))[0].parent
    (folder / 'img_1.png').rename(folder / 'a.png')
    cv2.imwrite(str(folder / 'a.jpg'), cv2.imread(str(folder / 'a.png')))
    dataset = build_dataset(synthetic(folder, 'val'))
    validate(model, dataset, 7, save_img=True)
    ending = f'_{dataset.degradation_name}'
    names = {name.split('/')[0].replace(ending, '') for name in saved(model)}
    assert names == {'a_0', 'a_1', 'img_0_2'}


@pytest.mark.parametrize('kind', ['folder', 'lmdb'])
def test_names_are_known_without_reading_and_kept_where_they_differ(tmp_path, kind):
    root = tmp_path / 'photos'
    for scene in ('S1', 'S2'):
        write_photos(root / scene, 2, (24, 32))
    if kind == 'lmdb':
        write_lmdb(root, tmp_path / 'photos.lmdb')
        root = tmp_path / 'photos.lmdb'
    options = {'path': {'visualization': 'v'}, 'name': 'x', 'is_train': True}
    dataset = build_dataset(paired(root, root, 'val'))
    scenes = [f'{scene}_img_{index}' for scene in ('S1', 'S2') for index in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(dataset), '__getitem__', lambda *_: pytest.fail('read'))
        assert listed_names(dataset) == [f'{n}_{dataset.degradation_name}' for n in scenes]
        assert not SavedImages(options, dataset, '5').numbered
    write_photos(tmp_path / 'photos', 1, (24, 32))[0].rename(tmp_path / 'photos' / 'S1_img_1.png')
    if kind == 'folder':
        files = SavedImages(options, build_dataset(paired(root, root, 'val')), '5')
        assert len({files.path(index, 'S1_img_1', None) for index in (1, 2)}) == 2


@pytest.mark.parametrize('kind', ['stock', 'mixture', 'synthetic'])
def test_listed_names_are_those_of_the_results(photos, tmp_path, kind):
    if kind == 'stock':
        options = stock_options(tmp_path)['datasets']['val']
        dataset = build_dataset({**options, 'phase': 'val', 'scale': 4})
    elif kind == 'mixture':
        part = {key: photos[key] for key in ('type', 'dataroot_gt', 'degradations')}
        sets = [{**part, 'degradation_name': name} for name in ('rain', 'noise')]
        mixture = {'type': 'MixedDegradationDataset', 'degradation_names': ['noise', 'rain']}
        common = {'name': 'mixed', 'phase': 'val', 'scale': 1}
        dataset = build_dataset({**common, **mixture, 'sets': sets})
    else:
        dataset = build_dataset({**photos, 'repeat': 2})
    assert len(dataset) > 1
    options = {**OPT, 'is_train': False}
    run = Evaluator(options, torch.device('cpu'), lambda batch: Restored(batch['lq']))
    results = run.evaluate(DataLoader(dataset), '', save_img=False)
    names = [f'{r.name}_{r.degradation}' if r.degradation else r.name for r in results]
    assert listed_names(dataset) == names


OPT = {'is_train': True, 'rank': 0, 'world_size': 1, 'dist': False, 'name': 'x',
       'logger': {'use_tb_logger': True}}  # fmt: skip


def shown(folder, pictures=None, *, traced: bool = False, **changes) -> Board:
    """What a validation writes; the output is half as bright as the input."""

    def halves(batch):
        views = torch.cat([batch['lq'], 0 * batch['lq']])  # the first counts
        images = ([f / n * views for n in (16, 4, 1)] for f in (0.25, 4))
        stages = [SimpleNamespace(x_hat=a, x_tilde=b, x=c) for a, b, c in images]
        trace = SimpleNamespace(stages=stages) if traced else None
        return SimpleNamespace(output=0.5 * batch['lq'], trace=trace)

    run = Evaluator({**OPT, 'path': {'log': str(folder)}, **changes}, torch.device('cpu'), halves)
    board = Board()
    run.report('held_out', run.evaluate(DataLoader(pictures or Pictures(3)), '7', False), 7, board)
    return board


@pytest.mark.parametrize('prefix', ['', 'oracle_'])
def test_the_best_value_is_the_lowest_where_lower_is_better(prefix):
    psnr, lpips = f'{prefix}psnr', f'{prefix}lpips'
    val = {'metrics': {'psnr': {}, 'lpips': {'better': 'lower'}}}
    run = Evaluator({**OPT, 'val': val}, torch.device('cpu'), Mock(), prefix=prefix)
    values = enumerate([2.0, 3.0, 1.0, math.nan])
    improved = [run.update_best('x', {psnr: v, lpips: v}, i) for i, v in values]
    assert improved == [[psnr, lpips], [psnr], [lpips], []]
    assert run.best['x'][lpips] == {'better': 'lower', 'val': 1.0, 'iter': 2}


@pytest.mark.parametrize('traced', [False, True])
def test_panels_show_input_stages_output_and_truth(tmp_path, traced):
    board = shown(tmp_path, traced=traced)
    assert [n for n in board if 'images' in n] == ['images/held_out/p0', 'images/held_out/p1']
    item = Pictures()[0]
    lq, gt = item['lq'], item['gt']
    expected = [lq, *([0.25 * lq] if traced else []), 0.5 * lq, gt]
    assert torch.equal(board['images/held_out/p0'], torch.cat(expected, -1))


def test_the_table_of_stages_has_the_psnr_of_x_hat_x_tilde_and_x_in_their_columns(tmp_path):
    board = shown(tmp_path, traced=True)
    item, (row, *rest) = Pictures()[0], csv_rows(tmp_path / 'stage_psnr_held_out.csv')
    for found, end in ((row, 0.25), (rest[0], 4)):
        for key, factor in (('psnr_hat', 1 / 16), ('psnr_tilde', 1 / 4), ('psnr', 1)):
            image = (end * factor * item['lq']).clamp(max=1)
            mse = (image - item['gt']).square().mean()
            assert float(found[key]) == pytest.approx(-10 * mse.log10().item(), abs=1e-3)
    for stage in '12':
        mean = fmean(float(r['psnr']) for r in (row, *rest) if r['stage'] == stage)
        assert board[f'metrics/held_out/stage_{stage}/psnr'] == pytest.approx(mean, abs=1e-3)


def test_large_images_are_reduced_and_any_name_is_a_tag(tmp_path):
    lq, gt = torch.rand(2, 3, 300, 500)
    board = shown(tmp_path, [{'lq': lq, 'gt': gt, 'lq_path': '\udce9.png'}])
    assert board[r'images/held_out/\udce9'].shape == (3, 256, 3 * 427)


@pytest.mark.parametrize(('changes', 'count'), [
    ({'logger': {'use_tb_logger': True, 'tb_images': 9}}, 3),
    ({'logger': {'use_tb_logger': True, 'tb_images': 0}}, 0), ({'is_train': False}, 0),
])  # fmt: skip
def test_as_many_are_shown_as_the_option_file_says(tmp_path, changes, count):
    assert sum('images' in name for name in shown(tmp_path, **changes)) == count
