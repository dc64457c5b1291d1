"""Restormer's transformer block: x + Attention(Norm(x)), then x + FeedForward(Norm(x))."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, Strict
from torch import Tensor, nn

from unfoldldm_basicsr.archs.layers.attention import TransposedSelfAttention
from unfoldldm_basicsr.archs.layers.blocks import Blocks, NetworkOptions
from unfoldldm_basicsr.archs.layers.feed_forward import GatedFeedForward
from unfoldldm_basicsr.archs.layers.hyperparameters import (
    StateDict,
    count_blocks,
    find_expansion,
    shape_of,
)
from unfoldldm_basicsr.archs.layers.norm import LayerNorm

PerLevel = Annotated[tuple[NonNegativeInt, ...], Strict(False), Field(min_length=4, max_length=4)]


class UShapeOptions(NetworkOptions):
    """Options of a four-level U-shaped network of Restormer's transformer blocks."""

    ffn_expansion_factor: PositiveFloat = 2.66
    """Hidden width of the feed-forward parts over their channels."""
    bias: bool = False
    """Biases in the convolutions of blocks, fusions and output."""
    LayerNorm_type: Literal['WithBias', 'BiasFree'] = 'WithBias'
    """Layer normalisation with or without a learned offset (and, BiasFree, without centring)."""
    dim: PositiveInt = 48
    """Channels of the first level; the levels have dim, 2 dim, 4 dim, 8 dim."""
    num_blocks: PerLevel = (4, 6, 6, 8)
    """Transformer blocks of the four levels; the decoder repeats those of levels 1 to 3."""
    num_refinement_blocks: NonNegativeInt = 4
    """Blocks after the decoder, at full resolution."""
    heads: PerLevel = (1, 2, 4, 8)
    """Attention heads of the four levels."""


class TransformerBlock(nn.Module):
    """Channel attention and gated feed-forward, both pre-normalised and residual."""

    def __init__(self, dim: int, num_heads: int, options: UShapeOptions) -> None:
        super().__init__()
        bias = options.bias
        self.norm1 = LayerNorm(dim, options.LayerNorm_type)
        self.attn = TransposedSelfAttention(dim, num_heads, bias=bias)
        self.norm2 = LayerNorm(dim, options.LayerNorm_type)
        self.ffn = GatedFeedForward(dim, expansion=options.ffn_expansion_factor, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


def transformer_blocks(dim: int, num_heads: int, count: int, options: UShapeOptions) -> Blocks:
    """``count`` blocks in a row, recomputed for their gradients if the options say so."""
    parts = (TransformerBlock(dim, num_heads, options) for _ in range(count))
    return Blocks(*parts, use_checkpoint=options.use_checkpoint)


def infer_ushape_kwargs(state_dict: StateDict, arch: str, inside: str = '') -> dict:
    """Arguments that Restormer and VLU-Net share, from the shapes of a state dict. ``inside``:
    where in each level its blocks are. Raises ValueError: a block is missing, or widths disagree.
    """
    names = ('encoder_level1', 'encoder_level2', 'encoder_level3', 'latent')
    levels = [f'{name}{inside}' for name in names]
    dim, inp_channels = shape_of(state_dict, 'patch_embed.proj.weight', arch)[:2]
    hidden = [shape_of(state_dict, f'{at}.0.ffn.project_out.weight', arch)[1] for at in levels]
    with_bias = f'{levels[0]}.0.norm1.body.bias' in state_dict
    return {
        'inp_channels': inp_channels,
        'out_channels': shape_of(state_dict, 'output.weight', arch)[0],
        'dim': dim,
        'num_blocks': [count_blocks(state_dict, level) for level in levels],
        'num_refinement_blocks': count_blocks(state_dict, f'refinement{inside}'),
        'heads': [shape_of(state_dict, f'{at}.0.attn.temperature', arch)[0] for at in levels],
        'ffn_expansion_factor': find_expansion([dim, 2 * dim, 4 * dim, 8 * dim], hidden, arch),
        'bias': f'{levels[0]}.0.attn.qkv.bias' in state_dict,
        'LayerNorm_type': 'WithBias' if with_bias else 'BiasFree',
    }
