"""Validation per degradation, and with the degradation vector of another degradation."""

import math
from pathlib import Path

import pytest
import torch
from basicsr.data import build_dataset
from torch.utils.data import DataLoader
from vlunet_runs import NAMES, mixture, vlunet_options

from unfoldldm_basicsr.models import VLUNetModel
from unfoldldm_basicsr.training.validation_report import (
    ImageResult,
    degradation_rows,
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
        options['val'] |= val
        model = VLUNetModel(options)
        with torch.no_grad():  # random weights that the vector steers strongly
            for name, p in model.net_g_ema.named_parameters():
                p.mul_(20 if 'gradient_descent.linear' in name else 1)
        return model

    return build


def test_a_degradation_without_a_defined_value_makes_the_average_undefined():
    results = [ImageResult(0, 'x', 'a', {'psnr': math.nan}), ImageResult(1, 'y', 'b', {'psnr': 3})]
    assert math.isnan(degradation_rows(results)['average'][1]['psnr'])


def test_images_without_named_degradations_leave_one_row(tmp_path):
    results = [ImageResult(i, str(i), None, {'psnr': 20.0 + i}) for i in range(3)]
    assert degradation_rows(results) == {}
    path = tmp_path / 'validation_x.csv'
    write_validation_csv(results, path, '5')
    assert path.read_text().splitlines() == ['iteration,degradation,images,psnr', '5,all,3,21.0000']


def test_a_new_metric_gets_a_column_in_the_table_of_its_set(tmp_path):
    path = tmp_path / 'validation_x.csv'
    for label, metrics in (('1', {}), ('2', {'ssim': 0.5}), ('3', {})):
        write_validation_csv([ImageResult(0, 'x', None, {'psnr': 1.0, **metrics})], path, label)
    assert path.read_text().splitlines() == [
        'iteration,degradation,images,psnr,ssim',
        '1,all,1,1.0000,',
        '2,all,1,1.0000,0.5000',
        '3,all,1,1.0000,',
    ]
    assert [*tmp_path.iterdir()] == [path]
    write_validation_csv([ImageResult(0, 'x', None)], tmp_path / 'validation_y.csv', '1')
    assert [*tmp_path.iterdir()] == [path]


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
    assert list(model.metric_results) == ['wrong_psnr']
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
        outputs(make('learned', degradation_override='wrong'), loader)
    assert len(outputs(make('label', degradation_override='wrong'), loader)) == 2
