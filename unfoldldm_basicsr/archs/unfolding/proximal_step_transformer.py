"""VLU-Net's proximal step (PMM): Restormer blocks as the learned proximal operator.

    x <- prox(x) = Block_n(... Block_1(x))

arXiv 2503.16930, section 3; key names of the released code.
"""

from __future__ import annotations

from torch import Tensor, nn

from unfoldldm_basicsr.archs.layers.blocks import Blocks
from unfoldldm_basicsr.archs.layers.transformer import TransformerBlock


class PMM(nn.Module):
    """A chain of transformer blocks.

    Args:
        dim: C.
        num_heads: attention heads; divides ``dim``.
        num_blocks: length of the chain.
        expansion: hidden width of the feed-forward parts over ``dim``.
        bias: biases in the convolutions.
        LayerNorm_type: ``WithBias`` or ``BiasFree``.
        use_checkpoint: see :class:`Blocks`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_blocks: int,
        *,
        expansion: float = 2.66,
        bias: bool = False,
        LayerNorm_type: str = 'WithBias',
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.blocks = Blocks(
            *(
                TransformerBlock(
                    dim, num_heads, expansion=expansion, bias=bias, LayerNorm_type=LayerNorm_type
                )
                for _ in range(num_blocks)
            ),
            use_checkpoint=use_checkpoint,
        )

    def forward(self, x: Tensor, prior: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) -> like x; ``prior`` (B, C_p) goes to blocks that take one."""
        return self.blocks(x) if prior is None else self.blocks(x, prior)
