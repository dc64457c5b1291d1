"""Validation per degradation, and with the degradation vector of another degradation."""

import csv
import math
from pathlib import Path

import pytest
import torch
from basicsr.data import build_dataset
from model_runs import Board
from torch.utils.data import DataLoader
from vlunet_runs import NAMES, mixture, vlunet_options

from unfoldldm_basicsr.models import VLUNetModel
from unfoldldm_basicsr.training.validation_report import (
    ImageResult,
    degradation_rows,
    table_lines,
    write_validation_csv,
)


@pytest.fixture
def loader(tmp_path) -> DataLoader:
    return DataLoader(build_dataset({**mixture(tmp_path), 'phase': 'val', 'scale': 1}))


@pytest.fixture
def make(tmp_path):
    def build(source: str = 'label', **val):
        torch.manual_seed(0)
        options = vlunet_options(tmp_path / 'run', source)
        options['val']['metrics']['ssim'] = {'type': 'calculate_ssim', 'crop_border': 0}
        options['val'] |= val
        model = VLUNetModel(options)
        with torch.no_grad():  # random weights that the vector steers strongly
            for name, p in model.net_g_ema.named_parameters():
                p.mul_(20 if 'gradient_descent.linear' in name else 1)
        return model

    return build


def psnr_by_image(model, loader) -> list[float]:
    name = model.evaluator.prefix + 'psnr'
    return [r.metrics[name] for r in model.evaluator.evaluate(loader, 'x', save_img=False)]


def test_every_degradation_has_its_row_and_the_average_weighs_them_equally(make, loader):
    model, board = make(), Board()
    model.validation(loader, 7, board, False)
    each = psnr_by_image(model, loader)
    expected = {name: sum(each[2 * k : 2 * k + 2]) / 2 for k, name in enumerate(NAMES)}
    expected['average'] = sum(expected.values()) / 3
    for name, value in expected.items():
        assert board[f'metrics/held_out/{name}/psnr'] == pytest.approx(value)
    with open(Path(model.opt['path']['log']) / 'validation_held_out.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['degradation'] for row in rows] == [*NAMES, 'average']
    assert {row['iteration'] for row in rows} == {'7'}
    assert [row['images'] for row in rows] == ['2', '2', '2', '6']
    for row in rows:
        assert float(row['psnr']) == pytest.approx(expected[row['degradation']], abs=1e-4)
        assert -1 <= float(row['ssim']) <= 1


def test_the_average_row_counts_degradations_not_images():
    values = [('a', 10.0), ('a', 20.0), ('a', 30.0), ('b', 40.0)]
    results = [ImageResult(i, str(i), name, {'psnr': v}) for i, (name, v) in enumerate(values)]
    rows = degradation_rows(results)
    assert {name: (count, means['psnr']) for name, (count, means) in rows.items()} == {
        'a': (3, 20.0),
        'b': (1, 40.0),
        'average': (4, 30.0),
    }
    lines = table_lines(rows)
    assert lines[0].split() == ['degradation', 'images', 'psnr']
    assert lines[-1].split() == ['average', '4', '30.0000']
    assert len({len(line) for line in lines}) == 1


def test_a_degradation_without_a_defined_value_makes_the_average_undefined():
    results = [ImageResult(0, 'x', 'a', {'psnr': math.nan}), ImageResult(1, 'y', 'b', {'psnr': 3})]
    assert math.isnan(degradation_rows(results)['average'][1]['psnr'])


def test_images_without_named_degradations_leave_one_row(tmp_path):
    results = [ImageResult(i, str(i), None, {'psnr': 20.0 + i}) for i in range(3)]
    assert degradation_rows(results) == {}
    path = write_validation_csv(results, tmp_path / 'validation_x.csv', '5')
    assert path.read_text().splitlines() == ['iteration,degradation,images,psnr', '5,all,3,21.0000']


def test_another_set_of_metrics_starts_another_file(tmp_path):
    path, first = tmp_path / 'validation_x.csv', [ImageResult(0, 'x', None, {'psnr': 1.0})]
    second = [ImageResult(0, 'x', None, {'psnr': 1.0, 'ssim': 0.5})]
    assert write_validation_csv(first, path, '1') == path
    assert write_validation_csv(second, path, '2') == tmp_path / 'validation_x_2.csv'
    assert write_validation_csv(second, path, '3') == tmp_path / 'validation_x_2.csv'
    assert write_validation_csv(first, path, '4') == path
    assert [line.split(',')[0] for line in path.read_text().splitlines()] == ['iteration', '1', '4']
    assert write_validation_csv([ImageResult(0, 'x', None)], path, '5') is None


def outputs(model, loader) -> list[torch.Tensor]:
    dataset = loader.dataset
    return [
        model.restore(item | model.validation_extras(dataset, index, item)).output
        for index, item in enumerate(loader)
    ]


@pytest.mark.parametrize('source', ['label', 'learned'])
def test_a_wrong_vector_changes_the_result_and_its_name(make, loader, source):
    right = outputs(make(source), loader)
    model = make(source, degradation_override='wrong')
    wrong = outputs(model, loader)
    assert model.evaluator.prefix == 'wrong_'
    assert not any(map(torch.equal, right, wrong))
    model.validation(loader, 1, None, False)
    assert list(model.metric_results) == ['wrong_psnr', 'wrong_ssim']
    assert 'ablation' in model.evaluator.note


def test_a_named_override_leaves_only_that_degradation_as_it_is(make, loader):
    right = outputs(make('learned'), loader)
    model = make('learned', degradation_override='blur')
    given = outputs(model, loader)
    assert model.evaluator.prefix == 'as_blur_'
    assert list(map(torch.equal, right, given)) == [name == 'blur' for name in NAMES for _ in '12']


def test_the_vector_comes_from_the_same_photo_in_the_other_degradation(make, loader):
    model = make('learned', degradation_override='wrong')
    dataset = loader.dataset
    for index in (0, 3, 5):
        data = loader.collate_fn([dataset[index]])
        stand_in = model.validation_extras(dataset, index, data)['stand_in']
        other = dataset[(index + 2) % 6]
        assert torch.equal(stand_in['lq'][0], other['lq'])
        assert stand_in['degradation'].tolist() == [other['degradation']]
        assert Path(other['lq_path']).stem == Path(data['lq_path'][0]).stem


def test_an_image_embedding_needs_images_of_another_degradation(make, tmp_path):
    options = mixture(tmp_path)
    options['sets'] = options['sets'][:1]
    loader = DataLoader(build_dataset({**options, 'phase': 'val', 'scale': 1}))
    with pytest.raises(ValueError, match='no image with blur or dark'):
        psnr_by_image(make('learned', degradation_override='wrong'), loader)
    assert len(psnr_by_image(make('label', degradation_override='wrong'), loader)) == 2
