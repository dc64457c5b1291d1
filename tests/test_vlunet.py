"""VLU-Net: its trace, precision and vectors; test_baselines.py has what all networks share."""

import pytest
import torch
from released import randomise
from tiny_vlunet import vlunet_kwargs

from unfoldldm_basicsr.archs.vlunet_arch import VLUNet, VLUTrace

TINY = vlunet_kwargs(num_blocks=[1, 1, 2, 1], heads=[1, 2, 2, 4], embed_dim=6)
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
    assert (net.size_multiple, net.tiling_changes_result) == (8, True)
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
