"""Weight files: read without running code, refused when damaged; those of the package restore."""

import hashlib
import pickle
from contextlib import nullcontext

import numpy as np
import pytest
import safetensors.torch
import torch
from basicsr.archs import build_network
from basicsr.models.base_model import BaseModel
from helpers import Attack, network_of, write_options
from skimage import data
from skimage.metrics import peak_signal_noise_ratio as psnr
from tiny_network import TinyConvNet, save_weights
from tiny_vlunet import build_vlunet, embedding_of, save_vlunet

from unfoldldm_basicsr import __version__
from unfoldldm_basicsr.archs.nafnet_arch import NAFNet
from unfoldldm_basicsr.common.cost import network_cost
from unfoldldm_basicsr.compat import stock
from unfoldldm_basicsr.data.degradations import DegradationChain
from unfoldldm_basicsr.restoring import Restorer
from unfoldldm_basicsr.weights.checkpoint import (
    CheckpointError,
    file_bytes,
    network_meta,
    read_checkpoint,
)
from unfoldldm_basicsr.weights.conditioning import read_record
from unfoldldm_basicsr.weights.convert import export_checkpoint
from unfoldldm_basicsr.weights.loading import load_weights
from unfoldldm_basicsr.weights.packaged import FOLDER, packaged_file, packaged_weights, summary


def save_tiny(path, **extra):
    """A file of this package with different ``params`` and ``params_ema``; returns the EMA."""
    average = TinyConvNet(dim=5)
    save_weights(path, TinyConvNet(dim=5), average=average, dim=5)
    torch.save({**torch.load(path, weights_only=True), **extra}, path)
    return average.eval()


def test_metadata_that_weights_only_could_not_load_is_refused_by_name():
    with pytest.raises(ValueError, match=r'network_g\.layers: a Linear cannot be stored'):
        network_meta({'type': 'X', 'layers': [1, torch.nn.Linear(1, 1)]})
    meta = network_meta({'type': 'X', 'a': np.float32(0.5), 'b': (1, 2), 'c': np.int64(3)})
    assert meta == {'type': 'X', 'kwargs': {'a': 0.5, 'b': [1, 2], 'c': 3}, 'version': __version__}
    assert [type(value) for value in meta['kwargs'].values()] == [float, list, int]


@pytest.mark.parametrize('lost', [None, 'weight', 'running_mean', 'mask'])
def test_a_test_needs_all_that_was_learned_and_no_mask_of_another_size(tmp_path, lost):
    """SwinIR and its kin keep masks of the size of their training images beside their weights."""
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(4))
    state = {key: value + 1 for key, value in net.state_dict().items()}
    state['0.mask'] = torch.ones(2)
    torch.save({'params': {k: v for k, v in state.items() if k != f'0.{lost}'}}, tmp_path / 'x.pth')
    net[0].register_buffer('mask', torch.ones(3))
    with pytest.raises(CheckpointError, match='every weight') if lost else nullcontext():
        load_weights(net, tmp_path / 'x.pth', strict=False, allow_missing=False)
        assert net[0].mask.tolist() == [1, 1, 1]
        assert net[0].running_mean.tolist() == [1, 1, 1, 1]
    with pytest.raises(CheckpointError, match='does not fit'):
        load_weights(net, tmp_path / 'x.pth', allow_missing=False)


@pytest.mark.parametrize(('version', 'shared'), [('0.1.0', True), (__version__, None)])
def test_a_file_means_the_defaults_of_its_version(tmp_path, version, shared):
    arch = {'type': 'UnfoldLDM', 'kwargs': {'dim': 8}, 'version': version}
    save_tiny(tmp_path / 'x.pth', arch=arch)
    assert read_checkpoint(tmp_path / 'x.pth').arch['kwargs'].get('share_stages') is shared
    save_tiny(tmp_path / 'x.pth', arch={**arch, 'kwargs': {'share_stages': False}})
    assert read_checkpoint(tmp_path / 'x.pth').arch['kwargs'] == {'share_stages': False}


