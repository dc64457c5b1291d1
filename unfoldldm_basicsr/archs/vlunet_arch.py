"""VLU-Net: all-in-one restoration by unfolding a gradient descent in feature space.

"Vision-Language Gradient Descent-driven All-in-One Deep Unfolding Networks", CVPR 2025 (arXiv
2503.16930), figure 2. Written anew; argument names and state-dict keys are those of the
released code.

Every level of the U-shaped network is one unfolding stage: a gradient step steered by a degradation
vector, then a proximal step. Two feature streams run through all levels, the estimate x and the
observation y; y only changes its resolution.

Shapes: level l of 1..4 works on (B, 2^(l-1) dim, H / 2^(l-1), W / 2^(l-1)); the last decoder level
and the refinement keep 2 dim channels in both streams.
"""

from collections import OrderedDict
from functools import partial

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from unfoldldm_basicsr.archs.layers.blocks import recomputed
from unfoldldm_basicsr.archs.layers.hyperparameters import StateDict, shape_of
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
from unfoldldm_basicsr.archs.unfolding.gradient_step_vlgd import DGDM
from unfoldldm_basicsr.common.declaration import takes


class VLUStage(nn.Module):
    """The gradient step :class:`DGDM`, then the proximal step PMM, section 3: transformer blocks as
    the learned proximal operator, x <- prox(x) = Block_n(... Block_1(x)).
    """

    def __init__(self, dim: int, level: int, num_blocks: int, options: 'VLUNetOptions') -> None:
        super().__init__()
        self.use_checkpoint = options.use_checkpoint
        # first, but second in the state dict: so weights of a seed stay what they were
        blocks = transformer_blocks(dim, options.heads[level - 1], num_blocks, options)
        self.gradient_descent = DGDM(dim, level, options.de_dim, options.embed_dim)
        self.denoiser = nn.Sequential(OrderedDict(blocks=blocks))

    def forward(self, x: Tensor, y: Tensor, degradation: Tensor) -> Tensor:
        """x, y (B, C, h, w), degradation (B, E) -> new x."""
        # of what the step tells only x is kept: its maps are freed before the blocks run
        if self.use_checkpoint:
            x = recomputed(self.gradient_descent, x, y, degradation)[0]
        else:
            x = self.gradient_descent(x, y, degradation)[0]
        return self.denoiser(x)


class VLUNetOptions(UShapeOptions):
    """Options of VLU-Net.

    The released code hands ``bias`` and ``LayerNorm_type`` on to no block, so its blocks are always
    as with the defaults.
    """

    de_dim: PositiveInt = 7
    """Number N of learned prompts, one per degradation."""
    out_channels: PositiveInt = 3
    """Channels of the output; equals inp_channels."""
    dim: int = Field(48, ge=10, multiple_of=2)
    """Channels of the first level, even; a level of C channels has C // 10 prompt channels."""
    embed_dim: PositiveInt = 512
    """Length E of the degradation vector (512 for CLIP ViT-B-32)."""

    @model_validator(mode='after')
    def _channels(self) -> 'VLUNetOptions':
        if self.inp_channels != self.out_channels:
            raise ValueError(
                f'inp_channels ({self.inp_channels}) must equal out_channels '
                f'({self.out_channels}): VLU-Net adds its input to its output.'
            )
        return self


