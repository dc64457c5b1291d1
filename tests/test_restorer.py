"""Restorer: any size and image mode in, the same out; repeatable; honest about tiles and phases."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers import image_of
from tiny_network import RESTORMER, TinyConvNet, save_trained, save_weights, shake, unfoldldm_kwargs
from torch import nn

from unfoldldm_basicsr.archs.nafnet_arch import NAFNet
from unfoldldm_basicsr.archs.restormer_arch import Restormer
from unfoldldm_basicsr.archs.unfoldldm_arch import UnfoldLDM
from unfoldldm_basicsr.restoring import CheckpointError, Restorer, TileError
from unfoldldm_basicsr.restoring.tiling import with_image_statistics
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


@pytest.mark.parametrize(
    'make',
    [
        # W and M are no statistics of fixed length: with them every tile sees its own.
        lambda: UnfoldLDM(
            **unfoldldm_kwargs(phase='inference', mgda_mode='holistic', share_stages=True)
        ),
        lambda: Restormer(**RESTORMER),
        lambda: NAFNet(**NAFNET),
    ],
    ids=['UnfoldLDM', 'Restormer', 'NAFNet'],
)
def test_shared_statistics_bring_tiles_closer_to_the_whole_image(make, log):
    torch.manual_seed(0)
    net = shake(make())
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
    with pytest.raises(ValueError, match="'tpu' is none"):
        Restorer(TinyConvNet(), device='tpu')
    with pytest.raises(ValueError, match=r'PyTorch sees \d+ GPUs.*unfoldldm doctor'):
        Restorer(TinyConvNet(), device=f'cuda:{torch.cuda.device_count()}')
    with pytest.raises(ValueError, match='not larger than its overlap'):
        Restorer(TinyConvNet(), tile=16)
    with pytest.raises(CheckpointError, match='is a folder'):
        Restorer('')  # an empty variable of a shell is not the default


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
