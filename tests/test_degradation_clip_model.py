"""DegradationCLIPModel: what is tuned, its loss, accuracy and confusion matrix, its files."""

import math
from pathlib import Path

import open_clip
import pytest
import torch
from helpers import csv_rows, for_test, model_options, network_of, problems_at, put
from model_runs import Board, batch, file_of, state_of, steps, validate
from PIL import Image
from tiny_vlunet import EMBEDDINGS, NAMES, vlunet_file

from unfoldldm_basicsr.archs.degradation_embedding import CLIPDegradationEmbedding
from unfoldldm_basicsr.common.contract import check_inputs
from unfoldldm_basicsr.models import DegradationCLIPModel
from unfoldldm_basicsr.options.preflight import examine
from unfoldldm_basicsr.training.interruption import stop_request
from unfoldldm_basicsr.training.networks import Restored
from unfoldldm_basicsr.weights.checkpoint import CheckpointError
from unfoldldm_basicsr.weights.checkpoint import read_checkpoint as read
from unfoldldm_basicsr.weights.conditioning import build_conditioning, read_record
from unfoldldm_basicsr.weights.convert import export_checkpoint

NETWORK = {**EMBEDDINGS['clip'], 'tune_adapters': True}
TEXTS = NETWORK['class_texts']
TRUTH, PLANNED = [0, 0, 1, 1, 2], [0, 1, 1, 1, 0]


def build(folder, **network) -> DegradationCLIPModel:
    torch.manual_seed(0)
    train = {'optim_g': {'type': 'Adam', 'lr': 1e-3}, 'pixel_opt': None}
    options = model_options(folder, {**NETWORK, **network}, **train)
    datasets = {phase: {'degradation_names': NAMES} for phase in ('train', 'val')}
    return DegradationCLIPModel(options | {'val': {}, 'datasets': datasets})


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> DegradationCLIPModel:
    """A model after a step, saved; tests only read it. ``start``: its first bits."""
    model = build(tmp_path_factory.mktemp('clip'))
    model.start = [state_of(net) for net in (model.net_g, model.net_g_ema)]
    steps(model, 1, size=6)
    model.save(0, 1)
    stop_request.remove()
    return model


class Items(list):
    """Five images whose grey value says what the planned classifier takes them for."""

    opt = {'name': 'held_out'}

    def __init__(self):
        for index, (true, taken_for) in enumerate(zip(TRUTH, PLANNED, strict=True)):
            grey, name = torch.full((3, 16, 16), taken_for / 10), NAMES[true]
            item = {'lq': grey, 'gt': grey, 'degradation': true, 'degradation_name': name}
            self.append(item | {'lq_path': f'{index}.png'})


def planned(model) -> DegradationCLIPModel:
    def restore(batch: dict) -> Restored:
        return Restored(torch.eye(3)[(10 * batch['lq'][:, 0, 0, 0]).round().long()])

    model.evaluator.restore = restore
    return model


def test_a_step_moves_every_adapter_parameter_and_nothing_else(trained):
    for net, before in zip((trained.net_g, trained.net_g_ema), trained.start, strict=True):
        for key, value in net.state_dict().items():
            assert torch.equal(value, before[key]) == key.startswith('clip_model.'), key
    assert list(trained.groups) == ['adapters']
    assert 'grad_norm_adapters' in trained.log_dict


def test_an_export_keeps_the_order_of_the_degradations_and_restores_nothing(trained, tmp_path):
    export_checkpoint(file_of(trained, 'g_1'), tmp_path / 'x.safetensors', half=True)
    record = read_record(read(tmp_path / 'x.safetensors'))
    assert [*record.classes] == NAMES
    assert {value.dtype for value in record.state_dict.values()} == {torch.float16}
    with pytest.raises(ValueError, match='restores nothing'):
        check_inputs(network_of(tmp_path / 'x.safetensors'), ())


def test_loss_and_accuracy_are_those_of_the_scores(tmp_path):
    model, data = build(tmp_path, normalize=True, temperature=0.1), batch(size=6)
    with torch.no_grad():
        for p in model.net_g.parameters():
            p.normal_()  # as built, all texts and all images have nearly the same vector
        logits = model.net_g(data['lq'], return_logits=True).logits
    assert logits.std(1).mean() > 0.05
    model.feed_data(data)
    losses, figures = model.compute_losses(model.batch, 1)
    assert list(losses) == ['l_clip']
    expected = torch.nn.functional.cross_entropy(logits, data['degradation'])
    torch.testing.assert_close(losses['l_clip'], expected)
    assert figures['accuracy'] == (logits.argmax(1) == data['degradation']).float().mean()


def test_accuracy_and_confusion_are_counted_as_by_hand(tmp_path):
    model, scalars = planned(build(tmp_path)), Board()
    assert validate(model, Items(), 7, tb_logger=scalars) == {'accuracy': 3 / 5}
    best = model.best_metric_results['held_out']['accuracy']
    assert best == {'better': 'higher', 'val': 3 / 5, 'iter': 7}
    assert scalars['metrics/held_out/accuracy'] == 3 / 5
    found = [scalars[f'metrics/held_out/{name}/accuracy'] for name in NAMES]
    assert found == [0.5, 1.0, 0.0]
    start = f'{model.opt["path"]["visualization"]}/held_out/confusion_7'
    rows = csv_rows(Path(f'{start}.csv'))
    assert list(rows[0]) == ['true class', *NAMES, 'items', 'accuracy']
    assert [[int(row[name]) for name in NAMES] for row in rows] == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    found = [(row['items'], row['accuracy']) for row in rows]
    assert found == [('2', '0.5000'), ('2', '1.0000'), ('1', '0.0000')]
    with Image.open(f'{start}.png') as picture:
        assert picture.mode == 'RGB'
        assert min(picture.size) > 3 * 72


