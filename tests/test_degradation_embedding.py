"""Degradation vectors: one interface, frozen CLIP, adapters, checkpoints, errors with a remedy."""

import sys
from unittest.mock import Mock

import open_clip
import pytest
import torch
from helpers import Attack, load_options
from tiny_vlunet import CLIP, EMBEDDINGS, embedding_of
from torch import nn
from torch.nn import functional as F
from torchvision import transforms

from unfoldldm_basicsr.archs.degradation_embedding import (
    CLASS_TEXTS,
    CLIPDegradationEmbedding,
    LabelDegradationEmbedding,
    LearnedDegradationEmbedding,
)


def clip_embedding(**changes) -> CLIPDegradationEmbedding:
    return CLIPDegradationEmbedding(**{'pretrained': None, 'clip_config': CLIP, **changes})


EACH = pytest.mark.parametrize('source', EMBEDDINGS)
LABELS = torch.tensor([2, 0, 1])


@EACH
@pytest.mark.parametrize('size', [(1, 1), (33, 17)])
def test_any_image_gives_a_vector(source, size):
    net = embedding_of(source)
    out = net(torch.rand(3, 3, *size), LABELS)
    assert out.shape == (3, net.embed_dim) == (3, 8)
    assert out.isfinite().all()


@EACH
def test_vector_does_not_depend_on_the_batch(source):
    net, x = embedding_of(source), torch.rand(3, 3, 33, 17)
    single = [net(a, b) for a, b in zip(x.split(1), LABELS.split(1), strict=True)]
    torch.testing.assert_close(net(x, LABELS), torch.cat(single))


def test_clip_is_frozen_and_adapters_only_train_on_request():
    assert not any(p.requires_grad for p in clip_embedding().parameters())
    net = clip_embedding(tune_adapters=True)
    names = {name for name, p in net.named_parameters() if p.requires_grad}
    assert names == {name for name, _ in net.named_parameters() if name.startswith('ad_')} != set()
    assert net.training
    assert not net.clip_model.training
    assert not net.train().clip_model.training


def test_adapter_is_linear_norm_gelu_three_times_without_the_last_gelu():
    kinds = [type(layer) for layer in clip_embedding().ad_imageEncoder['adapter']]
    assert kinds == [nn.Linear, nn.LayerNorm, nn.GELU] * 2 + [nn.Linear, nn.LayerNorm]


@pytest.mark.parametrize(('normalize', 'temperature'), [(False, 1.0), (True, 0.1)])
def test_logits_compare_images_with_texts(normalize, temperature):
    net = clip_embedding(normalize=normalize, temperature=temperature)
    x = torch.rand(2, 3, 40, 32)
    out = net(x, return_logits=True)
    texts = net.clip_model.encode_text(open_clip.tokenize(list(CLASS_TEXTS.values()), 12))
    texts = net.ad_textEncoder['adapter'](texts)
    expected = (
        F.cosine_similarity(out.embedding[:, None], texts[None], dim=-1) / temperature
        if normalize
        else out.embedding @ texts.T
    )
    assert out.logits.shape == (2, 7)
    torch.testing.assert_close(out.logits, expected)
    torch.testing.assert_close(out.embedding, net(x))


