"""NAFNet: a U-shaped convolutional network without activation functions, and its local variant.

"Simple Baselines for Image Restoration", Chen et al., ECCV 2022, figures 2 to 4. Written anew;
argument names and state-dict keys are those of megvii-research/NAFNet, so released weights and
option files load directly.

``NAFNetLocal`` replaces global pooling by pooling over windows whose size follows the training
patches: "Improving Image Restoration by Revisiting Global Information Aggregation" (TLC), Chu et
al., ECCV 2022.

Shapes: level l of 0..L works on (B, 2^l width, H / 2^l, W / 2^l).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from unfoldldm_basicsr.archs.layers.feed_forward import simple_gate
from unfoldldm_basicsr.archs.layers.hyperparameters import StateDict, count_blocks, shape_of
from unfoldldm_basicsr.archs.layers.layout import to_quick_layout
from unfoldldm_basicsr.archs.layers.norm import LayerNorm2d
from unfoldldm_basicsr.archs.layers.resample import crop_to, pad_to_multiple
from unfoldldm_basicsr.common.declaration import Options, Tuple, takes
from unfoldldm_basicsr.ops.image_statistics import image_statistic

TLC_WINDOW_FACTOR = 1.5  # window over training patch, as published
FAST_STRIDES = (5, 4, 3, 2, 1)


class GlobalPool(nn.AdaptiveAvgPool2d):
    """Mean over the image."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 1, 1)."""
        return image_statistic(super().forward(x))


class NAFBlock(nn.Module):
    """Depthwise convolution with simplified channel attention, behind ``pool``, then a gated
    feed-forward part; both widen to 2 C and gate back to C.
    """

    def __init__(self, channels: int, pool: nn.Module) -> None:
        super().__init__()
        wide = 2 * channels
        self.conv1 = nn.Conv2d(channels, wide, 1)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.sca = nn.Sequential(pool, nn.Conv2d(channels, channels, 1))
        self.conv4 = nn.Conv2d(channels, wide, 1)
        self.conv5 = nn.Conv2d(channels, channels, 1)
        self.norm1 = LayerNorm2d(channels, eps=1e-6)
        self.norm2 = LayerNorm2d(channels, eps=1e-6)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        h = simple_gate(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.conv3(h * self.sca(h)) * self.beta
        h = simple_gate(self.conv4(self.norm2(x)))
        return x + self.conv5(h) * self.gamma


class NAFNetOptions(Options):
    """Options of NAFNet."""

    img_channel: PositiveInt = 3
    """Channels of input and output."""
    width: PositiveInt = 16
    """Channels of the first level."""
    middle_blk_num: NonNegativeInt = 1
    """Blocks at the lowest resolution."""
    enc_blk_nums: Tuple[NonNegativeInt] = ()
    """Blocks per encoder level; their number is the number of halvings."""
    dec_blk_nums: Tuple[NonNegativeInt] = ()
    """Blocks per decoder level, lowest resolution first."""
    padding_mode: Literal['zeros', 'reflect'] = 'zeros'
    """How sides that are no multiple of 2^levels are extended: zeros (as released), which the
    channel attention averages with the image, or reflect."""

    @model_validator(mode='after')
    def _depth(self) -> 'NAFNetOptions':
        if len(self.enc_blk_nums) != len(self.dec_blk_nums):
            raise ValueError(
                f'enc_blk_nums has {len(self.enc_blk_nums)} entries and dec_blk_nums '
                f'{len(self.dec_blk_nums)}: there must be as many decoder as encoder levels.'
            )
        return self


@ARCH_REGISTRY.register()
@takes(NAFNetOptions)
class NAFNet(nn.Module):
    """Restores an image of any size; its channel attention averages over the whole image."""

    tiling_changes_result = True

    def __init__(self, options: NAFNetOptions) -> None:
        super().__init__()
        depth, width = len(options.enc_blk_nums), options.width
        self.size_multiple = 2**depth
        self.padding_mode = 'constant' if options.padding_mode == 'zeros' else options.padding_mode

        def blocks(level: int, count: int) -> nn.Sequential:
            channels = width * 2**level
            parts = (NAFBlock(channels, self.build_pool(level)) for _ in range(count))
            return nn.Sequential(*parts)

        self.intro = nn.Conv2d(options.img_channel, width, 3, padding=1)
        self.ending = nn.Conv2d(width, options.img_channel, 3, padding=1)
        self.encoders = nn.ModuleList(blocks(i, n) for i, n in enumerate(options.enc_blk_nums))
        self.decoders = nn.ModuleList(
            blocks(depth - 1 - i, n) for i, n in enumerate(options.dec_blk_nums)
        )
        self.middle_blks = blocks(depth, options.middle_blk_num)
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, 2 * c, 1, bias=False), nn.PixelShuffle(2))
            for c in (width * 2**level for level in range(depth, 0, -1))
        )
        self.downs = nn.ModuleList(
            nn.Conv2d(c, 2 * c, 2, stride=2) for c in (width * 2**level for level in range(depth))
        )

    def build_pool(self, level: int) -> nn.Module:
        """The pooling of the channel attention at ``level`` (0 is the full resolution)."""
        return GlobalPool(1)

    def forward(self, lq: Tensor) -> Tensor:
        """(B, img_channel, H, W), RGB in [0, 1], any H and W -> the same size, not clamped."""
        lq = to_quick_layout(lq)
        image, size = pad_to_multiple(lq, self.size_multiple, mode=self.padding_mode)
        x = self.intro(image)
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.middle_blks(x)
        for decoder, up in zip(self.decoders, self.ups, strict=True):
            x = decoder(up(x) + skips.pop())
        return crop_to(self.ending(x) + image, size)

    @classmethod
    def infer_kwargs(cls, state_dict: StateDict) -> dict:
        """Constructor arguments from the shapes of a state dict; ValueError: of another network.

        ``NAFNetLocal``: its windows leave no trace in the weights and take their defaults.
        """
        width, img_channel = shape_of(state_dict, 'intro.weight', cls.__name__)[:2]
        depth = count_blocks(state_dict, 'downs')
        return {
            'img_channel': img_channel,
            'width': width,
            'middle_blk_num': count_blocks(state_dict, 'middle_blks'),
            'enc_blk_nums': [count_blocks(state_dict, f'encoders.{i}') for i in range(depth)],
            'dec_blk_nums': [count_blocks(state_dict, f'decoders.{i}') for i in range(depth)],
        }


