"""Restorer: any size and image mode in, the same out; repeatable; honest about tiles and phases."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from tiny_network import TinyConvNet, shake, unfoldldm_kwargs
from torch import nn

from unfoldldm_basicsr.archs.nafnet_arch import NAFNet
from unfoldldm_basicsr.archs.restormer_arch import Restormer
from unfoldldm_basicsr.archs.unfoldldm_arch import UnfoldLDM
from unfoldldm_basicsr.common.cost import bytes_per_pixel, free_memory
from unfoldldm_basicsr.restoring import CheckpointError, Restorer, TileError, export_checkpoint
from unfoldldm_basicsr.restoring.tiling import with_image_statistics
from unfoldldm_basicsr.weights.checkpoint import network_meta, read_checkpoint


def image_of(shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


class Identity(nn.Module):
    """Returns its input."""

    def forward(self, lq):
        """(B, C, H, W), unchanged."""
        return lq


def save_unfoldldm(path, **changes):
    """A trained-looking checkpoint; returns the network with the averaged weights."""
    kwargs = unfoldldm_kwargs(**changes)
    net, ema = (shake(UnfoldLDM(**kwargs)) for _ in range(2))
    content = {'params': net.state_dict(), 'params_ema': ema.state_dict()}
    torch.save({**content, 'arch': network_meta({'type': 'UnfoldLDM', **kwargs})}, path)
    return ema.eval()


@pytest.fixture(scope='module')
def unfoldldm(tmp_path_factory):
    """Phase II checkpoint and its network."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('weights') / 'net_g.pth'
    return path, save_unfoldldm(path)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('shape', [(5, 7), (5, 7, 2), (5, 7, 3), (5, 7, 4), (1, 1), (1, 1, 3)])
def test_images_pass_an_identity_network_unchanged(shape, dtype):
    """Every value, channel and bit survives the way to the network and back."""
    image = image_of(shape, dtype)
    restored = Restorer(Identity()).restore(image)
    assert restored.dtype == dtype
    assert np.array_equal(restored, image)


def test_every_sixteen_bit_value_survives():
    image = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(Restorer(Identity()).restore(image), image)


def test_alpha_is_kept_and_does_not_influence_the_colours():
    restorer = Restorer(TinyConvNet())
    colour, alpha = image_of((6, 6, 3)), image_of((6, 6), seed=1)
    restored = restorer.restore(np.dstack([colour, alpha]))
    assert np.array_equal(restored[..., 3], alpha)
    assert np.array_equal(restored[..., :3], restorer.restore(colour))
    assert not np.array_equal(restored[..., :3], colour), 'the network did something'


def test_channels_are_rgb_and_grey_is_the_mean_of_the_channels():
    class OnlyRed(nn.Module):
        def forward(self, lq):
            return lq * torch.tensor([1.0, 0.0, 0.0])[:, None, None]

    image = image_of((4, 4, 3))
    restored = Restorer(OnlyRed()).restore(image)
    assert np.array_equal(restored[..., 0], image[..., 0])
    assert restored[..., 1:].max() == 0
    grey = image_of((4, 4))
    assert np.array_equal(Restorer(OnlyRed()).restore(grey), np.rint(grey / 3).astype(np.uint8))


def test_values_outside_the_range_are_clipped_not_wrapped():
    class Shift(nn.Module):
        def forward(self, lq):
            return lq * 4 - 1.6

    restored = Restorer(Shift()).restore(np.array([[0, 128, 255]], dtype=np.uint8))
    assert restored.tolist() == [[0, 104, 255]]


def test_a_network_that_returns_nan_yields_an_error_not_black_pixels():
    class Diverged(nn.Module):
        def forward(self, lq):
            return lq / 0

    with pytest.raises(ValueError, match='Diverged returned NaN'):
        Restorer(Diverged()).restore(np.zeros((4, 4, 3), np.uint8))


