"""Restormer: a four-level U-shaped transformer with channel attention.

"Restormer: Efficient Transformer for High-Resolution Image Restoration", Zamir et al., CVPR 2022,
figure 2. Written anew; argument names and state-dict keys are those of swz30/Restormer, so released
weights and option files load directly.

Shapes: level l of 1..4 works on (B, 2^(l-1) dim, H / 2^(l-1), W / 2^(l-1)); the last decoder level
and the refinement keep 2 dim channels.
"""

from functools import partial

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from unfoldldm_basicsr.archs.layers.hyperparameters import StateDict
from unfoldldm_basicsr.archs.layers.layout import to_quick_layout
from unfoldldm_basicsr.archs.layers.resample import (
    Downsample,
    OverlapPatchEmbed,
    Upsample,
    crop_to,
    pad_to_multiple,
)
from unfoldldm_basicsr.archs.layers.transformer import (
    UShapeOptions,
    infer_ushape_kwargs,
    transformer_blocks,
)
from unfoldldm_basicsr.common.declaration import takes


class RestormerOptions(UShapeOptions):
    """Options of Restormer."""

    out_channels: PositiveInt = 3
    """Channels of the output."""
    dual_pixel_task: bool = False
    """Defocus deblurring from two views (inp_channels: 6): the embedding is added before the
    output and the input is not added after it."""

    @model_validator(mode='after')
    def _channels(self) -> 'RestormerOptions':
        if self.inp_channels != self.out_channels and not self.dual_pixel_task:
            raise ValueError(
                f'inp_channels ({self.inp_channels}) must equal out_channels '
                f'({self.out_channels}) unless dual_pixel_task is true: the input is added to the '
                'output.'
            )
        return self


@ARCH_REGISTRY.register()
@takes(RestormerOptions)
class Restormer(nn.Module):
    """Restores an image of any size; attention between channels mixes the whole image."""

    size_multiple = 8
    tiling_changes_result = True

    def __init__(self, options: RestormerOptions) -> None:
        super().__init__()
        inp_channels, dim, bias = options.inp_channels, options.dim, options.bias
        heads, num_blocks = options.heads, options.num_blocks
        blocks = partial(transformer_blocks, options=options)

        self.patch_embed = OverlapPatchEmbed(inp_channels, dim)
        self.encoder_level1 = blocks(dim, heads[0], num_blocks[0])
        self.down1_2 = Downsample(dim)
        self.encoder_level2 = blocks(2 * dim, heads[1], num_blocks[1])
        self.down2_3 = Downsample(2 * dim)
        self.encoder_level3 = blocks(4 * dim, heads[2], num_blocks[2])
        self.down3_4 = Downsample(4 * dim)
        self.latent = blocks(8 * dim, heads[3], num_blocks[3])
        self.up4_3 = Upsample(8 * dim)
        self.reduce_chan_level3 = nn.Conv2d(8 * dim, 4 * dim, 1, bias=bias)
        self.decoder_level3 = blocks(4 * dim, heads[2], num_blocks[2])
        self.up3_2 = Upsample(4 * dim)
        self.reduce_chan_level2 = nn.Conv2d(4 * dim, 2 * dim, 1, bias=bias)
        self.decoder_level2 = blocks(2 * dim, heads[1], num_blocks[1])
        self.up2_1 = Upsample(2 * dim)
        self.decoder_level1 = blocks(2 * dim, heads[0], num_blocks[0])
        self.refinement = blocks(2 * dim, heads[0], options.num_refinement_blocks)
        self.dual_pixel_task = options.dual_pixel_task
        if self.dual_pixel_task:
            self.skip_conv = nn.Conv2d(dim, 2 * dim, 1, bias=bias)
        self.output = nn.Conv2d(2 * dim, options.out_channels, 3, padding=1, bias=bias)

    def forward(self, lq: Tensor) -> Tensor:
        """(B, inp_channels, H, W), RGB in [0, 1] -> (B, out_channels, H, W), not clamped."""
        image, size = pad_to_multiple(to_quick_layout(lq), self.size_multiple)
        embedded = self.patch_embed(image)
        x1 = self.encoder_level1(embedded)
        x2 = self.encoder_level2(self.down1_2(x1))
        x3 = self.encoder_level3(self.down2_3(x2))
        x = self.latent(self.down3_4(x3))
        x = self.decoder_level3(self.reduce_chan_level3(torch.cat([self.up4_3(x), x3], 1)))
        x = self.decoder_level2(self.reduce_chan_level2(torch.cat([self.up3_2(x), x2], 1)))
        x = self.decoder_level1(torch.cat([self.up2_1(x), x1], 1))
        x = self.refinement(x)
        if self.dual_pixel_task:
            return crop_to(self.output(x + self.skip_conv(embedded)), size)
        return crop_to(self.output(x) + image, size)

    @classmethod
    def infer_kwargs(cls, state_dict: StateDict) -> dict:
        """Constructor arguments from the shapes of a state dict; ValueError: of another network."""
        dual = {'dual_pixel_task': 'skip_conv.weight' in state_dict}
        return infer_ushape_kwargs(state_dict, cls.__name__) | dual
