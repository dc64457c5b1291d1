"""Restoring with a network that a degradation vector steers: where the vector comes from."""

import numpy as np
import open_clip
import pytest
import torch
from helpers import write_photos
from tiny_network import TinyConvNet
from tiny_vlunet import CLASSES, CLIP, EMBEDDINGS, build_vlunet, embedding_of, save_vlunet

from unfoldldm_basicsr.restoring import CheckpointError, Restorer, read_picture
from unfoldldm_basicsr.weights.checkpoint import read_checkpoint
from unfoldldm_basicsr.weights.convert import export_checkpoint


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Weight file, network and embedding by source."""
    torch.manual_seed(0)
    folder, found = tmp_path_factory.mktemp('weights'), {}
    for source in EMBEDDINGS:
        net, embedding = build_vlunet(), embedding_of(source)
        path = save_vlunet(folder / f'{source}.pth', net, source, embedding)
        found[source] = path, net, embedding
    return found


def test_tiles_share_one_vector_of_the_whole_image(files):
    path, _, embedding = files['clip']
    restorer = Restorer(path, tile=32, tile_overlap=8)
    assert (restorer.net.size_multiple, restorer.net.tiling_changes_result) == (8, True)
    seen = []
    restorer.conditioning.embedding.register_forward_pre_hook(lambda _, a: seen.append(a[0].shape))
    vectors = []
    restorer.net.register_forward_pre_hook(
        lambda _, __, options: vectors.append(options['degradation']), with_kwargs=True
    )
    x = torch.rand(1, 3, 50, 60)
    restorer.restore_tensor(x)
    assert seen == [x.shape]
    assert len(vectors) > 4
    expected = embedding(x)
    assert all(torch.equal(vector, expected) for vector in vectors)


def test_a_known_degradation_is_chosen_by_name_or_index(files):
    path, net, embedding = files['label']
    x = torch.rand(1, 3, 16, 16)
    outputs = []
    for index, name in enumerate(CLASSES):
        expected = net(x, embedding(x, torch.tensor([index])))
        for choice in (name, index, str(index)):
            assert torch.equal(Restorer(path, degradation=choice).restore_tensor(x), expected)
        outputs.append(expected)
    assert not torch.allclose(outputs[0], outputs[1])


@pytest.mark.parametrize(
    ('source', 'choice', 'message'),
    [
        ('label', 'auto', r'cannot tell .* one of: noise \(0\), rain \(1\), haze \(2\)'),
        (
            'label',
            'rian',
            r"no such degradation\. Did you mean 'rain'\? Name another, one of",
        ),
        ('label', -1, 'degradation -1: .* one of: noise'),
        ('clip', 'rain', 'CLIPDegradationEmbedding. tell the degradation from the image'),
    ],
)
def test_choices_that_the_weights_do_not_have_are_refused(files, source, choice, message):
    with pytest.raises(ValueError, match=message):
        Restorer(files[source][0], degradation=choice)


def test_averaged_weights_are_taken_for_both_or_for_none(tmp_path):
    nets = [build_vlunet() for _ in range(2)]
    embeddings = [embedding_of('learned') for _ in range(2)]
    averages = nets[1], embeddings[1]
    path = save_vlunet(tmp_path / 'a.pth', nets[0], 'learned', embeddings[0], averages=averages)
    x = torch.rand(1, 3, 16, 24)
    plain, ema = (n(x, e(x)) for n, e in zip(nets, embeddings, strict=True))
    assert not torch.allclose(plain, ema)
    assert torch.equal(Restorer(path).restore_tensor(x), ema)
    assert torch.equal(Restorer(path, param_key='params').restore_tensor(x), plain)
    done = export_checkpoint(path, tmp_path / 'b.pth')
    assert torch.equal(Restorer(tmp_path / 'b.pth').restore_tensor(x), ema)
    stored = read_checkpoint(tmp_path / 'b.pth').degradation
    assert set(stored['embedding']) == {'type', 'kwargs', 'params'}
    weights = [*nets[0].state_dict().values(), *embeddings[0].state_dict().values()]
    assert done.values == sum(w.numel() for w in weights)


def test_clip_that_is_not_in_the_file_is_had_from_where_the_user_says(tmp_path):
    torch.save(open_clip.CLIP(**CLIP).state_dict(), tmp_path / 'clip.pth')
    option = {**EMBEDDINGS['clip'], 'pretrained': str(tmp_path / 'clip.pth')}
    net, embedding = build_vlunet(), embedding_of('clip', pretrained=option['pretrained'])
    path = save_vlunet(tmp_path / 'net.pth', net, 'clip', embedding, option)
    stored = read_checkpoint(path).degradation['embedding']['params']
    assert not any('clip_model' in key for key in stored)
    x = torch.rand(1, 3, 16, 16)
    expected = net(x, embedding(x))
    assert torch.equal(Restorer(path).restore_tensor(x), expected)
    (tmp_path / 'clip.pth').rename(tmp_path / 'moved.pth')
    with pytest.raises(CheckpointError, match=r'clip\.pth. is neither a file.*--clip-weights FILE'):
        Restorer(path)
    found = Restorer(path, clip_weights=tmp_path / 'moved.pth')
    assert torch.equal(found.restore_tensor(x), expected)


def test_clip_weights_without_use_are_refused(files):
    for source in EMBEDDINGS:
        name = 'rain' if source == 'label' else 'auto'
        with pytest.raises(CheckpointError, match='leave out --clip-weights'):
            Restorer(files[source][0], degradation=name, clip_weights='x.pth')
    for setting in ({'degradation': 'rain'}, {'clip_weights': 'x.pth'}):
        with pytest.raises(ValueError, match='TinyConvNet: its weights know no degradations'):
            Restorer(TinyConvNet(), **setting)


def test_a_network_without_its_vectors_says_what_is_missing(tmp_path):
    net = build_vlunet()
    torch.save({'params': net.state_dict()}, tmp_path / 'net.pth')
    with pytest.raises(CheckpointError, match=r"needs a degradation vector, .* no 'degradation'"):
        Restorer(tmp_path / 'net.pth')
    x = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r'restore\(image, degradation=\.\.\.\)'):
        Restorer(net).restore_tensor(x)
    vector = torch.randn(1, 8)
    assert torch.equal(Restorer(net).restore_tensor(x, degradation=vector), net(x, vector))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'embedding': None}, "under 'degradation' is not"),
        ({'embedding': {'type': 'X', 'kwargs': {}, 'params': {'a': torch.zeros(1)}}},
         "'X' is not registered"),
        ({'embedding': {'type': 'LearnedDegradationEmbedding', 'kwargs': {},
                        'params': {'a': torch.tensor(torch.nan)}}}, 'hold NaN'),
        ({'embedding': {'type': 'LearnedDegradationEmbedding', 'kwargs': {},
                        'params': {'a': torch.zeros(1)}}}, '1 unknown to the network .first a'),
    ],
)  # fmt: skip
def test_damaged_records_are_refused(tmp_path, files, change, message):
    content = torch.load(files['learned'][0], weights_only=True)
    content['degradation'].update(change)
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=message):
        Restorer(tmp_path / 'a.pth')


def test_the_command_restores_photos_with_a_named_degradation(files, tmp_path, output_of):
    photo = write_photos(tmp_path / 'in', 1)[0]
    path = files['label'][0]
    words = ['restore', '-i', photo, '-w', path, '-o']
    said = output_of(*words, tmp_path / 'no', status=2)
    assert 'name it, one of: noise (0), rain (1), haze (2)' in said
    assert not (tmp_path / 'no').exists()
    output_of(*words, tmp_path / 'out', '--degradation', 'haze')
    expected = Restorer(path, degradation=2).restore(read_picture(photo).pixels)
    assert np.array_equal(read_picture(tmp_path / 'out' / photo.name).pixels, expected)
