"""Blocks in a row, whose activations can be computed again instead of kept."""

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unfoldldm_basicsr.common.declaration import Options


class NetworkOptions(Options):
    """What every network made of :class:`Blocks` can be told."""

    inp_channels: PositiveInt = 3
    """Channels of the input."""
    use_checkpoint: bool = False
    """Recompute activations block by block for the gradients instead of keeping them: far less
    memory in training, the same result."""


class Blocks(nn.Sequential):
    """Blocks (x, *shared) -> x in a row.

    ``use_checkpoint`` keeps only the input of each block and computes the block again for its
    gradients: less memory, about a quarter more time, the same result.
    """

    def __init__(self, *blocks: nn.Module, use_checkpoint: bool = False) -> None:
        super().__init__(*blocks)
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor, *shared: Tensor | None) -> Tensor:
        """x (B, C, H, W) -> what the last block returns; every block gets ``shared``."""
        for block in self:
            x = recomputed(block, x, *shared) if self.use_checkpoint else block(x, *shared)
        return x


def recomputed(module: nn.Module, *args):
    """``module(*args)``, of which nothing but ``args`` is kept for the gradients."""
    if torch.is_grad_enabled():
        return checkpoint(module, *args, use_reentrant=False)
    return module(*args)
