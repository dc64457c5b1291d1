"""VLU-Net's proximal step (PMM): Restormer blocks as the learned proximal operator.

    x <- prox(x) = Block_n(... Block_1(x))

arXiv 2503.16930, section 3; key names of the released code.
"""

from __future__ import annotations

from torch import Tensor, nn

from unfoldldm_basicsr.archs.layers.transformer import UShapeOptions, transformer_blocks


class PMM(nn.Module):
    """A chain of transformer blocks.

    Args:
        dim: C.
        num_heads: attention heads; divides ``dim``.
        num_blocks: length of the chain.
        options: see :class:`UShapeOptions`.
    """

    def __init__(self, dim: int, num_heads: int, num_blocks: int, options: UShapeOptions) -> None:
        super().__init__()
        self.blocks = transformer_blocks(dim, num_heads, num_blocks, options)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.blocks(x)
