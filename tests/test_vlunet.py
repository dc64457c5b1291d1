"""VLU-Net: its precision and vectors; test_baselines.py has what all networks share."""

import pytest
import torch
from tiny_vlunet import vlunet_kwargs

from unfoldldm_basicsr.archs.vlunet_arch import VLUNet

TINY = vlunet_kwargs(num_blocks=[1, 1, 2, 1], heads=[1, 2, 2, 4], embed_dim=6)


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


def test_vectors_of_another_shape_are_refused():
    net, (lq, degradation) = VLUNet(**TINY), inputs()
    message = r'length 6 per image: expected shape \(2, 6\), got \(2, 5\)'
    with pytest.raises(ValueError, match=message):
        net(lq, degradation[:, :5])
    with pytest.raises(ValueError, match=r'got \(1, 6\)'):
        net(lq, degradation[:1])
