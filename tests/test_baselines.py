"""Restormer, NAFNet, VLU-Net: equal to the released networks; what UnfoldLDM shares with them."""

from pathlib import Path

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from released import build_released, randomise, released_keys, released_pair, without_gradient
from tiny_network import RESTORMER, unfoldldm_kwargs
from tiny_vlunet import vlunet_kwargs
from torch.nn import functional as F

from unfoldldm_basicsr.archs.nafnet_arch import LocalAveragePool2d, NAFNet, NAFNetLocal
from unfoldldm_basicsr.archs.restormer_arch import Restormer
from unfoldldm_basicsr.archs.unfoldldm_arch import UnfoldLDM
from unfoldldm_basicsr.archs.vlunet_arch import VLUNet
from unfoldldm_basicsr.weights.checkpoint import Checkpoint, CheckpointError
from unfoldldm_basicsr.weights.networks import infer_network

TINY = vlunet_kwargs(num_blocks=[1, 1, 2, 1], heads=[1, 2, 2, 4], embed_dim=6)
NAFNET = {'width': 4, 'middle_blk_num': 2, 'enc_blk_nums': [1, 0, 2], 'dec_blk_nums': [0, 1, 1]}
BUILDERS = {
    'Restormer': lambda **changes: Restormer(**{**RESTORMER, **changes}),
    'NAFNet': lambda **changes: NAFNet(**{**NAFNET, **changes}),
    'NAFNetLocal': lambda **new: NAFNetLocal(**{**NAFNET, 'padding_mode': 'reflect', **new}),
    'VLUNet': lambda **changes: VLUNet(**{**TINY, **changes}),
    'UnfoldLDM': lambda: UnfoldLDM(**unfoldldm_kwargs()),
}
GIVEN = {'Restormer': RESTORMER, 'VLUNet': TINY}  # of the others: NAFNET
EACH = pytest.mark.parametrize('name', [name for name in BUILDERS if name != 'UnfoldLDM'])


def inputs(name: str, *size: int, batch: int = 1) -> tuple[torch.Tensor, ...]:
    vectors = [torch.randn(batch, TINY['embed_dim'])] if name == 'VLUNet' else []
    return torch.rand(batch, 3, *size), *vectors


@pytest.mark.parametrize('name', ['restormer', 'nafnet', 'vlunet'])
def test_output_equals_the_released_network(name):
    pair = released_pair(name)
    with torch.no_grad():
        out = build_released(pair)(*pair['inputs'])
    torch.testing.assert_close(out, pair['output'], atol=1e-5, rtol=0)


@pytest.mark.parametrize('arch', ['Restormer', 'NAFNet', 'VLUNet'])
def test_keys_shapes_and_parameter_count_equal_the_released_ones(arch):
    released = released_keys(arch)
    with torch.device('meta'):
        net = ARCH_REGISTRY.get(arch)(**released['kwargs'])
    assert {k: list(v.shape) for k, v in net.state_dict().items()} == released['shapes']
    assert sum(p.numel() for p in net.parameters()) == released['params']


def test_restormer_equals_an_independent_implementation():
    """What the released weights do not have: another norm, biases, two views."""
    from spandrel_extra_arches.architectures.Restormer import Restormer as Other

    changes = {'LayerNorm_type': 'BiasFree', 'bias': True, 'dual_pixel_task': True}
    net = randomise(Restormer(**RESTORMER, **changes, inp_channels=6)).double()
    other = Other(**RESTORMER, **changes, inp_channels=6).eval().double()
    other.load_state_dict(net.state_dict(), strict=True)
    x = torch.rand(2, 6, 16, 24).double()
    with torch.no_grad():
        torch.testing.assert_close(net(x), other(x), atol=1e-9, rtol=1e-9)


@EACH
def test_every_parameter_that_is_trained_receives_a_gradient(name):
    net = randomise(BUILDERS[name](**({'bias': True} if name == 'VLUNet' else {})))
    frozen = ['down1_2_i.body.0.weight'] if name == 'VLUNet' else []
    assert without_gradient(net, *inputs(name, 16, 24)) == frozen
    assert [key for key, p in net.named_parameters() if not p.requires_grad] == frozen