@ARCH_REGISTRY.register()
@takes(VLUNetOptions)
class VLUNet(nn.Module):
    """Restores an image of any size and of a degradation described by a vector.

    The first downsampling of the observation uses ``down1_2``, the one of the estimate, as in the
    released network. ``down1_2_i`` exists in all released checkpoints and is never used; it is kept
    so that weights load strictly, and frozen so that distributed training sees no unused parameter.
    """

    size_multiple = 8
    tiling_changes_result = True

    def __init__(self, options: VLUNetOptions) -> None:
        super().__init__()
        self.embed_dim = options.embed_dim
        dim, bias, num_blocks = options.dim, options.bias, options.num_blocks
        stage = partial(VLUStage, options=options)

        self.patch_embed = OverlapPatchEmbed(options.inp_channels, dim)
        self.patch_embed_i = OverlapPatchEmbed(options.inp_channels, dim)
        self.encoder_level1 = stage(dim, 1, num_blocks[0])
        self.down1_2 = Downsample(dim)
        self.down1_2_i = Downsample(dim).requires_grad_(False)
        self.encoder_level2 = stage(2 * dim, 2, num_blocks[1])
        self.down2_3 = Downsample(2 * dim)
        self.down2_3_i = Downsample(2 * dim)
        self.encoder_level3 = stage(4 * dim, 3, num_blocks[2])
        self.down3_4 = Downsample(4 * dim)
        self.down3_4_i = Downsample(4 * dim)
        self.latent = stage(8 * dim, 4, num_blocks[3])
        self.up4_3 = Upsample(8 * dim)
        self.up4_3_i = Upsample(8 * dim)
        self.reduce_chan_level3 = nn.Conv2d(8 * dim, 4 * dim, 1, bias=bias)
        self.reduce_chan_level3_img = nn.Conv2d(8 * dim, 4 * dim, 1, bias=bias)
        self.decoder_level3 = stage(4 * dim, 3, num_blocks[2])
        self.up3_2 = Upsample(4 * dim)
        self.up3_2_i = Upsample(4 * dim)
        self.reduce_chan_level2 = nn.Conv2d(4 * dim, 2 * dim, 1, bias=bias)
        self.reduce_chan_level2_img = nn.Conv2d(4 * dim, 2 * dim, 1, bias=bias)
        self.decoder_level2 = stage(2 * dim, 2, num_blocks[1])
        self.up2_1 = Upsample(2 * dim)
        self.up2_1_i = Upsample(2 * dim)
        self.decoder_level1 = stage(2 * dim, 1, num_blocks[0])
        self.refinement = stage(2 * dim, 1, options.num_refinement_blocks)
        self.output = nn.Conv2d(2 * dim, options.out_channels, 3, padding=1, bias=bias)

    def forward(self, lq: Tensor, degradation: Tensor) -> Tensor:
        """(B, inp_channels, H, W), RGB in [0, 1], any H and W -> (B, out_channels, H, W), not
        clamped. The vector ``degradation`` (B, embed_dim) chooses the prompts; ValueError: it has
        another shape.
        """
        if degradation.shape != (lq.shape[0], self.embed_dim):
            name, wanted = type(self).__name__, (lq.shape[0], self.embed_dim)
            raise ValueError(
                f'{name} needs one degradation vector of length {self.embed_dim} per image: '
                f'expected shape {wanted}, got {tuple(degradation.shape)}.'
            )
        image, size = pad_to_multiple(to_quick_layout(lq), self.size_multiple)
        x1, y1 = self.patch_embed(image), self.patch_embed_i(image)
        x1 = self.encoder_level1(x1, y1, degradation)
        x2, y2 = self.down1_2(x1), self.down1_2(y1)  # one module for both, as released
        x2 = self.encoder_level2(x2, y2, degradation)
        x3, y3 = self.down2_3(x2), self.down2_3_i(y2)
        x3 = self.encoder_level3(x3, y3, degradation)
        x, y = self.down3_4(x3), self.down3_4_i(y3)
        x = self.latent(x, y, degradation)
        x = self.reduce_chan_level3(torch.cat([self.up4_3(x), x3], 1))
        y = self.reduce_chan_level3_img(torch.cat([self.up4_3_i(y), y3], 1))
        x = self.decoder_level3(x, y, degradation)
        x = self.reduce_chan_level2(torch.cat([self.up3_2(x), x2], 1))
        y = self.reduce_chan_level2_img(torch.cat([self.up3_2_i(y), y2], 1))
        x = self.decoder_level2(x, y, degradation)
        x = torch.cat([self.up2_1(x), x1], 1)
        y = torch.cat([self.up2_1_i(y), y1], 1)
        x = self.decoder_level1(x, y, degradation)
        x = self.refinement(x, y, degradation)
        return crop_to(self.output(x) + image, size)

    @classmethod
    def infer_kwargs(cls, state_dict: StateDict) -> dict:
        """Constructor arguments from the shapes of a state dict; ValueError: of another network."""
        name = cls.__name__
        shared = infer_ushape_kwargs(state_dict, name, '.denoiser.blocks')
        linear = shape_of(state_dict, 'encoder_level1.gradient_descent.linear.weight', name)
        return shared | {'de_dim': linear[0], 'embed_dim': linear[1]}
