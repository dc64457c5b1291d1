"""VLU-Net: equal to the released network; its prompts, trace, gradients and sizes."""

from pathlib import Path

import pytest
import torch
from released import build_released, randomise, released_keys, released_pair, without_gradient
from torch.nn import functional as F

from unfoldldm_basicsr.archs.vlunet_arch import VLUNet, VLUTrace
from unfoldldm_basicsr.weights.checkpoint import Checkpoint, CheckpointError
from unfoldldm_basicsr.weights.networks import infer_network

TINY = {
    'de_dim': 3,
    'dim': 10,
    'num_blocks': [1, 1, 2, 1],
    'num_refinement_blocks': 1,
    'heads': [1, 2, 2, 4],
    'embed_dim': 6,
}
STAGES = {
    'encoder_level1': 1,
    'encoder_level2': 2,
    'encoder_level3': 4,
    'latent': 8,
    'decoder_level3': 4,
    'decoder_level2': 2,
    'decoder_level1': 1,
    'refinement': 1,
}


def tiny(**changes) -> VLUNet:
    return randomise(VLUNet(**{**TINY, **changes}))


def inputs(batch: int = 2, height: int = 16, width: int = 24):
    return torch.rand(batch, 3, height, width), torch.randn(batch, 6)


@pytest.fixture(scope='module')
def pair():
    return released_pair('vlunet')


def test_output_equals_the_released_network_in_either_memory_format(pair):
    (lq, degradation), net = pair['inputs'], build_released(pair)
    for layout in (torch.contiguous_format, torch.channels_last):
        net.to(memory_format=layout)
        with torch.no_grad():
            out = net(lq.contiguous(memory_format=layout), degradation)
        torch.testing.assert_close(out, pair['output'], atol=1e-5, rtol=0)


def test_keys_shapes_and_parameter_count_equal_the_released_ones():
    released = released_keys('VLUNet')
    with torch.device('meta'):
        net = VLUNet(**released['kwargs'])
    shapes = {key: list(value.shape) for key, value in net.state_dict().items()}
    assert shapes == released['shapes']
    assert len(shapes) == 615
    assert sum(p.numel() for p in net.parameters()) == released['params'] == 35_353_028


def test_every_parameter_but_the_frozen_one_receives_a_gradient():
    net = tiny(bias=True)
    assert without_gradient(net, *inputs()) == ['down1_2_i.body.0.weight']
    frozen = [name for name, p in net.named_parameters() if not p.requires_grad]
    assert frozen == ['down1_2_i.body.0.weight']


@pytest.mark.parametrize('size', [(1, 1), (17, 33)])
def test_any_size_goes_in_and_comes_out(size):
    with torch.no_grad():
        out = tiny()(*inputs(1, *size))
    assert out.shape == (1, 3, *size)
    assert out.isfinite().all()


def test_sides_are_reflected_up_to_the_multiple():
    net, (lq, degradation) = tiny(), inputs(1, 15, 24)
    with torch.no_grad():
        padded = net(F.pad(lq, (0, 0, 0, 1), 'reflect'), degradation)
        torch.testing.assert_close(net(lq, degradation), padded[..., :15, :])
    assert net.size_multiple == 8
    assert net.tiling_changes_result


def test_result_does_not_depend_on_the_batch():
    net, (lq, degradation) = tiny().double(), (t.double() for t in inputs(3))
    with torch.no_grad():
        single = [net(a, b) for a, b in zip(lq.split(1), degradation.split(1), strict=True)]
        torch.testing.assert_close(net(lq, degradation), torch.cat(single), atol=1e-9, rtol=1e-9)


def test_autocast_stays_near_the_fp32_result():
    net, (lq, degradation) = VLUNet(**TINY).eval(), inputs()
    assert net.latent.gradient_descent.r == 1, 'step lengths start there'
    with torch.no_grad():
        expected = net(lq, degradation)
        with torch.autocast('cpu', torch.bfloat16):
            out = net(lq, degradation)
    torch.testing.assert_close(out.float(), expected, atol=0.1, rtol=0.05)


def test_trace_tells_what_each_stage_did():
    net, (lq, degradation) = tiny(), inputs(2, 13, 24)
    with torch.no_grad():
        trace = net(lq, degradation, return_trace=True)
        assert torch.equal(trace.output, net(lq, degradation))
    assert isinstance(trace, VLUTrace)
    assert [stage.name for stage in trace.stages] == list(STAGES)
    for stage in trace.stages:
        scale = STAGES[stage.name]
        assert stage.weights.shape == (2, 3)
        torch.testing.assert_close(stage.weights.sum(1), torch.ones(2))
        assert stage.residual.shape[-2:] == (-(-13 // scale), 24 // scale)
        assert stage.step.shape == stage.residual.shape
        assert stage.step.abs().max() > 0


def test_vectors_of_another_shape_are_refused():
    lq, degradation = inputs()
    message = r'length 6 per image: expected shape \(2, 6\), got \(2, 5\)'
    with pytest.raises(ValueError, match=message):
        tiny()(lq, degradation[:, :5])
    with pytest.raises(ValueError, match=r'got \(1, 6\)'):
        tiny()(lq, degradation[:1])


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'dim': 8}, 'dim must be .* 10'),
        ({'dim': 11}, 'dim must be a multiple of 2'),
        ({'heads': [1, 2]}, 'heads'),
        ({'out_channels': 1}, r'inp_channels \(3\) must equal out_channels \(1\)'),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        VLUNet(**{**TINY, **changes})


def test_arguments_are_read_back_from_the_weights(pair):
    kwargs = VLUNet.infer_kwargs(pair['params'])
    assert {key: kwargs[key] for key in pair['kwargs']} == pair['kwargs']
    assert kwargs['ffn_expansion_factor'] == 2.66
    state = tiny(bias=True, LayerNorm_type='BiasFree').state_dict()
    kwargs = VLUNet.infer_kwargs(state)
    assert {key: kwargs[key] for key in TINY} == TINY
    VLUNet(**kwargs).load_state_dict(state, strict=True)


def test_foreign_weights_are_not_recognised(pair):
    with pytest.raises(ValueError, match=r"not weights of VLUNet: 'patch_embed.proj.weight' is"):
        VLUNet.infer_kwargs({'params': torch.zeros(1)})
    state = {**pair['params'], 'output.weight': torch.zeros(3, 7, 3, 3)}
    with pytest.raises(CheckpointError, match=r'nearest is VLUNet.*output.weight: \(3, 7, 3, 3\)'):
        infer_network(Checkpoint(Path('x.pth'), None, state, None))