@pytest.mark.parametrize('name', BUILDERS)
@pytest.mark.parametrize('size', [(1, 1), (3, 5), (17, 33)])
def test_any_size_goes_in_and_comes_out(name, size):
    with torch.no_grad():
        out = BUILDERS[name]().eval()(*inputs(name, *size))
    assert out.shape == (1, 3, *size)
    assert out.isfinite().all()


@pytest.mark.parametrize('name', BUILDERS)
def test_result_depends_neither_on_the_batch_nor_on_the_memory_format(name):
    net = randomise(BUILDERS[name]()).double().eval()
    x, *vectors = (t.double() for t in inputs(name, 13, 24, batch=3))
    with torch.no_grad():
        expected = torch.cat([net(*(t[i : i + 1] for t in (x, *vectors))) for i in range(3)])
        torch.testing.assert_close(net(x, *vectors), expected, atol=1e-9, rtol=1e-9)
        net.to(memory_format=torch.channels_last)
        out = net(x.contiguous(memory_format=torch.channels_last), *vectors)
    torch.testing.assert_close(out, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', BUILDERS)
def test_weights_of_16_bit_restore_as_those_of_32_do(name, dtype):
    net, given = BUILDERS[name]().eval(), inputs(name, 13, 24)
    with torch.no_grad():
        expected = net(*given)
        out = net.to(dtype)(*(tensor.to(dtype) for tensor in given))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, atol=0.05, rtol=0)


@EACH
def test_padding_comes_from_the_attribute_of_the_network(name):
    """An image that is already a multiple of size_multiple is not padded, any other one is."""
    net = randomise(BUILDERS[name]())
    multiple = net.size_multiple
    x, *vectors = inputs(name, 2 * multiple - 1, 2 * multiple)
    padded = F.pad(x, (0, 0, 0, 1), 'constant' if name == 'NAFNet' else 'reflect')
    with torch.no_grad():
        torch.testing.assert_close(net(x, *vectors), net(padded, *vectors)[..., :-1, :])


@EACH
def test_arguments_are_read_back_from_the_weights(name):
    changes = {'LayerNorm_type': 'BiasFree', 'bias': True} if name in GIVEN else {}
    net = BUILDERS[name](**changes)
    kwargs = type(net).infer_kwargs(net.state_dict())
    type(net)(**kwargs).load_state_dict(net.state_dict(), strict=True)
    given = {**GIVEN.get(name, NAFNET), **changes}
    assert {key: kwargs[key] for key in given} == given


@EACH
def test_foreign_weights_are_not_recognised(name):
    net = BUILDERS[name]()
    with pytest.raises(ValueError, match=rf"not weights of {name}: '.*' is missing"):
        type(net).infer_kwargs({'conv.weight': torch.zeros(1)})
    state = net.state_dict()
    last = 'output.weight' if 'output.weight' in state else 'ending.weight'
    state |= {'extra.weight': torch.zeros(1), last: torch.zeros(3, 7, 3, 3)}
    del state['downs.0.bias' if 'downs.0.bias' in state else 'down1_2.body.0.weight']
    nearest = rf'nearest is {name.removesuffix("Local")}: .*missing.* .first down.*extra\.weight'
    with pytest.raises(CheckpointError, match=rf'{nearest}.*{last}: \(3, 7, 3, 3\)'):
        infer_network(Checkpoint(Path('x.pth'), None, state, None))