def test_files_with_metadata_load_with_basicsrs_own_loader(tmp_path):
    ema = save_tiny(tmp_path / 'x.pth')
    model = BaseModel({'num_gpu': 0, 'is_train': False, 'dist': False})
    net = TinyConvNet(dim=5)
    stock(BaseModel.load_network)(model, net, str(tmp_path / 'x.pth'), True, 'params_ema')
    assert all(torch.equal(v, ema.state_dict()[k]) for k, v in net.state_dict().items())


WRAPPED = {
    'compiled, then distributed': lambda k: f'module._orig_mod.{k}',
    'a compiled part': lambda k: k.replace('head.', 'head._orig_mod.'),
    'averaged, distributed and compiled': lambda k: f'module.module._orig_mod.{k}',
}


@pytest.mark.parametrize('rename', WRAPPED.values(), ids=WRAPPED.keys())
@pytest.mark.parametrize('key', ['g_ema', None])
def test_what_wrappers_add_to_the_names_is_taken_off(tmp_path, rename, key):
    state = TinyConvNet(dim=5).state_dict()
    given = {rename(name): value for name, value in state.items()}
    given['n_averaged'] = torch.tensor(3)
    torch.save(given if key is None else {key: given, 'epoch': 3}, tmp_path / 'x.pth')
    found = read_checkpoint(tmp_path / 'x.pth')
    assert found.param_key == key
    assert found.state_dict.keys() == state.keys()


@pytest.mark.parametrize(('end', 'half'), [('.safetensors', 0), ('.safetensors', 1), ('.pth', 0)])
def test_exported_files_hold_the_same_network_in_either_format(tmp_path, end, half):
    ema, exported = save_tiny(tmp_path / 'x.pth'), tmp_path / f'y{end}'
    done = export_checkpoint(tmp_path / 'x.pth', exported, half=half)
    assert (done.param_key, done.dropped) == ('params_ema', ())
    if end == '.safetensors':
        stored = safetensors.torch.load_file(exported)
        assert stored.keys() == ema.state_dict().keys()
        dtype = torch.float16 if half else torch.float32
        assert {value.dtype for value in stored.values()} == {dtype}
    image, net = torch.rand(1, 3, 9, 7), TinyConvNet(dim=5)
    load_weights(net, exported)
    for found in (net, network_of(exported)):
        gap = (found(image) - ema(image)).abs().max()
        assert gap < 2e-3 if half else gap == 0
    assert read_checkpoint(exported).arch == read_checkpoint(tmp_path / 'x.pth').arch


def test_safetensors_keep_the_degradation_vectors_and_foreign_ones_are_read(tmp_path):
    net, embedding = build_vlunet(), embedding_of('label')
    path = save_vlunet(tmp_path / 'a.pth', net, 'label', embedding)
    export_checkpoint(path, tmp_path / 'b.safetensors')
    records = [read_record(read_checkpoint(tmp_path / name)) for name in ('a.pth', 'b.safetensors')]
    assert records[0].classes == records[1].classes
    assert records[0].arch == records[1].arch
    assert torch.equal(*(record.state_dict['table.weight'] for record in records))
    export_checkpoint(path, tmp_path / 'd.pth', half=True)
    halved = torch.load(tmp_path / 'd.pth')['degradation']['embedding']['params']
    assert halved['table.weight'].dtype == torch.float16
    views = {'a': torch.zeros(9000)[:2]}
    views['tied'] = views['a']
    assert len(file_bytes(tmp_path / 'e.safetensors', {'params': views, 'arch': {}})) < 9000
    bare = NAFNet(width=4, enc_blk_nums=[1], dec_blk_nums=[1], middle_blk_num=1)
    safetensors.torch.save_file(bare.state_dict(), tmp_path / 'c.safetensors')
    assert isinstance(network_of(tmp_path / 'c.safetensors'), NAFNet)
    data = (tmp_path / 'c.safetensors').read_bytes()
    (tmp_path / 'c.safetensors').write_bytes(data[:-40])
    with pytest.raises(CheckpointError, match='truncated or damaged'):
        read_checkpoint(tmp_path / 'c.safetensors')


