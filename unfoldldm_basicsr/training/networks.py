"""A network in a training: on its device, wrapped, with its average beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unfoldldm_basicsr.training.checkpointer import network_state
from unfoldldm_basicsr.training.ema import update_ema
from unfoldldm_basicsr.training.options import TrainOptions


class TrainedNetwork:
    """A network and what belongs to it in a run.

    Args:
        bare: the network as it was built; parameters that need no gradient in this part of the
            training are frozen before.
        device: where to.
        train: section ``train``; None where the network is not trained.
        dist: whether there are several processes.

    Attributes:
        bare: the network without wrappers.
        net: with DistributedDataParallel and ``torch.compile`` around it, as far as they are used.
        average: moving average of ``bare``, None without one.
    """

    def __init__(
        self, bare: nn.Module, device: torch.device, train: TrainOptions | None, *, dist: bool
    ):
        self.bare, self.device, self.train, self.dist = bare, device, train, dist
        self.average: nn.Module | None = None
        self.wrap()

    def wrap(self) -> None:
        """Moves the network and wraps it, anew after parameters were frozen or unfrozen."""
        self.net = None  # an old wrapper takes its gradient hooks with it
        net, train = self.bare.to(self.device), self.train
        if train is None:
            self.net = net
            return
        if train.use_channels_last:
            net = net.to(memory_format=torch.channels_last)
        if self.dist:
            devices = [torch.cuda.current_device()] if self.device.type == 'cuda' else None
            net = DistributedDataParallel(net, device_ids=devices)
        self.net = (torch.compile(net) if train.use_compile else net).train()

    def start_average(self) -> None:
        """Averages from here on, starting with the weights of now."""
        self.average = deepcopy(self.bare).eval().requires_grad_(False)

    def update_average(self, decay: float) -> None:
        """Moves the average, if there is one, towards the network."""
        if self.average is not None:
            update_ema(self.average, self.bare, decay)

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
        """State dicts on the CPU as BasicSR's files name them: ``params``, ``params_ema``.

        Raises:
            NonFiniteWeightsError: a value is not finite.
        """
        states = {'params': network_state(self.bare)}
        if self.average is not None:
            states['params_ema'] = network_state(self.average)
        return states
