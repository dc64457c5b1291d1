"""Changes of resolution: embedding, down- and upsampling by 2, padding to a multiple and back.

Key names of swz30/Restormer, so that released weights load without a map.
"""

from collections import OrderedDict

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class OverlapPatchEmbed(nn.Sequential):
    """3x3 convolution from image to feature channels: (B, C_in, H, W) -> (B, dim, H, W)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        proj = nn.Conv2d(in_channels, dim, 3, padding=1, bias=False)
        super().__init__(OrderedDict(proj=proj))


class Downsample(nn.Sequential):
    """(B, C, H, W) -> (B, 2C, H/2, W/2): 3x3 convolution to C/2, then PixelUnshuffle."""

    def __init__(self, dim: int) -> None:
        conv = nn.Conv2d(dim, dim // 2, 3, padding=1, bias=False)
        super().__init__(OrderedDict(body=nn.Sequential(conv, nn.PixelUnshuffle(2))))


class Upsample(nn.Sequential):
    """(B, C, H, W) -> (B, C/2, 2H, 2W): 3x3 convolution to 2C, then PixelShuffle."""

    def __init__(self, dim: int) -> None:
        conv = nn.Conv2d(dim, dim * 2, 3, padding=1, bias=False)
        super().__init__(OrderedDict(body=nn.Sequential(conv, nn.PixelShuffle(2))))


class Unshuffle(nn.Module):
    """Pixels to channels, as PixelUnshuffle of torch, which takes up to thrice as long on a CPU.

    For images: a tensor with channels last loses that layout.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.sides = {'p': factor, 'q': factor}

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C p q, H / p, W / q)."""
        return rearrange(x, 'b c (h p) (w q) -> b (c p q) h w', **self.sides)

    def undo(self, x: Tensor) -> Tensor:
        """(B, C p q, H, W) -> (B, C, H p, W q)."""
        return rearrange(x, 'b (c p q) h w -> b c (h p) (w q)', **self.sides)


def pad_to_multiple(
    x: Tensor, multiple: int, *, mode: str = 'reflect'
) -> tuple[Tensor, tuple[int, int]]:
    """Enlarges x (B, C, H, W) to multiples of ``multiple`` at the bottom and right.

    ``mode``: 'reflect' (a side too short to be reflected is replicated), 'replicate' or 'constant'
    (zeros). Gives the padded tensor and the original (H, W) for :func:`crop_to`.
    """
    height, width = x.shape[-2:]
    down, right = -height % multiple, -width % multiple
    for size, amount, pad in ((width, right, (0, right, 0, 0)), (height, down, (0, 0, 0, down))):
        if amount:
            x = F.pad(x, pad, 'replicate' if mode == 'reflect' and amount >= size else mode)
    return x, (height, width)


def crop_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Takes the top left (H, W) of ``x``: undoes :func:`pad_to_multiple`."""
    return x[..., : size[0], : size[1]]