class LocalAveragePool2d(nn.Module):
    """Mean over a window (rows, columns) around every position, moved inside at the borders.

    Images no larger than the window are averaged globally. ``strides``: candidates for the grid on
    which means are computed approximately; (1,) is exact.
    """

    def __init__(self, window: tuple[int, int], strides: Sequence[int] = (1,)) -> None:
        super().__init__()
        self.window = window
        self.strides = tuple(strides)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), or (B, C, 1, 1) when the window covers the image."""
        size = x.shape[-2:]
        if all(k >= n for k, n in zip(self.window, size, strict=True)):
            return F.adaptive_avg_pool2d(x, 1)
        rows, columns = (next(r for r in self.strides if n % r == 0) for n in size)
        out = x[..., ::rows, ::columns]
        for dim, stride in ((-2, rows), (-1, columns)):
            out = _sliding_mean(out, dim, min(out.shape[dim], max(1, self.window[dim] // stride)))
        if rows > 1 or columns > 1:
            out = F.interpolate(out, scale_factor=(rows, columns), mode='nearest')
        down, right = (n - m for n, m in zip(size, out.shape[-2:], strict=True))
        return F.pad(out, (right // 2, -(-right // 2), down // 2, -(-down // 2)), 'replicate')


def _sliding_mean(x: Tensor, dim: int, size: int) -> Tensor:
    """Means of all ``size`` consecutive entries along ``dim``: n -> n - size + 1 entries."""
    n = x.shape[dim]
    total = x.cumsum(dim, dtype=torch.promote_types(x.dtype, torch.float32))
    head = total.narrow(dim, size - 1, n - size + 1)
    zero = torch.zeros_like(head.narrow(dim, 0, 1))
    tail = torch.cat([zero, total.narrow(dim, 0, n - size)], dim)
    return ((head - tail) / size).to(x.dtype)


class NAFNetLocalOptions(NAFNetOptions):
    """Options of NAFNetLocal."""

    train_size: Tuple[PositiveInt] = Field((1, 3, 256, 256), min_length=4, max_length=4)
    """Shape (N, C, H, W) of the training batches; H and W set the windows."""
    fast_imp: bool = False
    """Means on a coarser grid: quicker, slightly different results."""


@ARCH_REGISTRY.register()
@takes(NAFNetLocalOptions)
class NAFNetLocal(NAFNet):
    """NAFNet for testing: pooling over windows of 1.5 training patches instead of the whole image.

    Closes the gap between training on patches and testing on full images. Same keys as NAFNet.
    """

    def build_pool(self, level: int) -> nn.Module:
        """A window of 1.5 training patches, measured in positions of ``level``."""
        window, patch = [], self.options.train_size[-2:]
        for side in patch:
            padded = side + -side % self.size_multiple
            base = int(side * TLC_WINDOW_FACTOR)
            window.append((padded >> level) * base // side)
        largest = max(1, min(FAST_STRIDES[0] * (n >> level) // n for n in patch))
        strides = FAST_STRIDES if self.options.fast_imp else (1,)
        return LocalAveragePool2d(tuple(window), [r for r in strides if r <= largest])
