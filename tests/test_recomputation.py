"""``use_checkpoint``: every network with it keeps less for its gradients and has the same ones."""

import weakref

import pytest
import torch
from helpers import tiny_unfoldldm
from released import randomise
from tiny_network import RESTORMER
from tiny_vlunet import vlunet_kwargs

from unfoldldm_basicsr import archs

DEEP = {'dim': 16, 'num_blocks': [4, 4, 4]}  # else what lies between the blocks counts
NETWORKS = {
    'Restormer': {'type': 'Restormer', **RESTORMER},
    'UnfoldLDM phase 1': tiny_unfoldldm(1, null_prior_prob=0.5, **DEEP),
    'UnfoldLDM phase 2': tiny_unfoldldm(2, **DEEP),
    'UnfoldLDM conv': tiny_unfoldldm(2, mgda_op='conv', share_stages=False, **DEEP),
    'VLUNet': {'type': 'VLUNet', **vlunet_kwargs()},
}


def build(options: dict, **changes):
    arguments = {**options, **changes}
    torch.manual_seed(0)
    return randomise(getattr(archs, arguments.pop('type'))(**arguments)).train()


def loss_of(net) -> torch.Tensor:
    """Of the output and of generated priors, for the same images and random numbers each time."""
    torch.manual_seed(1)
    lq, gt = torch.rand(2, 2, 3, 32, 32)
    if isinstance(net, archs.UnfoldLDM):
        trace = net(lq, gt, return_trace=True)
        results = [trace.output, *(s.generated for s in trace.stages if s.generated is not None)]
    elif isinstance(net, archs.VLUNet):
        results = [net(lq, torch.randn(2, net.embed_dim))]
    else:
        results = [net(lq)]
    return sum(result.square().mean() for result in results)


class Kept:
    """A tensor that the graph keeps: it lives as long as the graph holds it."""

    def __init__(self, tensor):
        self.tensor = tensor


def kept_and_gradients(net) -> tuple[int, dict]:
    """Bytes of what the forward pass keeps, once for each memory; the loss, and the gradients."""
    alive = weakref.WeakSet()

    def keep(tensor):
        kept = Kept(tensor)
        alive.add(kept)
        return kept

    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
        loss = loss_of(net)
    storages = [kept.tensor.untyped_storage() for kept in alive]
    sizes = {s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in weights}
    loss.backward()
    found = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    return sum(sizes.values()), {'loss': loss.detach(), **found}


@pytest.mark.parametrize('name', NETWORKS)
def test_a_recomputing_network_keeps_less_and_has_the_same_gradients(name):
    options = NETWORKS[name]
    plain, wanted = kept_and_gradients(build(options))
    kept, gradients = kept_and_gradients(build(options, use_checkpoint=True))
    assert kept < 0.2 * plain
    assert gradients.keys() == wanted.keys() > {'loss'}
    assert torch.equal(gradients['loss'], wanted['loss']), 'the same output'
    for key, gradient in wanted.items():
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-4, atol=1e-6)
