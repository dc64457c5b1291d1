"""Restorer, tiles and degradation vectors: any image in, the same out; repeatable; honest."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import open_clip
import pytest
import torch
from helpers import image_of, write_photos
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_network import RESTORMER, TinyConvNet, save_trained, save_weights, shake, unfoldldm_kwargs
from tiny_vlunet import CLASSES, CLIP, EMBEDDINGS, build_vlunet, embedding_of, save_vlunet
from torch import nn
from torch.nn import functional as F

from unfoldldm_basicsr.archs.nafnet_arch import NAFNet
from unfoldldm_basicsr.archs.restormer_arch import Restormer
from unfoldldm_basicsr.archs.unfoldldm_arch import UnfoldLDM
from unfoldldm_basicsr.ops.image_statistics import image_statistic
from unfoldldm_basicsr.restoring import CheckpointError, Restorer, TileError, read_picture
from unfoldldm_basicsr.restoring.tiling import (
    check_tile,
    restore_in_tiles,
    sample_tiles,
    tile_spans,
    with_image_statistics,
)
from unfoldldm_basicsr.weights.checkpoint import read_checkpoint
from unfoldldm_basicsr.weights.convert import export_checkpoint

NAFNET = {'width': 4, 'enc_blk_nums': [1, 1], 'dec_blk_nums': [1, 1], 'middle_blk_num': 1}


class Network(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, lq):
        return self.function(lq)


@pytest.fixture(scope='module')
def unfoldldm(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('weights') / 'net_g.pth'
    return path, save_trained(path)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('shape', [(5, 7), (5, 7, 2), (5, 7, 3), (5, 7, 4), (1, 1), (1, 1, 3)])
def test_images_pass_an_identity_network_unchanged(shape, dtype):
    restorer = Restorer(Network(lambda lq: lq))
    every = np.arange(np.iinfo(dtype).max + 1, dtype=dtype)
    for image in (image_of(shape, dtype), every.reshape(16, -1)):
        restored = restorer.restore(image)
        assert restored.dtype == dtype
        assert np.array_equal(restored, image)


def test_alpha_is_kept_and_does_not_influence_the_colours():
    restorer = Restorer(TinyConvNet())
    colour, alpha = image_of((6, 6, 3)), image_of((6, 6), seed=1)
    restored = restorer.restore(np.dstack([colour, alpha]))
    assert np.array_equal(restored[..., 3], alpha)
    assert np.array_equal(restored[..., :3], restorer.restore(colour))
    assert not np.array_equal(restored[..., :3], colour), 'the network did something'


def test_channels_are_rgb_and_grey_is_the_mean_of_the_channels():
    only_red = Network(lambda lq: lq * torch.tensor([1.0, 0.0, 0.0])[:, None, None])
    image = image_of((4, 4, 3))
    restored = Restorer(only_red).restore(image)
    assert np.array_equal(restored[..., 0], image[..., 0])
    assert restored[..., 1:].max() == 0
    grey = image_of((4, 4))
    assert np.array_equal(Restorer(only_red).restore(grey), np.rint(grey / 3).astype(np.uint8))


def test_values_outside_the_range_are_clipped_and_nan_yields_an_error():
    shifted = Restorer(Network(lambda lq: lq * 4 - 1.6))
    assert shifted.restore(np.array([[0, 128, 255]], dtype=np.uint8)).tolist() == [[0, 104, 255]]
    with pytest.raises(ValueError, match='Network returned NaN'):
        Restorer(Network(lambda lq: lq / 0)).restore(np.zeros((4, 4, 3), np.uint8))


def test_a_global_network_says_once_that_tiles_change_the_result(log):
    restorer = Restorer(TinyConvNet(use_mean=True), tile=32, tile_overlap=8)
    restorer.restore(image_of((32, 20, 3)))
    assert not log.records, 'the image fits into one tile'
    restorer.restore(image_of((33, 20, 3)))
    restorer.restore(image_of((33, 20, 3)))
    assert len([r for r in log.records if 'statistics of the whole image' in r.message]) == 1


def uneven_image(height=64, width=128, seed=0):
    """Grows brighter and noisier to the right: every tile has other statistics."""
    ramp = np.linspace(0, 1, width)
    noise = np.random.default_rng(seed).standard_normal((height, width, 3)) * ramp[:, None]
    return np.clip(60 + 120 * ramp[:, None] + 40 * noise, 0, 255).astype(np.uint8)


# W and M are no statistics of fixed length: with them every tile sees its own.
HOLISTIC = {'phase': 'inference', 'mgda_mode': 'holistic', 'share_stages': True}


@pytest.mark.parametrize(('kind', 'arguments'), [
    (UnfoldLDM, unfoldldm_kwargs(**HOLISTIC)), (Restormer, RESTORMER), (NAFNet, NAFNET),
])  # fmt: skip
def test_shared_statistics_bring_tiles_closer_to_the_whole_image(kind, arguments, log):
    torch.manual_seed(0)
    net = shake(kind(**arguments))
    restorer = Restorer(net)
    lq = restorer.to_tensor(uneven_image())
    whole = restorer.restore_tensor(lq)
    errors, said = [], []
    for shared in ({'global_statistics': False}, {}):
        tiled = Restorer(net, tile=64, tile_overlap=40, **shared)
        errors.append((tiled.restore_tensor(lq) - whole).square().mean().sqrt().item())
        said.append('(--global-statistics)' in log.text)
        log.clear()
    # part of what UnfoldLDM sees of a tile is no statistic that could be shared
    assert errors[1] < (0.9 if isinstance(net, UnfoldLDM) else 0.7) * errors[0]
    assert said == [True, False]
    assert torch.equal(restorer.restore_tensor(lq), whole), 'nothing stays behind in the network'


def test_statistics_of_tiles_that_are_the_image_change_nothing():
    """Recorded on one part and used on it, every marked value is its own mean."""
    net = shake(UnfoldLDM(**unfoldldm_kwargs(phase='inference'))).eval()
    lq = torch.rand(2, 3, 32, 40)
    with torch.no_grad():
        fixed = with_image_statistics(net, lq, tile=64, size_multiple=8)
        assert torch.equal(fixed(lq), net(lq))
        assert not torch.equal(fixed(lq.flip(0)), net(lq.flip(0))), 'the others are not looked at'


def test_priors_of_tiles_come_from_the_quantiles_of_the_whole_image():
    torch.manual_seed(0)
    options = unfoldldm_kwargs('inference', prior_stages='all', prior_levels=True)
    net, priors = shake(UnfoldLDM(**options), 0.05).eval(), []
    lq = 0.1 * torch.rand(1, 3, 96, 96)
    lq[..., 72:88, 72:88] += 0.85  # in one corner tile

    def look(part):
        trace = net(part, return_trace=True)
        priors.append([stage.generated for stage in trace.stages])
        return trace.output

    with torch.no_grad():
        look(lq)
        with_image_statistics(look, lq, tile=48, size_multiple=16)(lq[..., :48, :48])
    for of_image, of_tile in zip(priors[0], priors[-1], strict=True):
        assert (of_image - of_tile).abs().mean() < 0.02


def test_threads_restore_as_one_does(unfoldldm):
    restorer = Restorer(unfoldldm[0], tile=32, tile_overlap=8)
    images = [image_of((52, 40 + 8 * (i % 2), 3), seed=i) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(restorer.restore, images))
    assert all(map(np.array_equal, found, map(restorer.restore, images)))


def test_lack_of_memory_names_the_remedy():
    def hungry(lq):
        if lq.shape[-1] > 16:
            raise torch.OutOfMemoryError('CUDA out of memory')
        return lq

    image, net = image_of((30, 30, 3)), Network(hungry)
    with pytest.raises(TileError, match=r'30x30 pixels.*use --tile 512'):
        Restorer(net).restore(image)
    with pytest.raises(TileError, match=r'30x30 pixels.*lower --tile'):
        Restorer(net, tile=32, tile_overlap=4).restore(image)
    with pytest.raises(TileError, match=r'Tile 1 of 4 .*lower --tile \(now 24\)'):
        Restorer(net, tile=24, tile_overlap=4).restore(image)
    assert np.array_equal(Restorer(net, tile=16, tile_overlap=4).restore(image), image)


def test_unusable_input_is_refused():
    restorer = Restorer(TinyConvNet())
    refused = [('shape', np.zeros(s, np.uint8)) for s in [(4,), (4, 4, 5), (4, 4, 1), (0, 4, 3)]]
    refused += [('float32', np.zeros((4, 4), np.float32)), ('str', 'photo.png')]
    for got, image in refused:
        with pytest.raises(ValueError, match=f'Images must be .* got {got}'):
            restorer.restore(image)
    with pytest.raises(ValueError, match='8x8 pixels into 16x16'):
        Restorer(nn.Upsample(scale_factor=2)).restore(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match='TinyConvNet has no stages'):
        restorer.trace(image_of((8, 8, 3)))


def test_unusable_settings_are_refused_before_the_first_image():
    for device in ('meta', 'vulkan', 'tpu', f'cuda:{torch.cuda.device_count()}'):
        said = f'device: {device} cannot be used here .*unfoldldm doctor'
        with pytest.raises(ValueError, match=said):
            Restorer(TinyConvNet(), device=device)
    with pytest.raises(ValueError, match='not larger than its overlap'):
        Restorer(TinyConvNet(), tile=16)


def test_a_network_for_grey_images_restores_grey_only(tmp_path):
    net, grey = TinyConvNet(inp_channels=1), image_of((9, 9))
    restorer = Restorer(save_weights(tmp_path / 'grey.pth', net, inp_channels=1))
    with torch.no_grad():
        expected = net(torch.from_numpy(grey / np.float32(255))[None, None])[0, 0].clamp(0, 1)
    assert np.array_equal(restorer.restore(grey), np.rint(expected.numpy() * 255))
    with pytest.raises(ValueError, match=r'3 colour channels.*with 1'):
        restorer.restore(image_of((9, 9, 3)))
    net = NAFNet(**NAFNET, img_channel=1)
    expected = Restorer(net).restore(grey).astype(int)
    assert np.abs(Restorer(net.half()).restore(grey) - expected).max() <= 2


def test_export_then_restore_equals_the_averaged_network_bit_for_bit(unfoldldm, tmp_path):
    path, ema = unfoldldm
    done = export_checkpoint(path, tmp_path / 'deploy.pth')
    assert done.dropped == ('prior_encoder',)
    assert done.param_key == 'params_ema'
    assert (tmp_path / 'deploy.pth').stat().st_size < path.stat().st_size / 2
    stored = read_checkpoint(tmp_path / 'deploy.pth')
    assert stored.param_key == 'params'
    assert stored.arch['kwargs']['phase'] == 'inference'
    assert not any(key.startswith('prior_encoder') for key in stored.state_dict)
    lq = torch.rand(2, 3, 33, 26)
    with torch.no_grad():
        expected = ema(lq)
    assert torch.equal(Restorer(tmp_path / 'deploy.pth').restore_tensor(lq), expected)
    assert torch.equal(Restorer(path).restore_tensor(lq), expected)
    assert not torch.equal(Restorer(path, param_key='params').restore_tensor(lq), expected)


def test_what_bare_weights_were_taken_for_is_said(tmp_path):
    path = tmp_path / 'released.pth'
    torch.save({'params': NAFNet(**NAFNET).state_dict()}, path)
    (note,) = Restorer(path).notes
    assert 'recognised as NAFNet (img_channel: 3, width: 4' in note
    assert 'NAFNetLocal has the same weights' in note
    torch.save({'params': Restormer(**RESTORMER).state_dict()}, path)
    (note,) = Restorer(path).notes
    assert 'the same weights' not in note


def test_phase_one_weights_are_not_exported_and_restoring_with_them_is_labelled(tmp_path):
    save_trained(tmp_path / 'p1.pth', phase=1)
    with pytest.raises(CheckpointError, match='Phase I weights'):
        export_checkpoint(tmp_path / 'p1.pth', tmp_path / 'b.pth')
    assert not (tmp_path / 'b.pth').exists()
    restorer = Restorer(tmp_path / 'p1.pth')
    assert 'null prior' in restorer.notes[0]
    assert restorer.restore(image_of((16, 16, 3))).shape == (16, 16, 3)
    save_trained(tmp_path / 'alone.pth', phase=1, use_ldm=False)  # no phase follows
    export_checkpoint(tmp_path / 'alone.pth', tmp_path / 'b.pth')
    images = [Restorer(tmp_path / f).restore(image_of((16, 16, 3))) for f in ('alone.pth', 'b.pth')]
    assert np.array_equal(*images)
    assert Restorer(tmp_path / 'alone.pth').notes == []


def test_a_trace_holds_what_the_network_did(unfoldldm):
    path, ema = unfoldldm
    image = image_of((24, 31, 3))
    trace = Restorer(path).trace(image)
    assert len(trace.stages) == 2
    with torch.no_grad():
        expected = ema(torch.from_numpy(image / np.float32(255)).permute(2, 0, 1)[None])
    output = expected[0].clamp(0, 1).permute(1, 2, 0).numpy()
    assert np.array_equal(trace.output, output)
    assert np.array_equal(trace.stages[-1].x, output)
    for stage in trace.stages:
        assert stage.prior.shape == (8,)
        assert stage.x_hat.shape == stage.x_tilde.shape == image.shape
        assert not np.array_equal(stage.x, stage.x_null), 'the prior has an effect'


@pytest.fixture(scope='module')
def files(tmp_path_factory):
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
    restorer.conditioning.embedding.register_forward_pre_hook(
        lambda _, a: seen.append((a[0].shape, torch.backends.cudnn.allow_tf32))
    )
    vectors = []
    restorer.net.register_forward_pre_hook(
        lambda _, __, options: vectors.append(options['degradation']), with_kwargs=True
    )
    x = torch.rand(1, 3, 50, 60)
    restorer.restore_tensor(x)
    assert seen == [(x.shape, False)]
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
    wide = Restorer(path, degradation=CLASSES[1])
    wide.net.double()
    torch.testing.assert_close(wide.restore_tensor(x), outputs[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('source', 'choice', 'message'), [
    ('label', 'auto', r'must be told .* one of: noise \(0\), rain \(1\), haze \(2\)'),
    ('label', 'rian', r"one of: .*\. Did you mean 'rain'\?"),
    ('label', -1, 'degradation -1: .* one of: noise'),
    ('clip', 'rain', 'CLIPDegradationEmbedding. tell the degradation from the image'),
])  # fmt: skip
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
    assert 'one of: noise (0), rain (1), haze (2)' in said
    assert not (tmp_path / 'no').exists()
    output_of(*words, tmp_path / 'out', '--degradation', 'haze')
    expected = Restorer(path, degradation=2).restore(read_picture(photo).pixels)
    assert np.array_equal(read_picture(tmp_path / 'out' / photo.name).pixels, expected)


def local_maximum(image: torch.Tensor) -> torch.Tensor:
    """A local operator of 7 x 7 pixels without rounding, so that equality can be exact."""
    return F.max_pool2d(image, 7, stride=1, padding=3) * 0.3


def tiled(call, image: torch.Tensor, size_multiple: int = 1, **settings) -> torch.Tensor:
    """``call`` as a network, in tiles."""
    net = torch.nn.Identity()
    net.size_multiple, net.tiling_changes_result = size_multiple, True
    return restore_in_tiles(net, call, image, **settings)


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 300),
    tile=st.integers(9, 120),
    overlap=st.integers(0, 60),
    multiple=st.sampled_from([1, 2, 4, 8]),
)
def test_windows_sum_to_one_and_tiles_fit(size, tile, overlap, multiple):
    if tile // multiple * multiple <= -(-overlap // multiple) * multiple:
        with pytest.raises(ValueError, match='not larger than its overlap'):
            tile_spans(size, tile, overlap, multiple)
        return
    spans = tile_spans(size, tile, overlap, multiple)
    total = torch.zeros(size, dtype=torch.float64)
    for start, stop, weight in spans:
        assert 0 <= start < stop <= size
        assert stop - start <= tile
        assert start % multiple == 0
        assert weight.min() >= 0
        total[start:stop] += weight
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-15)
    for first, second in itertools.pairwise(spans):
        assert first.stop - second.start >= overlap, 'neighbours share at least the overlap'


def test_the_rim_of_a_tile_has_no_weight_and_the_ramp_is_smooth():
    weight = tile_spans(200, 64, 32)[1].weight
    assert weight[:8].sum() == 0
    assert weight[-8:].sum() == 0
    assert weight[32 - 8 : 32].min() == 1, 'outside the ramp a tile counts fully'
    assert weight.diff().abs().max() < 0.11, 'a step would show as a seam'


@pytest.mark.parametrize('size', [(97, 61), (65, 200), (1, 150)])
@pytest.mark.parametrize(('tile', 'overlap', 'multiple'), [(48, 16, 1), (40, 16, 8)])
def test_a_local_operator_gives_exactly_the_untiled_result(size, tile, overlap, multiple):
    image = torch.rand(2, 3, *size)
    found = tiled(local_maximum, image, multiple, tile=tile, overlap=overlap)
    assert torch.equal(found, local_maximum(image))


def test_operators_on_a_grid_keep_their_phase():
    def blocks(image):
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % 8, 0, -height % 8), mode='replicate')
        return F.interpolate(F.avg_pool2d(padded, 8), scale_factor=8)[..., :height, :width]

    image = torch.rand(1, 1, 83, 130)
    found = tiled(blocks, image, 8, tile=50, overlap=16)
    torch.testing.assert_close(found, blocks(image), rtol=0, atol=1e-6)


def test_an_operator_that_changes_the_size_is_refused():
    with pytest.raises(ValueError, match='size of its input'):
        tiled(lambda x: x[..., ::2], torch.rand(1, 3, 100, 100), tile=40, overlap=8)


@pytest.mark.parametrize(
    ('tile', 'overlap', 'multiple', 'message'),
    [(32, 32, 1, 'at least 33'), (7, 0, 8, 'at least 8'), (64, -1, 1, '0 or more')],
)
def test_useless_tile_sizes_are_refused(tile, overlap, multiple, message):
    with pytest.raises(ValueError, match=message):
        check_tile(tile, overlap, multiple)


def scaled_by_quantiles(image: torch.Tensor) -> torch.Tensor:
    """Sees minimum, median and maximum of an image, and the mean of what it makes of them."""
    order = image.flatten(2).sort(2).values
    ranks = [round(i / 20 * (order.shape[2] - 1)) for i in range(21)]
    order = image_statistic(order[:, :, ranks], 'sorted')
    low, middle, high = order[:, :, [0, 10, 20], None].unbind(2)
    scaled = (image - low[..., None]) / (high - low)[..., None] + middle[..., None]
    return scaled * image_statistic(scaled.mean((2, 3), keepdim=True))


def test_quantiles_of_tiles_and_what_follows_from_them_are_those_of_the_image():
    """The mean of the tiles' maxima would be dark: there is one bright patch."""
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 0.1
    image[..., 40:52, 70:82] += 0.9
    found = tiled(scaled_by_quantiles, image, tile=32, overlap=0)
    torch.testing.assert_close(found, scaled_by_quantiles(image), rtol=0.01, atol=0.001)


def test_samples_of_tiles_are_drawn_once():
    assert len(sample_tiles(520, 520, 512, 16)) == 1
    assert len(sample_tiles(5000, 5000, 512, 16)) == 9
    assert len(set(map(str, sample_tiles(1200, 560, 512, 16)))) == 3 * 2