@pytest.mark.parametrize(('build', 'message'), [
    (lambda: Restormer(num_blocks=[1, 1]), 'num_blocks'),
    (lambda: Restormer(inp_channels=6), 'dual_pixel_task'),
    (lambda: NAFNet(enc_blk_nums=[1]), 'as many decoder as encoder levels'),
    (lambda: NAFNetLocal(train_size=[256, 256]), 'train_size must have at least 4 items'),
    (lambda: VLUNet(dim=8), 'dim must be .* 10'),
    (lambda: VLUNet(dim=11), 'dim must be a multiple of 2'),
    (lambda: VLUNet(heads=[1, 2]), 'heads'),
    (lambda: VLUNet(out_channels=1), r'inp_channels \(3\) must equal out_channels \(1\)'),
])  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def local_mean(x, window):
    """Means over windows that stay inside the image, borders repeated."""
    window = [min(k, n) for k, n in zip(window, x.shape[-2:], strict=True)]
    out = F.avg_pool2d(x, window, stride=1)
    down, right = (a - b for a, b in zip(x.shape[-2:], out.shape[-2:], strict=True))
    pad = (right // 2, right - right // 2, down // 2, down - down // 2)
    return F.pad(out, pad, 'replicate')


@pytest.mark.parametrize('window', [(3, 5), (4, 4), (30, 6)])
def test_local_pooling_averages_over_a_window(window):
    x = torch.randn(2, 3, 12, 15)
    torch.testing.assert_close(LocalAveragePool2d(window)(x), local_mean(x, window))
    assert torch.equal(LocalAveragePool2d((12, 15))(x), F.adaptive_avg_pool2d(x, 1))


def test_fast_local_pooling_is_near_the_exact_one():
    rows, columns = torch.meshgrid(
        torch.linspace(0, 3, 60), torch.linspace(0, 2, 80), indexing='ij'
    )
    x = (rows.sin() + columns.cos())[None, None]
    exact = LocalAveragePool2d((20, 20))(x)
    fast = LocalAveragePool2d((20, 20), (5, 4, 3, 2, 1))(x)
    assert fast.shape == x.shape
    assert not torch.equal(fast, exact)
    assert (fast - exact).abs().mean() < 0.25 * (x.mean() - exact).abs().mean()


def test_windows_follow_the_training_patches():
    """1.5 patches of 40 x 24, halved per level; sides are padded to a multiple of 8 first."""
    net = NAFNetLocal(**NAFNET, train_size=[1, 3, 40, 20])
    assert net.encoders[0][0].sca[0].window == (60, 36)
    assert net.encoders[2][0].sca[0].window == (15, 9)
    assert net.middle_blks[0].sca[0].window == (7, 4)
    assert net.encoders[0][0].sca[0].strides == (1,)
    fast = NAFNetLocal(**NAFNET, train_size=[1, 3, 40, 20], fast_imp=True)
    assert max(fast.encoders[0][0].sca[0].strides) > 1


def test_local_network_equals_the_global_one_up_to_its_window_and_differs_above():
    nets = [randomise(NAFNet(**NAFNET)), NAFNetLocal(**NAFNET, train_size=[1, 3, 32, 32]).eval()]
    nets[1].load_state_dict(nets[0].state_dict(), strict=True)
    with torch.no_grad():
        small, large = (
            [net(torch.linspace(0, 1, width).expand(1, 3, 40, width)) for net in nets]
            for width in (48, 120)
        )
    torch.testing.assert_close(small[1], small[0])
    assert (large[1] - large[0]).abs().max() > 1e-3


def test_vlunet_stays_near_its_fp32_result_under_autocast():
    net, (lq, vectors) = VLUNet(**TINY).eval(), inputs('VLUNet', 16, 24, batch=2)
    assert net.latent.gradient_descent.r == 1, 'step lengths start there'
    with torch.no_grad():
        expected = net(lq, vectors)
        with torch.autocast('cpu', torch.bfloat16):
            out = net(lq, vectors)
    torch.testing.assert_close(out.float(), expected, atol=0.1, rtol=0.05)


def test_vectors_of_another_shape_are_refused():
    net, (lq, vectors) = VLUNet(**TINY), inputs('VLUNet', 16, 24, batch=2)
    message = r'length 6 per image: expected shape \(2, 6\), got \(2, 5\)'
    with pytest.raises(ValueError, match=message):
        net(lq, vectors[:, :5])
    with pytest.raises(ValueError, match=r'got \(1, 6\)'):
        net(lq, vectors[:1])
