"""``use_checkpoint``: every network with it keeps less for its gradients and has the same ones."""

import weakref

import pytest
import torch
from helpers import tiny_unfoldldm
from released import randomise
from tiny_vlunet import vlunet_kwargs

from unfoldldm_basicsr import archs

RESTORMER = {
    'type': 'Restormer', 'dim': 8, 'num_blocks': [1, 2, 1, 1], 'num_refinement_blocks': 2,
    'heads': [1, 2, 2, 4],
}  # fmt: skip
DEEP = {'dim': 16, 'num_blocks': [4, 4, 4]}  # else what lies between the blocks counts
NETWORKS = {
    'Restormer': RESTORMER,
    'UnfoldLDM phase 1': tiny_unfoldldm(1, null_prior_prob=0.5, **DEEP),
    'UnfoldLDM phase 2': tiny_unfoldldm(2, **DEEP),
    'UnfoldLDM conv': tiny_unfoldldm(2, mgda_op='conv', share_stages=False, **DEEP),
    'VLUNet': {'type': 'VLUNet', **vlunet_kwargs()},
}


def build(options: dict, **changes):
    arguments = {**options, **changes}
    torch.manual_seed(0)
    return randomise(getattr(archs, arguments.pop('type'))(**arguments)).train()


def call(net, size: int = 16, **settings):
    """A training call on the same images and random numbers each time."""
    torch.manual_seed(1)
    lq, gt = torch.rand(2, 2, 3, size, size)
    if hasattr(net, 'embed_dim'):
        settings['degradation'] = torch.randn(2, net.embed_dim)
    if hasattr(net, 'null_prior'):
        return net(lq, gt, return_trace=True, **settings)
    return net(lq, **settings)


def loss_of(result) -> torch.Tensor:
    """Of the output and, where there are some, of the generated priors."""
    if isinstance(result, torch.Tensor):
        return result.square().mean()
    generated = [s.generated.square().mean() for s in result.stages if s.generated is not None]
    output = [result.output.square().mean()] if result.output.requires_grad else []
    return sum(output + generated)


class Kept:
    """A tensor that the graph keeps: it lives as long as the graph holds it."""

    def __init__(self, tensor):
        self.tensor = tensor


def kept_and_gradients(net, **settings) -> tuple[int, dict]:
    """Bytes of what the forward pass keeps, once for each memory; the loss, and the gradients."""
    alive = weakref.WeakSet()

    def keep(tensor):
        kept = Kept(tensor)
        alive.add(kept)
        return kept

    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
        loss = loss_of(call(net, **settings))
    storages = [kept.tensor.untyped_storage() for kept in alive]
    sizes = {s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in weights}
    loss.backward()
    found = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    return sum(sizes.values()), {'loss': loss.detach(), **found}


@pytest.mark.parametrize('name', NETWORKS)
def test_a_recomputing_network_keeps_less_and_has_the_same_gradients(name):
    options = NETWORKS[name]
    plain, wanted = kept_and_gradients(build(options), size=32)
    kept, gradients = kept_and_gradients(build(options, use_checkpoint=True), size=32)
    assert kept < 0.2 * plain
    assert gradients.keys() == wanted.keys() > {'loss'}
    assert torch.equal(gradients['loss'], wanted['loss']), 'the same output'
    for key, gradient in wanted.items():
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-4, atol=1e-6)
