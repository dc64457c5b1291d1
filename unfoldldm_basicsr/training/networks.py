"""A network in a training: on its device, wrapped, averaged, and restoring images."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from unfoldldm_basicsr.common.contract import contract_of, result_of
from unfoldldm_basicsr.options.run import Run
from unfoldldm_basicsr.restoring.tiling import restore_in_tiles
from unfoldldm_basicsr.training.checkpointer import network_state
from unfoldldm_basicsr.training.options import ValOptions


class TrainedNetwork:
    """A network and what belongs to it in a run, in which it is ``trained`` or not.

    ``bare`` is the network without wrappers (what needs no gradient in this part of the training is
    frozen before), ``net`` with DistributedDataParallel and ``torch.compile`` as far as they are
    used, ``average`` the moving average of ``bare``.
    """

    def __init__(self, bare: nn.Module, device: torch.device, run: Run, *, trained: bool):
        self.bare, self.device, self.run, self.trained = bare, device, run, trained
        self.average: nn.Module | None = None
        self.wrap()

    def wrap(self) -> None:
        """Moves the network and wraps it, anew after parameters were frozen or unfrozen."""
        self.net = None  # an old wrapper takes its gradient hooks with it
        net, train = self.bare.to(self.device), self.run.train
        if not self.trained:
            self.net = net
            return
        if train.use_channels_last:
            net = net.to(memory_format=torch.channels_last)
        if self.run.opt['dist']:
            devices = [torch.cuda.current_device()] if self.device.type == 'cuda' else None
            unused = self.run.top.find_unused_parameters
            net = DistributedDataParallel(net, device_ids=devices, find_unused_parameters=unused)
        self.net = (torch.compile(net) if train.use_compile else net).train()

    def start_average(self) -> None:
        """Averages from here on, starting with the weights of now."""
        self.average = deepcopy(self.bare).eval().requires_grad_(False)
        # To walk through both in every step would take a while. Buffers may be replaced in it.
        nets = self.average, self.bare
        self._parameters = [*zip(*(net.parameters() for net in nets), strict=True)]
        self._modules = [
            pair
            for pair in zip(*(net.modules() for net in nets), strict=True)
            if any(True for _ in pair[1].buffers(recurse=False))
        ]

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Moves the average, if there is one, towards the network.

        Parameters that require no gradient are left alone, so a frozen teacher stays bit-identical
        in the average; buffers (running statistics, counters) are copied.
        """
        if self.average is None:
            return
        trained = [pair for pair in self._parameters if pair[1].requires_grad]
        if trained:
            get_ema_multi_avg_fn(decay)(*map(list, zip(*trained, strict=True)), 1)
        for pair in self._modules:
            buffers = (module.buffers(recurse=False) for module in pair)
            for average, value in zip(*buffers, strict=True):
                average.copy_(value)

    def share_statistics(self) -> None:
        """Gives all ranks, which have their own after a step, the running statistics of rank 0.

        Those are saved, and the next step starts from them.
        """
        for net in filter(None, (self.bare, self.average) if self.run.opt['dist'] else ()):
            for buffer in running_statistics(net):
                torch.distributed.broadcast(buffer, 0)

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """The average, or the network without one, in eval mode.

        Without wrappers: one rank alone must not call a wrapped one.
        """
        net = self.bare if self.average is None else self.average
        was_training = net.training
        try:
            yield net.eval()
        finally:
            net.train(was_training)

    def states(self) -> dict[str, dict[str, Tensor]]:
        """State dicts on the CPU as BasicSR's files name them: ``params``, ``params_ema``."""
        states = {'params': network_state(self.bare)}
        if self.average is not None:
            states['params_ema'] = network_state(self.average)
        return states


def running_statistics(net: nn.Module) -> list[Tensor]:
    """Buffers of batch and instance norms, which a forward pass in training changes."""
    norms = [module for module in net.modules() if isinstance(module, _NormBase)]
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


# ---- restoring -----------------------------------------------------------------------------------


class Restored(NamedTuple):
    """What a model made of a batch: images (B, C, H, W), and its stages where they are traced."""

    output: Tensor
    trace: Any = None


def restore_image(
    net: nn.Module, lq: Tensor, arguments: Mapping[str, Any], val: ValOptions
) -> Restored:
    """Runs a bare network on (B, C, H, W); in tiles as ``unfoldldm restore --tile`` does."""
    tile, overlap, side = val.tile, val.tile_overlap, max(lq.shape[-2:])
    if tile and tile < 1:  # a share, of images that may be small
        step = contract_of(net).size_multiple
        tile = max(step, ceil(tile * side))
        overlap = min(overlap, max(0, tile // 2 - step))
    if tile and side > tile:

        def run(part: Tensor) -> Tensor:
            return result_of(net(part, **arguments))

        return Restored(restore_in_tiles(net, run, lq, tile=tile, overlap=overlap))
    if val.trace:
        trace = net(lq, **arguments, return_trace=True)
        return Restored(trace.output, trace)
    return Restored(result_of(net(lq, **arguments)))