def test_unrecognised_weights_ask_for_an_option_file_and_take_it(tmp_path):
    net = TinyConvNet(dim=6)
    torch.save({'params': net.state_dict()}, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=r'unfoldldm export -w WEIGHTS --opt FILE'):
        network_of(tmp_path / 'x.pth')
    opt = write_options(tmp_path / 'a.yml', {'network_g': {'type': 'TinyConvNet', 'dim': 6}})
    assert torch.equal(network_of(tmp_path / 'x.pth', opt_file=opt).head.weight, net.head.weight)


@pytest.mark.parametrize(('text', 'message'), [
    ('network_g: !!python/object/apply:os.mkdir [victim]', 'line 1'),
    ('scale: 1', "no section 'network_g'"),
])  # fmt: skip
def test_unusable_option_files_are_named_and_run_no_code(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / 'x.pth')
    (tmp_path / 'a.yml').write_text(text)
    with pytest.raises(ValueError, match=f'a.yml: .*{message}'):
        network_of(tmp_path / 'x.pth', opt_file=tmp_path / 'a.yml')
    assert not (tmp_path / 'victim').exists()
    with pytest.raises(ValueError, match=r'b\.yml: cannot be read: No such file'):
        network_of(tmp_path / 'x.pth', opt_file=tmp_path / 'b.yml')


@pytest.mark.parametrize('zipped', [True, False])
def test_a_malicious_pickle_is_refused_and_never_runs(tmp_path, zipped):
    path, victim = tmp_path / 'x.pth', tmp_path / 'victim'
    if zipped:
        save_tiny(path, surprise=Attack(victim))
    else:
        path.write_bytes(pickle.dumps(Attack(victim), protocol=2))
    with pytest.raises(CheckpointError, match='refused, it holds more than weights') as caught:
        read_checkpoint(path)
    assert not victim.exists()
    assert 'mkdir' in str(caught.value)
    assert 'weights_only=False' not in str(caught.value), 'never advise the dangerous way'


@pytest.mark.parametrize('keep', [0.0, 0.5, 0.999])
@pytest.mark.parametrize('zipped', [True, False])
def test_truncated_files_are_refused(tmp_path, keep, zipped):
    path, content = tmp_path / 'x.pth', {'params': TinyConvNet(dim=64).state_dict()}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    for damaged in (data[: int(len(data) * keep)], *([flipped] if zipped else [])):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r'x\.pth: truncated'):
            read_checkpoint(path)


WEIGHTS = {'a': torch.zeros(1)}


def written_by(name: str, **kwargs) -> dict:
    return {'params': WEIGHTS, 'arch': network_meta({'type': name, **kwargs})}


