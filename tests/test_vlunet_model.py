"""VLUNetModel: the same training with every embedding; its files, its validation, its options."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from basicsr.data import build_dataset
from helpers import DELETE, preflight, problems_at, put, warnings_at
from model_runs import batch, changed, file_of, resumed, same_networks, state_of, steps
from tiny_vlunet import EMBEDDINGS, NAMES, TEXTS, mixture, vlunet_file, vlunet_options
from torch.utils.data import DataLoader

from unfoldldm_basicsr.models import VLUNetModel
from unfoldldm_basicsr.models.vlunet_model import class_order_fault
from unfoldldm_basicsr.restoring.restorer import Restorer
from unfoldldm_basicsr.weights.checkpoint import CheckpointError, read_checkpoint
from unfoldldm_basicsr.weights.conditioning import build_conditioning

EACH = pytest.mark.parametrize('source', EMBEDDINGS)
SCHEDULE = {'type': 'TrueCosineAnnealingLR', 'T_max': 20, 'eta_min': 1e-6}


def build(
    folder, source: str, path: dict | None = None, val=None, network_e=None, **settings
) -> VLUNetModel:
    torch.manual_seed(0)
    options = vlunet_options(folder, source, **settings)
    options['network_e'] = network_e or options['network_e']
    options['path'] |= path or {}
    options['val'] |= val or {}
    return VLUNetModel(options)


@pytest.fixture
def make(tmp_path):
    """Builds models that share one folder of photos."""
    count = iter(range(100))
    return lambda source, **settings: build(tmp_path / str(next(count)), source, **settings)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """By source: a model after two steps, saved; tests only read it. ``start``: its first bits."""
    models, folder = {}, tmp_path_factory.mktemp('trained')

    def model(source: str) -> VLUNetModel:
        if source not in models:
            settings = {'warmup_iter': 2, 'accum_iter': 2, 'total_iter': 20, 'scheduler': SCHEDULE}
            built = models[source] = build(folder / source, source, **settings)
            built.settings = settings
            built.start = [state_of(net) for net in (built.net_g, built.embedding.bare)]
            steps(built, 1, 2)
            built.save(0, 2)
        return models[source]

    return model


@EACH
def test_every_trainable_parameter_gets_a_gradient_and_frozen_ones_keep_their_bits(trained, source):
    model = trained(source)
    parameters = [*model.net_g.named_parameters(), *model.embedding.bare.named_parameters()]
    silent = [n for n, p in parameters if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert silent == []
    frozen = {n for n, p in model.net_g.named_parameters() if not p.requires_grad}
    assert frozen == {'down1_2_i.body.0.weight'}  # never used by the released network either
    assert model.embedding.trained == (source == 'learned')
    assert changed(model.net_g, model.start[0])
    assert bool(changed(model.embedding.bare, model.start[1])) == (source == 'learned')


def test_the_average_of_the_learned_embedding_follows_it_and_is_what_evaluation_uses(make):
    clip = {'use_grad_clip': True, 'grad_clip_norm': {'restoration': 1e6, 'embedding': 1e-9}}
    model = make('learned', ema_decay=0.9, amp='bf16', **clip)
    start = state_of(model.embedding.bare)
    steps(model, 1)
    assert model.log_dict['grad_norm_embedding'] > 1e-8
    assert torch.stack([p.grad.norm() for p in model.embedding.bare.parameters()]).norm() < 2e-9
    for key, average in model.embedding.average.state_dict().items():
        expected = 0.9 * start[key] + 0.1 * model.embedding.bare.state_dict()[key]
        torch.testing.assert_close(average, expected, atol=1e-6, rtol=1e-5)
    with model.autocast():
        vectors = model.network_arguments(model.batch)['degradation']
    assert vectors.dtype == torch.float32  # autocast leaves them alone
    with torch.no_grad():
        averaged = model.network_arguments(model.batch)['degradation']
        torch.testing.assert_close(averaged, model.embedding.average(model.batch['lq']))
    assert (vectors.requires_grad, averaged.requires_grad) == (True, False)
    assert not torch.equal(vectors.detach(), averaged)


@EACH
def test_the_weight_file_alone_restores_what_the_model_restores(trained, source):
    model, data = trained(source), batch(9, size=1)
    output = model.restore(data).output
    checkpoint = read_checkpoint(file_of(model, 'g_2'))
    assert checkpoint.degradation['classes'] == NAMES
    name = NAMES[0] if source == 'label' else 'auto'
    conditioning = build_conditioning(checkpoint, degradation=name)
    with torch.no_grad():
        vector = model.network_arguments(data)['degradation']
    torch.testing.assert_close(conditioning(data['lq']), vector, atol=0, rtol=0)
    restorer = Restorer(file_of(model, 'g_2'), device='cpu', degradation=name)
    torch.testing.assert_close(restorer.restore_tensor(data['lq']), output, atol=1e-6, rtol=0)


def test_a_resumed_run_takes_the_same_steps_bit_for_bit(tmp_path, trained):
    model = trained('learned')
    options = [vlunet_options(tmp_path / n, 'learned', **model.settings) for n in 'ab']
    first, second = (resumed(model, each, 2) for each in options)
    assert same_networks(first, model)
    for each in (first, second):
        steps(each, 3)
    assert first.log_dict == second.log_dict
    assert same_networks(first, second)
    assert not same_networks(first, model)


@pytest.mark.parametrize('source', ['clip', 'learned'])
def test_a_new_run_from_the_network_file_takes_its_embedding_along(make, trained, source):
    first, path = trained(source), {'pretrain_network_g': file_of(trained(source), 'g_2')}
    assert same_networks(first, make(source, path=path))
    tested = make(source, path=path, is_train=False)
    kept = first.embedding.average if source == 'learned' else first.embedding.bare
    assert changed(tested.embedding.bare, kept.state_dict()) == set()
    assert not any(p.requires_grad for p in tested.embedding.bare.parameters())
    averaged = make(source, path={**path, 'param_key_g': 'params_ema'})
    assert changed(averaged.embedding.bare, kept.state_dict()) == set()


def test_a_test_refuses_weights_of_another_order_of_degradations(make, trained):
    path = {'pretrain_network_g': file_of(trained('learned'), 'g_2')}
    with pytest.raises(CheckpointError, match=r'noise, blur, dark.*dark, blur, noise'):
        make('learned', path=path, names=NAMES[::-1], is_train=False)


def test_a_training_keeps_the_vectors_of_the_degradations_that_it_knows(make, trained):
    first, path = trained('label'), {'pretrain_network_g': file_of(trained('label'), 'g_2')}
    model = make('label', path=path, names=[NAMES[2], 'fog', NAMES[0]])
    known, vectors = (m.embedding.bare.table.weight for m in (first, model))
    assert torch.equal(vectors[[0, 2]], known[[2, 0]])
    another = make('learned', path=path)  # the network alone
    assert changed(another.net_g, first.net_g.state_dict()) == set()


@pytest.mark.parametrize(('stored', 'current', 'needs_label', 'refused'), [
    ('', 'a', True, False), ('ab', 'abc', True, True), ('abc', 'bc', False, False),
    ('abc', 'cb', False, True),
])  # fmt: skip
def test_only_a_label_embedding_needs_the_very_same_list_of_degradations(
    stored, current, needs_label, refused
):
    fault = class_order_fault([*stored], [*current], needs_label)
    assert ('same order' in fault) if refused else fault is None


def test_weights_of_another_embedding_are_refused(make, trained):
    first = trained('label')
    with pytest.raises(CheckpointError, match='LabelDegradationEmbedding, not Learned'):
        make('learned', path={'pretrain_network_g': file_of(first, 'g_2')}, is_train=False)
    with pytest.raises(CheckpointError, match='does not fit network_e'):
        make('learned', path={'pretrain_network_e': file_of(first, 'e_2')})


def test_a_record_without_the_backbone_that_is_not_had_elsewhere_is_refused(make, trained):
    file = file_of(trained('clip'), 'g_2')
    content = torch.load(file, weights_only=True)
    embedding = content['degradation']['embedding']
    embedding['kwargs']['pretrained'] = 'laion2b_s34b_b79k'
    for key in [key for key in embedding['params'] if key.startswith('clip_model.')]:
        del embedding['params'][key]
    torch.save(content, file := file.replace('g_2', 'bare'))
    with pytest.raises(CheckpointError, match=r'no backbone for .*pretrained: laion2b_s34b_b79k'):
        make('clip', path={'pretrain_network_g': file})
    embedding = file_of(trained('clip'), 'e_2')  # has one
    make('clip', path={'pretrain_network_g': file, 'pretrain_network_e': embedding})


def test_other_vectors_than_the_network_was_trained_with_are_reported_once(make, log):
    first = make('learned', ema_decay=0.9)
    first.save(0, 1)
    with torch.no_grad():
        for net in (first.embedding.bare, first.embedding.average):
            next(net.parameters()).add_(1)
    first.save(0, 2)
    for label in ('e_1', 'e_2'):
        assert 'other degradation vectors' not in log.text
        path = {f'pretrain_network_{part[0]}': file_of(first, part) for part in ('g_1', label)}
        make('learned', path=path, ema_decay=0.9)
    assert log.text.count('other degradation vectors') == 1


def test_vectors_of_another_clip_are_reported(make, trained, log, monkeypatch, tmp_path):
    first = trained('clip')
    paths = [{f'pretrain_network_{part}': file_of(first, f'{part}_2')} for part in 'eg']
    content = torch.load(paths[0]['pretrain_network_e'], weights_only=True)
    content['arch']['kwargs']['tune_adapters'] = True  # as where they were tuned
    paths[0] = {'pretrain_network_e': str(tmp_path / 'tuned.pth')}
    torch.save(content, tmp_path / 'tuned.pth')
    for difference in (0, 1):
        for path in paths:
            make('clip', path=path)
        assert log.text.count('temperature: 1.0 in the file, 0.5 here.') == 2 * difference
        assert 'tune_adapters' not in log.text
        monkeypatch.setitem(EMBEDDINGS, 'clip', {**EMBEDDINGS['clip'], 'temperature': 0.5})


def test_random_adapters_of_clip_are_reported_once(make, trained, log):
    make('clip')
    assert log.text.count('keep their random initial values') == 1
    assert 'DegradationCLIPModel' in log.text
    log.clear()
    make('clip', path={'pretrain_network_e': file_of(trained('clip'), 'e_2')})
    make('label')
    assert 'random initial values' not in log.text


def test_a_frozen_embedding_takes_averaged_weights_where_the_file_has_them(make, trained, tmp_path):
    state = state_of(trained('clip').embedding.bare)
    averaged = {key: value + 1 for key, value in state.items()}
    torch.save({'params': state, 'params_ema': averaged}, tmp_path / 'clip.pth')
    path = {'pretrain_network_e': str(tmp_path / 'clip.pth')}
    assert changed(make('clip', path=path).embedding.bare, averaged) == set()
    for key in ('params', 'params_ema'):  # the second from a file without averages
        raw = make('clip', path={**path, 'param_key_e': key})
        assert changed(raw.embedding.bare, state) == set()
        torch.save({'params': state}, tmp_path / 'clip.pth')


def test_a_test_without_an_embedding_is_refused(trained, tmp_path):
    content = torch.load(file_of(trained('label'), 'g_2'), weights_only=True)
    del content['degradation']
    torch.save(content, tmp_path / 'bare.pth')
    options = vlunet_options(tmp_path / 'bare', 'label', is_train=False)
    options['path']['pretrain_network_g'] = str(tmp_path / 'bare.pth')
    with pytest.raises(CheckpointError, match=r'bare\.pth holds no degradation embedding'):
        VLUNetModel(deepcopy(options))
    options['path']['pretrain_network_e'] = file_of(trained('label'), 'e_2')
    assert VLUNetModel(options).names == NAMES


def test_a_batch_without_degradation_names_the_remedy(make):
    data = batch()
    del data['degradation']
    with pytest.raises(ValueError, match='MixedDegradationDataset'):
        steps(make('label'), 1, data=data)
    steps(make('learned'), 1, data=data)  # sees it in the image


@pytest.fixture
def loader(tmp_path) -> DataLoader:
    return DataLoader(build_dataset({**mixture(tmp_path), 'phase': 'val', 'scale': 1}))


def outputs(model, loader) -> list[torch.Tensor]:
    """Of random weights that the vector steers strongly."""
    for name, p in model.net_g_ema.named_parameters():
        p.data *= 20 if 'gradient_descent.linear' in name else 1
    dataset = loader.dataset
    return [
        model.restore(item | model.validation_extras(dataset, index, item)).output
        for index, item in enumerate(loader)
    ]


@pytest.mark.parametrize('source', ['label', 'learned'])
def test_a_wrong_vector_changes_the_result_and_its_name(make, loader, source):
    right = outputs(make(source), loader)
    model = make(source, val={'degradation_override': 'wrong'})
    wrong = outputs(model, loader)
    assert model.evaluator.prefix == 'wrong_'
    assert not any(map(torch.equal, right, wrong))
    model.validation(loader, 1, None, False)
    assert list(model.metric_results) == ['wrong_psnr']
    assert 'ablation' in model.evaluator.note


def test_a_named_override_leaves_only_that_degradation_as_it_is(make, loader):
    right = outputs(make('learned'), loader)
    model = make('learned', val={'degradation_override': 'blur'})
    given = outputs(model, loader)
    assert model.evaluator.prefix == 'as_blur_'
    assert list(map(torch.equal, right, given)) == [name == 'blur' for name in NAMES for _ in '12']


def test_the_vector_comes_from_the_same_photo_in_the_other_degradation(make, loader):
    model = make('learned', val={'degradation_override': 'wrong'})
    dataset = loader.dataset
    for index in (0, 3, 5):
        data = loader.collate_fn([dataset[index]])
        stand_in = model.validation_extras(dataset, index, data)['stand_in']
        other = dataset[(index + 2) % 6]
        assert torch.equal(stand_in['lq'][0], other['lq'])
        assert stand_in['degradation'].tolist() == [other['degradation']]
        assert Path(other['lq_path']).stem == Path(data['lq_path'][0]).stem


def test_an_image_embedding_needs_images_of_another_degradation(make, loader, tmp_path):
    options = mixture(tmp_path)
    options['sets'] = options['sets'][:1]
    alone = DataLoader(build_dataset({**options, 'phase': 'val', 'scale': 1}))
    model = make('learned', val={'degradation_override': 'blur'})
    with pytest.raises(ValueError, match='no validation set has an image with blur'):
        outputs(model, alone)
    alone.dataset.opt['name'] = 'noise'  # beside the mixture, another set of the run
    blurred = loader.dataset[2]['lq'][None]
    stand_in = model.validation_extras(alone.dataset, 0, next(iter(alone)))['stand_in']
    assert torch.equal(stand_in['lq'], blurred)
    assert len(outputs(make('label', val={'degradation_override': 'wrong'}), alone)) == 2


def test_what_network_e_leaves_open_is_as_it_was_tuned(make, trained):
    first = trained('clip')
    left_out = {k: v for k, v in EMBEDDINGS['clip'].items() if k != 'class_texts'}
    for part in 'eg':
        path = {f'pretrain_network_{part}': file_of(first, f'{part}_2')}
        model = make('clip', path=path, network_e=left_out)
        model.save(0, 3)
        assert read_checkpoint(file_of(model, 'e_3')).arch['kwargs']['class_texts'] == TEXTS
        stored = build_conditioning(read_checkpoint(file_of(model, 'g_3'))).embedding
        assert [*stored.class_texts] == [*model.embedding.bare.class_texts] == TEXTS


TUNED = {**EMBEDDINGS['clip'], 'tune_adapters': True}
ONE_CHANNEL = {**EMBEDDINGS['learned'], 'in_channels': 1}


@pytest.fixture
def options(tmp_path) -> dict:
    return vlunet_file(tmp_path)


@EACH
def test_each_embedding_passes(options, source):
    assert preflight({**options, 'network_e': EMBEDDINGS[source]}, 'x.yml', True) == []
    del options['datasets']['train']['sets'][0]
    assert NAMES[0] in warnings_at(options, 'datasets.train.degradation_names')


@pytest.mark.parametrize(('path', 'value', 'place', 'words'), [
    ('network_e', DELETE, 'network_e', ['is missing', 'LabelDegradationEmbedding']),
    ('network_e.type', 'LabelEmbedding', 'network_e.type', ['LabelDegradationEmbedding']),
    ('network_e.num_degradation', 3, 'network_e.num_degradation', ['num_degradations']),
    ('network_e.num_degradations', 4, 'network_e.num_degradations', ['4', 'lists 3']),
    ('network_e.embed_dim', 16, 'network_g.embed_dim', ['is 8', 'set it to 16']),
    ('network_e', ONE_CHANNEL, 'network_e.in_channels', ['is 1', 'set it to 3']),
    ('datasets.val.degradation_names', [*NAMES, 'auto'], None, ['auto: means']),
    ('network_g.type', 'NAFNet', 'network_g.type', ['no degradation', 'RestorationModel']),
    ('model_type', 'RestorationModel', 'network_g.type', ['degradation', 'VLUNetModel']),
    ('val.degradation_override', 'blurr', 'val.degradation_override', ["'blur'"]),
    ('val.degradation_overide', 'blur', 'val.degradation_overide', ['degradation_override']),
    ('datasets.val.degradation_names', NAMES[::-1], None, ['differs']),
    ('path.pretrain_network_e', 'no.pth', 'path.pretrain_network_e', ['Train the embedding']),
    ('train.mixing_augs', {'mixup': True}, 'train.mixing_augs.mixup', ['different']),
    ('network_e', TUNED, 'network_e.tune_adapters', ['DegradationCLIPModel']),
    ('val.trace', True, 'val.trace', ['no stages']),
])  # fmt: skip
def test_a_mistake_is_found_where_it_stands(options, path, value, place, words):
    if path == 'network_g.type':
        options['network_g'] = {}
    found = problems_at(put(options, path, value), place or path)
    assert all(word in found for word in words), found


def test_a_label_needs_named_degradations_and_an_image_does_not(options):
    single = {
        'name': 'noise',
        'type': 'SyntheticDegradationDataset',
        'dataroot_gt': options['datasets']['val']['sets'][0]['dataroot_gt'],
        'degradations': [{'type': 'gaussian_noise', 'sigma': 25}],
    }
    options = put(put(options, 'datasets.val', single), 'val.degradation_override', DELETE)
    assert 'is missing' in problems_at(options, 'datasets.val.degradation_names')
    assert preflight({**options, 'network_e': EMBEDDINGS['learned']}, 'x.yml', True) == []