@pytest.mark.parametrize('size', [(48, 65), (32, 32), (16, 21)])
def test_preprocessing_equals_the_transforms_of_the_released_code(size):
    """These act on tensors, so that the overshoot of the cubic at edges is not cut off."""
    constants = open_clip.constants
    transform = transforms.Compose(
        [
            transforms.Resize(32, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.Normalize(constants.OPENAI_DATASET_MEAN, constants.OPENAI_DATASET_STD),
        ]
    )
    x = torch.rand(2, 3, *size).round()
    net = clip_embedding()
    found = net.preprocess(x)
    assert found.shape == (2, 3, 32, 32)
    torch.testing.assert_close(found, transform(x), atol=1e-5, rtol=0)
    pixels = found * net.std + net.mean
    assert bool(pixels.min() < -0.01 or pixels.max() > 1.01) == (size != (32, 32))


def test_texts_name_the_classes_of_the_released_training_in_their_order():
    options = load_options('train/VLUNet/degradation_clip.yml')
    assert options['network_g']['class_texts'] == list(CLASS_TEXTS.values())
    assert options['datasets']['train']['degradation_names'] == list(CLASS_TEXTS)


def test_backbone_from_a_file_is_used_but_not_saved_again(tmp_path):
    backbone_file = str(tmp_path / 'clip.pth')
    torch.save(open_clip.CLIP(**CLIP).state_dict(), backbone_file)
    net = clip_embedding(pretrained=backbone_file)
    saved = net.state_dict()
    assert saved
    assert not any('clip_model' in key for key in saved)
    wrapped = nn.ModuleDict({'net': net})
    assert {key.removeprefix('net.') for key in wrapped.state_dict()} == set(saved)
    other = clip_embedding(pretrained=backbone_file)
    other.load_state_dict(saved, strict=True)
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(other(x), net(x))


def test_released_layout_with_the_backbone_twice_loads_strictly():
    net, other = clip_embedding(), clip_embedding()
    released = {}
    for key, value in net.state_dict().items():
        if key.startswith('clip_model.'):
            released[f'ad_imageEncoder.{key}'] = released[f'ad_textEncoder.{key}'] = value
        else:
            released[key] = value
    other.load_state_dict(released, strict=True)
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(other(x), net(x))
    del released['ad_imageEncoder.adapter.0.weight']
    with pytest.raises(RuntimeError, match=r'Missing key.*ad_imageEncoder\.adapter\.0\.weight'):
        other.load_state_dict(released, strict=True)


def test_weights_that_cannot_be_had_come_with_the_remedy(monkeypatch):
    monkeypatch.setattr(open_clip, 'create_model', Mock(side_effect=OSError('no route to host')))
    with pytest.raises(FileNotFoundError) as error:
        CLIPDegradationEmbedding()
    for part in ('no route to host', 'laion/CLIP-ViT-B-32', 'set pretrained to its path', 'Label'):
        assert part in str(error.value)


def test_missing_openclip_comes_with_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, 'open_clip', None)
    with pytest.raises(ImportError, match='pip install open_clip_torch'):
        CLIPDegradationEmbedding()


@pytest.mark.parametrize(('changes', 'message'), [
    ({'clip_config': None, 'model_name': 'ViT-B32'}, "Did you mean 'ViT-B-32'"),
    ({'clip_config': None, 'pretrained': 'laion2b_s34b'},
     "neither a file nor an OpenCLIP tag of ViT-B-32.* Did you mean 'laion2b"),
    ({'pretrained': 'openai'}, 'neither a file nor an OpenCLIP tag of your clip_config'),
    ({'clip_config': {'dim': 3}}, "clip_config: .*'dim'"),
    ({'clip_config': {**CLIP, 'text_cfg': {**CLIP['text_cfg'], 'vocab_size': 9}}},
     r'clip_config\.text_cfg\.vocab_size must be a whole number >= 49408, got 9'),
    ({'clip_config': {**CLIP, 'text_cfg': -1}}, r'clip_config\.text_cfg must be a section'),
    ({'class_texts': []}, 'class_texts must have at least 1 item'),
    ({'temperature': 0}, 'temperature must be greater than 0'),
])  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        clip_embedding(**changes)


def test_malicious_pickle_is_refused(tmp_path):
    torch.save({'weights': Attack(tmp_path / 'touched')}, tmp_path / 'evil.pth')
    with pytest.raises(ValueError, match='does not hold weights'):
        clip_embedding(pretrained=str(tmp_path / 'evil.pth'))
    assert not (tmp_path / 'touched').exists()


def test_labels_choose_rows_and_bad_ones_are_refused():
    net, x = embedding_of('label'), torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(net(x, torch.tensor([2, 0])), net.table.weight[[2, 0]])
    with pytest.raises(ValueError, match=r"dataset that gives 'degradation'"):
        net(x)
    with pytest.raises(ValueError, match=r'0 to 2, got \[1, 3\]'):
        net(x, torch.tensor([3, 1]))
    with pytest.raises(ValueError, match='num_degradations must be greater than 0'):
        LabelDegradationEmbedding(num_degradations=0)


def test_encoder_gives_finite_gradients_for_flat_images():
    net = LearnedDegradationEmbedding(embed_dim=8, width=4)
    nn.functional.mse_loss(net(torch.zeros(1, 3, 8, 8)), torch.ones(1, 8)).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