@pytest.mark.parametrize('size', [(1, 1), (7, 40), (33, 17)])
@pytest.mark.parametrize(
    'make',
    [
        lambda: Restormer(dim=8, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1),
        lambda: NAFNet(width=4, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1], middle_blk_num=1),
        lambda: UnfoldLDM(**unfoldldm_kwargs(phase='inference')),
    ],
    ids=['Restormer', 'NAFNet', 'UnfoldLDM'],
)
def test_any_size_is_restored(make, size):
    image = image_of((*size, 3))
    restored = Restorer(shake(make())).restore(image)
    assert restored.shape == image.shape


def test_repeating_gives_the_same_bits_whatever_the_random_state(unfoldldm):
    restorer, image = Restorer(unfoldldm[0], tile=32, tile_overlap=8), image_of((50, 40, 3))
    torch.manual_seed(1)
    first = restorer.restore(image)
    torch.manual_seed(2)
    assert np.array_equal(restorer.restore(image), first)
    assert np.array_equal(Restorer(unfoldldm[0], tile=32, tile_overlap=8).restore(image), first)


def test_tiles_give_the_untiled_result_for_a_local_network():
    net, image = TinyConvNet(), image_of((70, 90, 3), np.uint16)
    whole = Restorer(net).restore(image)
    tiled = Restorer(net, tile=40, tile_overlap=16).restore(image)
    assert np.abs(tiled.astype(int) - whole).max() <= 1  # convolutions round by size


def test_a_global_network_says_once_that_tiles_change_the_result(caplog):
    restorer = Restorer(TinyConvNet(use_mean=True), tile=32, tile_overlap=8)
    with caplog.at_level(logging.WARNING, logger='basicsr'):
        logging.getLogger('basicsr').propagate = True
        restorer.restore(image_of((20, 20, 3)))
        assert not caplog.records, 'the image fits into one tile'
        restorer.restore(image_of((50, 50, 3)))
        restorer.restore(image_of((50, 50, 3)))
    assert len([r for r in caplog.records if 'statistics of the whole image' in r.message]) == 1


def uneven_image(height=64, width=128, seed=0):
    """Grows brighter and noisier to the right: every tile has other statistics."""
    ramp = np.linspace(0, 1, width)
    noise = np.random.default_rng(seed).standard_normal((height, width, 3)) * ramp[:, None]
    return np.clip(60 + 120 * ramp[:, None] + 40 * noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    'make',
    [
        # W and M are no statistics of fixed length: with them every tile sees its own.
        lambda: UnfoldLDM(**unfoldldm_kwargs(phase='inference', mgda_mode='holistic')),
        lambda: Restormer(dim=8, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1),
        lambda: NAFNet(width=4, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1], middle_blk_num=1),
    ],
    ids=['UnfoldLDM', 'Restormer', 'NAFNet'],
)
def test_shared_statistics_bring_tiles_closer_to_the_whole_image(make, caplog):
    torch.manual_seed(0)
    net = shake(make())
    restorer = Restorer(net)
    lq = restorer.to_tensor(uneven_image())
    whole = restorer.restore_tensor(lq)
    errors, said = [], []
    for shared in (False, True, None):
        tiled = Restorer(net, tile=64, tile_overlap=40, global_statistics=shared)
        with caplog.at_level(logging.WARNING, logger='basicsr'):
            errors.append((tiled.restore_tensor(lq) - whole).square().mean().sqrt().item())
        said.append('(--global-statistics)' in caplog.text)
        caplog.clear()
    # part of what UnfoldLDM sees of a tile is no statistic that could be shared
    assert errors[1] < (0.9 if isinstance(net, UnfoldLDM) else 0.7) * errors[0]
    assert errors[2] == errors[1], 'the better way is the default'
    assert said == [True, False, False]
    assert torch.equal(restorer.restore_tensor(lq), whole), 'nothing stays behind in the network'


def test_statistics_of_tiles_that_are_the_image_change_nothing():
    """Recorded on one part and used on it, every marked value is its own mean."""
    net = shake(UnfoldLDM(**unfoldldm_kwargs(phase='inference'))).eval()
    lq = torch.rand(2, 3, 32, 40)
    with torch.no_grad():
        fixed = with_image_statistics(net, lq, tile=64, size_multiple=8)
        assert torch.equal(fixed(lq), net(lq))
        assert not torch.equal(fixed(lq.flip(0)), net(lq.flip(0))), 'the others are not looked at'