@pytest.mark.parametrize(('content', 'message'), [
    (b'\n<!DOCTYPE html><html>Sign in</html>', 'is a web page, not weights'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a', r'Git LFS.*git lfs pull'),
    (b'zzz no weights at all', r'no PyTorch file \(Unsupported operand \d+\)'),
    ([1, 2], 'list instead of a dictionary'),
    ({'epoch': 3, 'optimizers': [], 'iter': 4}, 'training state of BasicSR'),
    ({'epoch': 3}, 'no weights under params_ema, g_ema.*holds: epoch'),
    ({'params': {'a': torch.tensor([1.0, float('nan')])}}, '1 tensors hold NaN.*first a'),
    ({'params': {'a': torch.tensor([1.0, float('inf')])}}, '1 tensors hold NaN.*first a'),
    ({'params': WEIGHTS, 'arch': {'type': 3}}, "metadata under 'arch'"),
    (written_by('TinyConvNett'), "not registered.*Did you mean 'TinyConvNet'"),
    (written_by('TinyConvNet', dims=5), "not take these arguments.*Did you mean 'dim'"),
])  # fmt: skip
def test_what_downloads_leave_behind_and_files_without_usable_weights_say_what_they_hold(
    tmp_path, content, message
):
    path = tmp_path / 'x.pth'
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        network_of(path)


def test_missing_files_and_keys_suggest_the_nearest_name(tmp_path):
    save_tiny(tmp_path / 'net_g_5000.pth')
    with pytest.raises(FileNotFoundError, match=r"Did you mean 'net_g_5000\.pth'"):
        read_checkpoint(tmp_path / 'net_g_500.pth')
    with pytest.raises(CheckpointError, match="Did you mean 'params_ema'"):
        read_checkpoint(tmp_path / 'net_g_5000.pth', param_key='param_ema')
    torch.save(TinyConvNet().state_dict(), tmp_path / 'bare.pth')
    with pytest.raises(CheckpointError, match='holds the weights as they are'):
        read_checkpoint(tmp_path / 'bare.pth', 'params_ema')


BLURRED = [{'type': 'gaussian_blur', 'sigma': 0.8}, {'type': 'gaussian_noise', 'sigma': 25}]
GAINS = {  # degradation of a photo that no training saw, and the decibels gained
    'denoise': ([{'type': 'gaussian_noise', 'sigma': 25}], 9.84),
    'denoise_deblur': (BLURRED, 8.51),
    'denoise_deblur_nafnet': (BLURRED, 8.46),
    'denoise_deblur_jpeg': (
        [BLURRED[0], {'type': 'gaussian_noise', 'sigma': 15}, {'type': 'jpeg', 'quality': 60}],
        1.69,
    ),
    'lowlight': ([{'type': 'low_light', 'gamma': 2.2, 'gain': 0.65}], 11.59),
    'all_in_one': ([{'type': 'rain', 'density': 0.02, 'intensity': 0.8}], 10.13),
}  # fmt: skip


def test_every_weight_file_has_a_test_a_card_and_at_most_5_mb():
    assert set(packaged_weights()) == set(GAINS)
    assert {p.stem for p in FOLDER.glob('*.safetensors')} == set(GAINS)
    sums = (FOLDER / 'SHA256SUMS').read_text().splitlines()
    for line, path in zip(sums, packaged_weights().values(), strict=True):
        assert path.stat().st_size <= 5e6
        assert hashlib.sha256(path.read_bytes()).hexdigest() == line.split()[0]
        assert len(summary(path)) > 20
        assert 'What it cannot do' in path.with_suffix('.md').read_text()


@pytest.mark.parametrize(('name', 'grey'), [*((n, False) for n in GAINS), ('denoise', True)])
def test_packaged_weights_restore_a_photo_that_they_have_not_seen(name, grey):
    steps, gain = GAINS[name]
    truth = data.chelsea()[60:188, 120:248, 1:2] if grey else data.chelsea()[60:188, 120:248]
    chain = DegradationChain(degradations=steps, lq_output='uint8')
    degraded = chain((truth / 255).astype(np.float32), np.random.default_rng(0))
    degraded, truth = (degraded * 255).round().astype(np.uint8).squeeze(), truth.squeeze()
    told = {'degradation': 'rain'} if name == 'all_in_one' else {}
    restored = Restorer(packaged_file(name), **told).restore(degraded)
    gain = 8.24 if grey else gain
    assert psnr(truth, restored) - psnr(truth, degraded) == pytest.approx(gain, abs=0.02)


def test_weights_name_networks_of_basicsr_as_option_files_do(tmp_path):
    network = {'type': 'SRVGGNetCompact', 'num_feat': 4, 'num_conv': 1, 'upscale': 1}
    net = build_network(network)
    torch.save({'params': net.state_dict(), 'arch': network_meta(network)}, tmp_path / 'x.pth')
    assert type(network_of(tmp_path / 'x.pth')) is type(net)
    assert network_cost(network, 32).params == sum(p.numel() for p in net.parameters())
