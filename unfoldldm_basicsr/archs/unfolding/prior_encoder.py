"""Prior encoders PI and PI' of UnfoldLDM: images -> one vector per image.

PI sees the clean image (Phase I; afterwards the frozen teacher), PI' the two gradient-step
estimates. The body follows DiffIR's and Reti-Diff's encoders. Unlike theirs, the vector is
layer-normalised without affine parameters, so every prior has zero mean and unit variance and the
noise schedule of the diffusion means the same for every image.
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from unfoldldm_basicsr.archs.unfolding.stage import PriorVectorOptions


class EncoderOptions(PriorVectorOptions):
    """Options of both prior encoders."""

    prior_width: PositiveInt = 64
    """Channels of PI and PI'."""
    prior_encoder_blocks: NonNegativeInt = 5
    """Residual blocks of PI and PI'."""


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x)))."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> same."""
        return x + self.conv2(F.leaky_relu(self.conv1(x), 0.1))


class PriorEncoder(nn.Module):
    """Images (B, in_channels, h, w), h and w multiples of 4 -> prior (B, prior_dim).

    Args:
        in_channels: channels of all input images together.
        options: see :class:`EncoderOptions`.
    """

    def __init__(self, in_channels: int, options: EncoderOptions):
        super().__init__()
        width = options.prior_width
        self.body = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(16 * in_channels, width, 3, padding=1),
            *(ResidualBlock(width) for _ in range(options.prior_encoder_blocks)),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.LeakyReLU(0.1),
        )
        self.head = nn.Sequential(
            nn.Linear(2 * width, 2 * width),
            nn.LeakyReLU(0.1),
            nn.Linear(2 * width, options.prior_dim),
        )
        # torch's default shrinks the signal in every layer until the biases are all that the final
        # normalisation sees, and all images have nearly the same prior.
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, a=0.1)
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, prior_dim), zero mean and unit variance per item."""
        prior = self.head(self.body(images - 0.5).mean((2, 3)))
        prior = prior.to(torch.promote_types(prior.dtype, torch.float32))
        return F.layer_norm(prior, prior.shape[1:])