def test_shared_statistics_without_effect_are_refused():
    with pytest.raises(ValueError, match='set --tile as well'):
        Restorer(NAFNet(width=4), global_statistics=True)
    with pytest.raises(ValueError, match='TinyConvNet uses no statistics'):
        Restorer(TinyConvNet(), tile=40, tile_overlap=8, global_statistics=True)
    unmarked = Restorer(TinyConvNet(use_mean=True), tile=40, tile_overlap=8, global_statistics=True)
    with pytest.raises(ValueError, match='marks no statistics'):
        unmarked.restore(image_of((50, 50, 3)))


def test_lack_of_memory_names_the_remedy():
    class Hungry(nn.Module):
        def forward(self, lq):
            if lq.shape[-1] > 16:
                raise torch.OutOfMemoryError('CUDA out of memory')
            return lq

    image = image_of((30, 30, 3))
    with pytest.raises(TileError, match=r'30x30 pixels.*use --tile 512'):
        Restorer(Hungry()).restore(image)
    with pytest.raises(TileError, match=r'lower --tile \(now 24\)'):
        Restorer(Hungry(), tile=24, tile_overlap=4).restore(image)
    assert np.array_equal(Restorer(Hungry(), tile=16, tile_overlap=4).restore(image), image)


def test_unusable_input_is_refused():
    restorer = Restorer(Identity())
    with pytest.raises(ValueError, match='uint8 or uint16, got float32'):
        restorer.restore(np.zeros((4, 4), np.float32))
    for shape in [(4,), (4, 4, 5), (4, 4, 1), (0, 4, 3)]:
        with pytest.raises(ValueError, match='Images must'):
            restorer.restore(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match='8x8 pixels into 16x16'):
        Restorer(nn.Upsample(scale_factor=2)).restore(np.zeros((8, 8, 3), np.uint8))


def test_unusable_settings_are_refused_before_the_first_image():
    with pytest.raises(ValueError, match="'tpu' is none"):
        Restorer(Identity(), device='tpu')
    with pytest.raises(ValueError, match=r'PyTorch sees \d+ GPUs.*unfoldldm doctor'):
        Restorer(Identity(), device=f'cuda:{torch.cuda.device_count()}')
    with pytest.raises(ValueError, match='not larger than its overlap'):
        Restorer(Identity(), tile=16)


def test_a_network_for_grey_images_restores_grey_only(tmp_path):
    net = TinyConvNet(inp_channels=1)
    meta = network_meta({'type': 'TinyConvNet', 'inp_channels': 1})
    torch.save({'params': net.state_dict(), 'arch': meta}, tmp_path / 'grey.pth')
    restorer, grey = Restorer(tmp_path / 'grey.pth'), image_of((9, 9))
    with torch.no_grad():
        expected = net(torch.from_numpy(grey / np.float32(255))[None, None])[0, 0].clamp(0, 1)
    assert np.array_equal(restorer.restore(grey), np.rint(expected.numpy() * 255))
    with pytest.raises(ValueError, match=r'3 colour channels.*with 1'):
        restorer.restore(image_of((9, 9, 3)))


def test_export_then_restore_equals_the_averaged_network_bit_for_bit(unfoldldm, tmp_path):
    path, ema = unfoldldm
    done = export_checkpoint(path, tmp_path / 'deploy.pth')
    assert done.dropped == ('prior_encoder',)
    assert done.param_key == 'params_ema'
    assert done.bytes_after < done.bytes_before / 2
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


def test_export_of_another_network_keeps_the_averaged_weights(tmp_path):
    net, ema = TinyConvNet(dim=5), TinyConvNet(dim=5)
    content = {'params': net.state_dict(), 'params_ema': ema.state_dict()}
    meta = network_meta({'type': 'TinyConvNet', 'dim': 5})
    torch.save({**content, 'arch': meta}, tmp_path / 'a.pth')
    done = export_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth')
    stored = read_checkpoint(tmp_path / 'b.pth')
    assert done.dropped == ()
    assert stored.arch == meta
    assert all(torch.equal(v, ema.state_dict()[k]) for k, v in stored.state_dict.items())