def test_scores_that_are_not_finite_make_the_accuracy_undefined(tmp_path, log):
    model = build(tmp_path)
    model.evaluator.restore = lambda batch: Restored(torch.full((1, 3), float('nan')))
    assert math.isnan(validate(model, Items())['accuracy'])
    assert 'scores of 0 are not finite' in log.text


def test_saved_weights_give_the_same_vectors_in_a_frozen_embedding(trained):
    path, x = file_of(trained, 'g_1'), batch(5)['lq']
    arguments = {k: v for k, v in EMBEDDINGS['clip'].items() if k != 'type'}
    frozen = CLIPDegradationEmbedding(**arguments).eval()
    assert not torch.allclose(frozen(x), trained.net_g(x))
    for key, net in (('params', trained.net_g), ('params_ema', trained.net_g_ema)):
        frozen.load_state_dict(torch.load(path, weights_only=True)[key], strict=True)
        assert torch.equal(frozen(x), net.eval()(x).detach())
    conditioning = build_conditioning(read(path))
    assert conditioning.classes == tuple(NAMES)
    assert torch.equal(conditioning(x), trained.net_g_ema(x))
    assert torch.equal(network_of(path)(x), trained.net_g_ema(x))


def test_weights_of_another_order_of_degradations_are_refused(trained, tmp_path):
    options = model_options(tmp_path, {**NETWORK, 'class_texts': TEXTS[::-1]}, is_train=False)
    options['path']['pretrain_network_g'] = file_of(trained, 'g_1')
    options |= {'val': {}, 'datasets': {'test': {'degradation_names': NAMES[::-1]}}}
    with pytest.raises(CheckpointError, match=r'trained with degradation_names: \[noise, blur'):
        DegradationCLIPModel(options)


@pytest.fixture
def options(tmp_path) -> dict:
    options = vlunet_file(tmp_path)
    options |= {'name': 'clip', 'model_type': 'DegradationCLIPModel', 'network_g': NETWORK}
    options |= {'path': {}, 'val': {'val_freq': 2}}
    schedule = {'type': 'MultiStepLR', 'milestones': [2], 'gamma': 1.0}
    options['train'] = {**options['train'], 'total_iter': 2, 'scheduler': schedule}
    del options['network_e'], options['train']['pixel_opt'], options['train']['warmup_iter']
    return options


@pytest.mark.parametrize(('place', 'value', 'path', 'words'), [
    ('network_g.class_texts', TEXTS[:2], '', ('2 texts for 3 degradations', 'noise, blur')),
    ('network_g.clip_config.vision_cfg.patch_size', [[1]], 'network_g', ('patch_size: [[1]]',)),
    ('network_g.tune_adapters', False, '', ('must be true',)),
    ('network_g', {'type': 'NAFNet'}, 'network_g.type', ('CLIPDegradationEmbedding does',)),
    ('datasets.val.degradation_names', NAMES[::-1], '', ('indices would mix up',)),
    ('train.mixing_augs', {'mixup': True}, '', ('has no class',)),
    ('val.save_img', True, '', ('confusion matrix',)),
])  # fmt: skip
def test_options_that_do_not_fit_are_refused_by_the_preflight(options, place, value, path, words):
    assert problems_at(options, path or place) == ''
    message = problems_at(put(options, place, value), path or place)
    assert all(word in message for word in words), message


def test_options_of_restoring_models_are_warned_of(options):
    options = put(put(options, 'train.pixel_opt', {'type': 'L1Loss'}), 'val.tile', 64)
    warnings = examine(options, 'x', True).warnings
    assert [line.split(': ')[1] for line in warnings] == ['train.pixel_opt', 'val.tile']


def test_the_preflight_of_a_tag_loads_no_weights(options, monkeypatch):
    create = open_clip.create_model

    def without_weights(*args, **kwargs):
        assert (kwargs.get('pretrained') or '', kwargs['load_weights']) == ('', False)
        return create(*args, **kwargs)

    monkeypatch.setattr(open_clip, 'create_model', without_weights)
    network = {'type': 'CLIPDegradationEmbedding', 'tune_adapters': True, 'class_texts': TEXTS}
    assert problems_at(put(options, 'network_g', network), 'network_g') == ''


def test_training_and_test_run_from_option_files(options, tmp_path, run_here):
    test = for_test(options) | {'name': 'clip_test', 'val': {'suffix': 'final'}}
    test['path'] = {'pretrain_network_g': 'experiments/clip/models/net_g_latest.pth'}
    run_here(options)
    run_here(test, 'test')
    pictures = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob('confusion_*.png'))
    assert pictures == [
        'experiments/clip/visualization/held_out/confusion_2.png',
        'results/clip_test/visualization/held_out/confusion_final.png',
    ]
    first, second = ((tmp_path / p).with_suffix('.csv').read_text() for p in pictures)
    assert first == second
