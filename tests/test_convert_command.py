"""``unfoldldm convert``: released VLU-Net files in, the same networks out, others refused."""

import re

import pytest
import torch
from helpers import Attack, network_of
from tiny_network import TinyConvNet
from tiny_vlunet import CLASSES, CLIP, build_vlunet, embedding_of, lightning_content, vlunet_kwargs

from unfoldldm_basicsr.archs.degradation_embedding import CLASS_TEXTS
from unfoldldm_basicsr.restoring import CheckpointError, Restorer
from unfoldldm_basicsr.weights import convert
from unfoldldm_basicsr.weights.checkpoint import read_checkpoint
from unfoldldm_basicsr.weights.conditioning import build_conditioning, read_record
from unfoldldm_basicsr.weights.convert import convert_checkpoint, export_checkpoint


@pytest.fixture(autouse=True)
def _small_clip(monkeypatch):
    monkeypatch.setitem(convert.CLIP, 'clip_config', CLIP)


@pytest.fixture(scope='module')
def clip():
    torch.manual_seed(0)
    return embedding_of('clip')


def write(path, content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize('changes', [
    {'num_blocks': [2, 1, 3, 1], 'num_refinement_blocks': 2, 'heads': [2, 2, 4, 8], 'dim': 12},
    {'bias': True, 'LayerNorm_type': 'BiasFree', 'ffn_expansion_factor': 2.0},
])  # fmt: skip
def test_a_lightning_checkpoint_becomes_the_same_network_with_all_its_arguments(
    tmp_path, clip, output_of, changes
):
    net = build_vlunet(**changes)
    path = write(tmp_path / 'epoch=3.ckpt', lightning_content(net, clip))
    said = output_of('convert', path, '--classes', 'noise, rain,haze')
    assert 'Degradation vectors: CLIP and its adapters' in said
    assert 'Degradations: noise, rain, haze' in said
    checkpoint = read_checkpoint(tmp_path / 'epoch=3_basicsr.pth')
    defaults = {'ffn_expansion_factor': 2.66, 'bias': False, 'LayerNorm_type': 'WithBias',
                'inp_channels': 3, 'out_channels': 3}  # fmt: skip
    assert checkpoint.arch['kwargs'] == {**defaults, **vlunet_kwargs(**changes)}
    assert set(checkpoint.state_dict) == set(net.state_dict())
    found = network_of(checkpoint.path)
    x = torch.rand(2, 3, 21, 30)
    vector = clip(x)
    conditioning = build_conditioning(checkpoint)
    assert conditioning.classes == tuple(CLASSES)
    assert torch.equal(conditioning(x), vector)
    with torch.no_grad():
        assert torch.equal(found(x, conditioning(x)), net(x, vector))
        assert torch.equal(Restorer(checkpoint.path).restore_tensor(x), net(x, vector))


def test_clip_is_kept_once_and_compares_texts_in_the_order_of_the_classes(tmp_path, clip):
    path = write(tmp_path / 'a.ckpt', lightning_content(build_vlunet(de_dim=7), clip))
    record = read_record(read_checkpoint(convert_checkpoint(path).path))
    assert set(record.state_dict) == set(clip.state_dict())
    assert record.arch['kwargs']['pretrained'] is None, 'nothing to download'
    order = ('noise15', 'noise25', 'noise50', 'rain', 'haze', 'blur', 'lowlight')
    assert record.classes == order
    texts = record.arch['kwargs']['class_texts']
    assert texts.index('image with rain') == order.index('rain')
    assert texts.index('image with haze') == order.index('haze')


def test_the_number_of_prompts_need_not_be_that_of_the_classes(tmp_path, clip):
    path = write(tmp_path / 'a.ckpt', lightning_content(build_vlunet(de_dim=5), clip))
    assert len(convert_checkpoint(path).classes) == 7
    with pytest.raises(CheckpointError, match='a, b, a has an empty name or one twice'):
        convert_checkpoint(path, tmp_path / 'b.pth', classes=['a', 'b', 'a'])
    assert not (tmp_path / 'b.pth').exists()


def test_classes_without_degradation_vectors_are_refused(tmp_path):
    path = write(tmp_path / 'a.ckpt', lightning_content(build_vlunet(), None))
    with pytest.raises(CheckpointError, match=r'holds no model_degradation\.\*'):
        convert_checkpoint(path, classes=CLASSES)


def test_tuned_adapters_become_a_file_that_loads_strictly_into_clip(tmp_path):
    tuned, fresh = (embedding_of('clip').eval() for _ in range(2))
    fresh.clip_model.load_state_dict(tuned.clip_model.state_dict())
    params = {  # as saved by the released notebook: parameters, not plain tensors
        key: torch.nn.Parameter(value)
        for key, value in tuned.state_dict().items()
        if key.startswith('ad_')
    }
    content = {'epoch': 99, 'learnable_params': params, 'optimizer': {'state': {}}}
    done = convert_checkpoint(write(tmp_path / 'clip_tuned.pth', content))
    checkpoint = read_checkpoint(done.path)
    fresh.load_state_dict(checkpoint.state_dict, strict=True)
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(fresh(x), tuned(x))
    assert not any(value.requires_grad for value in checkpoint.state_dict.values())
    kwargs = checkpoint.arch['kwargs']
    assert checkpoint.arch['type'] == 'CLIPDegradationEmbedding'
    assert (kwargs['model_name'], kwargs['pretrained']) == ('ViT-B-32', 'laion2b_s34b_b79k')
    assert kwargs['class_texts'] == list(CLASS_TEXTS.values())


def test_what_runs_code_is_read_on_request_only(tmp_path, output_of):
    made = tmp_path / 'made'
    content = {**lightning_content(build_vlunet(), None), 'hyper_parameters': Attack(made)}
    path = write(tmp_path / 'a.ckpt', content)
    said = output_of('convert', path, status=2)
    assert re.search(r'refused, it holds more than weights \(\w+\.mkdir\).*--unsafe-pickle', said)
    assert [p.name for p in tmp_path.iterdir()] == ['a.ckpt'], 'nothing ran, nothing was written'
    done = convert_checkpoint(path, unsafe_pickle=True)
    assert made.exists()
    assert set(torch.load(done.path, weights_only=True)) == {'params', 'arch'}


def broken(change: dict) -> dict:
    content = lightning_content(build_vlunet(), None)
    content['state_dict'] |= change
    return content


BACKBONE = 'model_degradation.ad_imageEncoder.clip_model.'
KNOWN = 'Known are: Lightning checkpoints of VLU-Net.*clip_tuned'
WRONG = {
    'a list': ([1, 2], f'it holds list.*{KNOWN}'),
    'another Lightning module': (
        {'state_dict': {'net.conv.weight': torch.zeros(1)}}, 'These are not weights of VLUNet'
    ),
    'another shape': (
        broken({'net.output.weight': torch.zeros(3, 20, 5, 5)}), '1 of another shape .first output'
    ),
    'a network with parts of its own': (broken({'ema.x': torch.zeros(1)}), r'also holds ema\.x'),
    'a diverged training': (
        broken({'net.output.weight': torch.full((3, 20, 3, 3), torch.nan)}), '1 tensors hold NaN'
    ),
    'adapters of another CLIP': (
        {'learnable_params': {'ad_imageEncoder.adapter.0.weight': torch.zeros(9, 9)}},
        r'its CLIP is not ViT-B-32: .*adapter\.0\.weight: \(9, 9\) in the file',
    ),
    'another CLIP': (
        broken({f'{BACKBONE}visual.proj': torch.zeros(1)}), 'its CLIP is not ViT-B-32'
    ),
    'unknown weights': ({'params': {'x': torch.zeros(1)}}, KNOWN),
    'a file that needs no conversion': (
        {'params': build_vlunet().state_dict()}, f'holds params.*{KNOWN}.*Others load as they are'
    ),
}  # fmt: skip


@pytest.mark.parametrize(('content', 'message'), WRONG.values(), ids=WRONG.keys())
def test_other_files_are_refused_with_what_is_accepted(tmp_path, content, message):
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(write(tmp_path / 'a.pth', content))
    assert not (tmp_path / 'a_basicsr.pth').exists()


@pytest.mark.parametrize('function', [convert_checkpoint, export_checkpoint])
def test_existing_files_are_replaced_only_when_asked(tmp_path, function):
    path, target = write(tmp_path / 'a.pth', {'params': TinyConvNet().state_dict()}), tmp_path / 'b'
    for name in ('b', 'b.pth'):
        (tmp_path / name).write_bytes(b'mine')
    with pytest.raises(FileExistsError, match='--overwrite'):
        function(path, target.with_suffix('.pth'))
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match='is the file that is read'):
            function(path, path, overwrite=overwrite)
    with pytest.raises(CheckpointError, match=r'must end in \.pth'):
        function(path, target, overwrite=True)
    assert target.read_bytes() == target.with_suffix('.pth').read_bytes() == b'mine'


def test_released_files_given_to_restore_are_sent_here(tmp_path):
    lightning = write(tmp_path / 'a.ckpt', lightning_content(build_vlunet(), None))
    adapters = write(tmp_path / 'b.pth', {'epoch': 1, 'learnable_params': {'x': torch.zeros(1)}})
    for path in (lightning, adapters):
        with pytest.raises(CheckpointError, match=f'unfoldldm convert {path}'):
            Restorer(path)
