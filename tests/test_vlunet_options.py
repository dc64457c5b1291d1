"""Preflight of VLUNetModel: every key is known, and every mistake is found before a run starts."""

import pytest
import torch
from basicsr.archs import build_network
from helpers import DELETE, for_test, problems_at, put
from torch import nn
from vlunet_runs import EMBEDDINGS, NAMES, vlunet_file

from unfoldldm_basicsr.options.preflight import preflight
from unfoldldm_basicsr.weights.checkpoint import DEGRADATION_KEY
from unfoldldm_basicsr.weights.conditioning import degradation_meta

TUNED = {**EMBEDDINGS['clip'], 'tune_adapters': True}
ONE_CHANNEL = {**EMBEDDINGS['learned'], 'in_channels': 1}


@pytest.fixture
def options(tmp_path) -> dict:
    return vlunet_file(tmp_path)


@pytest.mark.parametrize('source', EMBEDDINGS)
def test_each_embedding_passes(options, source):
    assert preflight({**options, 'network_e': EMBEDDINGS[source]}, 'x.yml', True) == []


@pytest.mark.parametrize(
    ('path', 'value', 'place', 'words'),
    [
        ('network_e', DELETE, 'network_e', ['is missing', 'LabelDegradationEmbedding']),
        ('network_e.type', 'LabelEmbedding', 'network_e.type', ['LabelDegradationEmbedding']),
        ('network_e.num_degradation', 3, 'network_e.num_degradation', ['num_degradations']),
        ('network_e.num_degradations', 4, 'network_e.num_degradations', ['4', 'lists 3']),
        ('network_e.embed_dim', 16, 'network_g.embed_dim', ['is 8', 'set it to 16']),
        ('network_e', ONE_CHANNEL, 'network_e.in_channels', ['is 1', 'takes 3 channels']),
        ('network_g.type', 'NAFNet', 'network_g.type', ['no degradation', 'RestorationModel']),
        ('model_type', 'RestorationModel', 'network_g.type', ['degradation', 'VLUNetModel']),
        ('val.degradation_override', 'blurr', 'val.degradation_override', ["'blur'"]),
        ('val.degradation_overide', 'blur', 'val.degradation_overide', ['degradation_override']),
        ('datasets.val.degradation_names', NAMES[::-1], None, ['differs']),
        ('path.pretrain_network_e', 'no.pth', 'path.pretrain_network_e', ['Train the embedding']),
        ('train.mixing_augs', {'mixup': True}, 'train.mixing_augs.mixup', ['different']),
        ('network_e', TUNED, 'network_e.tune_adapters', ['DegradationCLIPModel']),
        ('val.trace', True, 'val.trace', ['no stages']),
    ],
)  # fmt: skip
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


def test_a_test_knows_the_vectors_that_its_network_was_trained_with(options, tmp_path):
    def weights(name: str, net: nn.Module, **more) -> str:
        torch.save({'params': net.state_dict(), **more}, tmp_path / name)
        return str(tmp_path / name)

    net, embedding = (build_network(options[key]) for key in ('network_g', 'network_e'))
    record = degradation_meta(NAMES, options['network_e'], embedding.state_dict())
    test = for_test(options)
    bare = {'pretrain_network_g': weights('bare.pth', net)}
    whole = {'pretrain_network_g': weights('whole.pth', net, **{DEGRADATION_KEY: record})}
    named = {**bare, 'pretrain_network_e': weights('e.pth', embedding)}
    found = problems_at({**test, 'path': bare}, 'path.pretrain_network_g')
    assert 'bare.pth: holds no degradation embedding' in found
    assert 'path.pretrain_network_e' in found
    for path in (whole, named):
        assert preflight({**test, 'path': path}, 'x.yml', False) == []
