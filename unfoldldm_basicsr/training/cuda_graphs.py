"""Steps of a training as CUDA graphs."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from unfoldldm_basicsr.training.batches import Batch

Losses = dict[str, Tensor]
WARM_UP = 2  # cuDNN chooses its algorithms and autograd makes its buffers before the capture


class GradientGraphs:
    """Forward, losses and backward of a step as CUDA graphs, one for each kind of batch.

    A small network launches thousands of short kernels in a step, and a GPU waits for most of them.
    A graph launches all of them at once: the same kernels on the same memory, replayed for every
    batch. ``buffers``: what the forward pass changes, such as running statistics.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], buffers: Iterable[Tensor]):
        self.parameters, self.buffers = list(parameters), list(buffers)
        self.captured: dict[tuple, tuple] = {}  # see _capture
        self.pool = torch.cuda.graph_pool_handle()  # only one of the graphs runs at a time

    def __call__(
        self,
        batch: Batch,
        accumulate: Callable[[Batch], Losses],
        random: Callable[[], AbstractContextManager],
        kind: bool,
    ) -> Losses:
        """Sets the gradients for a batch on the GPU as ``accumulate`` does.

        Args:
            accumulate: (batch) -> losses; adds up gradients and must not wait for the GPU.
            random: the generators of this step, to be entered anew for every pass.
            kind: tells apart steps that compute different things on equal batches.

        Raises RuntimeError: a step that cannot be captured.
        """
        shapes = [(tuple(t.shape), t.dtype) for t in _tensors(batch)]
        key = (kind, *shapes, *(p.requires_grad for p in self.parameters))
        if key not in self.captured:
            with random():
                self.captured[key] = self._capture(batch, accumulate)
        graph, inputs, totals, gradients = self.captured[key]
        for own, value in zip(_tensors(inputs), _tensors(batch), strict=True):
            own.copy_(value)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        with random():
            graph.replay()
        return totals

    def _capture(
        self, batch: Batch, accumulate: Callable[[Batch], Losses]
    ) -> tuple[torch.cuda.CUDAGraph, Batch, Losses, list[Tensor | None]]:
        """A graph and what it reads and writes: batch, losses, gradients."""
        before = [buffer.clone() for buffer in self.buffers]
        batch = tree_map_only(Tensor, torch.clone, batch)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                accumulate(batch)
        torch.cuda.current_stream().wait_stream(stream)
        for parameter in self.parameters:
            parameter.grad = None  # the graph makes its own
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool):
                totals = accumulate(batch)
        except RuntimeError as error:
            raise RuntimeError(
                f'train.use_cuda_graphs: this step cannot be captured ({error}). A loss or network '
                'that waits for the GPU, for example by .item(), is the usual reason; remove the '
                'option, or the wait.'
            ) from error
        for buffer, value in zip(self.buffers, before, strict=True):
            buffer.copy_(value)
        return graph, batch, totals, [p.grad for p in self.parameters]


def _tensors(batch: Batch) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