def test_export_never_replaces_a_file_unasked(unfoldldm, tmp_path):
    path = unfoldldm[0]
    before = path.read_bytes()
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match='is the file that is read'):
            export_checkpoint(path, path, overwrite=overwrite)
    (tmp_path / 'b.pth').write_bytes(b'mine')
    with pytest.raises(FileExistsError, match='--overwrite'):
        export_checkpoint(path, tmp_path / 'b.pth')
    assert (tmp_path / 'b.pth').read_bytes() == b'mine'
    assert path.read_bytes() == before
    export_checkpoint(path, tmp_path / 'b.pth', overwrite=True)
    assert read_checkpoint(tmp_path / 'b.pth').arch is not None


def test_what_bare_weights_were_taken_for_is_said(tmp_path):
    net = NAFNet(width=4, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1], middle_blk_num=1)
    torch.save({'params': net.state_dict()}, tmp_path / 'released.pth')
    (note,) = Restorer(tmp_path / 'released.pth').notes
    assert 'recognised as NAFNet (img_channel: 3, width: 4' in note
    assert 'NAFNetLocal has the same weights' in note
    net = Restormer(dim=8, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1)
    torch.save({'params': net.state_dict()}, tmp_path / 'released.pth')
    (note,) = Restorer(tmp_path / 'released.pth').notes
    assert 'the same weights' not in note


def test_the_memory_that_is_counted_grows_with_the_image_and_is_about_what_is_taken():
    per_pixel = bytes_per_pixel(TinyConvNet(dim=64))
    planes = 3 + 3 + 64 + 64  # padded input, input, features and features padded again, in fp32
    assert planes * 4 <= per_pixel <= 3 * planes * 4
    assert bytes_per_pixel(TinyConvNet(dim=128)) > 1.8 * per_pixel
    deep = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(20)))
    assert bytes_per_pixel(deep, channels=8) == 3 * 8 * 4, 'image, input and output'
    free = free_memory(torch.device('cpu'))
    assert free is None or 2**20 < free < 2**50


def test_phase_one_weights_are_not_exported_and_restoring_with_them_is_labelled(tmp_path):
    save_unfoldldm(tmp_path / 'p1.pth', phase=1)
    with pytest.raises(CheckpointError, match='Phase I weights'):
        export_checkpoint(tmp_path / 'p1.pth', tmp_path / 'b.pth')
    assert not (tmp_path / 'b.pth').exists()
    restorer = Restorer(tmp_path / 'p1.pth')
    assert 'null prior' in restorer.notes[0]
    assert restorer.restore(image_of((16, 16, 3))).shape == (16, 16, 3)


def test_network_options_reach_the_network(unfoldldm):
    restorer, image = Restorer(unfoldldm[0]), image_of((24, 24, 3), np.uint16)
    generated = restorer.restore(image)
    assert np.array_equal(restorer.restore(image, prior_source='generated'), generated)
    assert not np.array_equal(restorer.restore(image, prior_source='null'), generated)


def test_a_trace_holds_what_the_network_did(unfoldldm):
    path, ema = unfoldldm
    image = image_of((24, 31, 3))
    trace, cropped = Restorer(path).trace(image)
    assert not cropped
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


def test_a_trace_with_tiles_shows_the_middle_of_large_images_only(unfoldldm):
    restorer, image = Restorer(unfoldldm[0], tile=32, tile_overlap=8), image_of((52, 20, 3))
    trace, cropped = restorer.trace(image)
    assert cropped
    assert np.array_equal(np.rint(trace.lq * 255), image[10:42])


def test_networks_without_stages_have_no_trace():
    restorer = Restorer(TinyConvNet())
    assert not restorer.contract.can_trace
    with pytest.raises(ValueError, match='no stages'):
        restorer.trace(image_of((8, 8, 3)))
