"""Prior encoders PI and PI' of UnfoldLDM: images -> one vector per image.

PI sees the clean image and the input (Phase I; afterwards the frozen teacher), PI' the two
gradient-step estimates. The body follows DiffIR's and Reti-Diff's encoders. Unlike theirs, the
vector of a window is layer-normalised without affine parameters: it has zero mean and unit
variance, and the noise schedule of the diffusion means the same for every patch. The mean over the
windows of a photo varies a little less.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from unfoldldm_basicsr.archs.layers.norm import mean_std, widened
from unfoldldm_basicsr.archs.layers.resample import Unshuffle
from unfoldldm_basicsr.archs.unfolding.stage import PriorVectorOptions
from unfoldldm_basicsr.ops.image_statistics import image_statistic

LEVEL_CENTRES, LEVEL_SPREAD = (-1.5, -2.5), 0.7  # of log means and log deviations of photos
RANKS, QUANTILES = 40, (0, 4, 20, 36, 40)  # minimum, 10 %, median, 90 %, maximum
QUANTILE_CENTRES = (-2.6, -2.4, -2.0, -1.5, -1.0)  # of their logs


class EncoderOptions(PriorVectorOptions):
    """Options of both prior encoders."""

    prior_width: PositiveInt = 16
    """Channels of PI and PI'."""
    prior_encoder_blocks: NonNegativeInt = 2
    """Residual blocks of PI and PI'."""
    prior_levels: Literal['lq'] | bool = False
    """PI and PI' see how bright and rich in contrast the whole image is, with its quantiles, before
    what is in it: for darkness or haze. On noise it costs quality. lq: PI sees that of the input
    alone, as no PI' can tell the ground truth's."""
    prior_window: int = Field(48, gt=0, multiple_of=8)
    """Side of the windows that PI and PI' look at one by one where images are larger, in pixels:
    that of the training patches; a multiple of 8, with pyramid of 16."""


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

    The body sees standardised images, so dark ones do not look alike; their mean and deviation go
    to the head. Statistics of a photo differ from those of a training patch: larger images are cut
    into windows of a patch's size, and the mean over the windows counts. With ``prior_levels``
    mean, deviation and quantiles are those of the whole image, in the last ``level_channels`` (none
    given: all). ``in_channels`` are those of all input images together.
    """

    def __init__(
        self, in_channels: int, options: EncoderOptions, level_channels: int | None = None
    ):
        super().__init__()
        width = options.prior_width
        self.levels = bool(options.prior_levels)
        self.level_channels = level_channels or in_channels
        num_levels = (2 + len(QUANTILES) * self.levels) * self.level_channels
        self.body = nn.Sequential(
            Unshuffle(4),
            nn.Conv2d(16 * in_channels, width, 3, padding=1),
            *(ResidualBlock(width) for _ in range(options.prior_encoder_blocks)),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.LeakyReLU(0.1),
        )
        self.head = nn.Sequential(
            nn.Linear(4 * width + num_levels, options.prior_dim),
            nn.LeakyReLU(0.1),
            nn.Linear(options.prior_dim, options.prior_dim),
        )
        # torch's default shrinks the signal in every layer until the biases are all that the final
        # normalisation sees, and all images have nearly the same prior.
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, a=0.1)
                nn.init.zeros_(layer.bias)
        if options.prior_levels:
            self._start_from_levels(4 * width, num_levels)

    @torch.no_grad()
    def _start_from_levels(self, num_features: int, num_levels: int) -> None:
        """What the body sees of standardised images is much the same for all of them: the levels,
        standardised by the first layer, outweigh it, and a random bias keeps the normalisation from
        hiding how large they are.
        """
        first, _, last = self.head
        features, levels = first.weight.split([num_features, num_levels], 1)
        features.mul_(0.1)
        nn.init.kaiming_normal_(levels, a=0.1).div_(LEVEL_SPREAD)
        centres = torch.tensor(LEVEL_CENTRES + QUANTILE_CENTRES)
        centres = centres.repeat_interleave(num_levels // len(centres))
        first.bias.sub_(levels @ centres)
        last.bias.normal_()

    def forward(self, images: Tensor, window: int | None = None) -> Tensor:
        """(B, in_channels, h, w) -> (B, prior_dim), of zero mean, and of one window unit variance.

        ``window``: the largest side that is looked at in one piece, a multiple of 4.
        """
        side = window or max(images.shape[2:])
        parts = [
            images[:, :, top : top + side, left : left + side]
            for top in _starts(images.shape[2], side)
            for left in _starts(images.shape[3], side)
        ]
        levels = None
        if self.levels:
            levels = self._levels(images[:, -self.level_channels :]).repeat(len(parts), 1)
        return self._prior(torch.cat(parts), levels).unflatten(0, (len(parts), -1)).mean(0)

    def _levels(self, images: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, 7 c) logs of mean, deviation and quantiles: the brightest spots of a
        photo tell how it was exposed. Means of 2 x 2 pixels have less noise.
        """
        mean, std = mean_std(images, (2, 3), 1e-5)
        second = image_statistic(std.square() + mean.square())
        mean = image_statistic(mean)
        std = (second - mean.square()).clamp_min(1e-5).sqrt()
        order = _sorted(F.avg_pool2d(images.to(mean.dtype), 2).flatten(2))
        last = order.shape[2] - 1
        order = torch.stack([order[:, :, round(i / RANKS * last)] for i in range(RANKS + 1)], 2)
        order = image_statistic(order, 'sorted')
        quantiles = torch.cat([order[:, :, i] for i in QUANTILES], 1)
        return torch.cat([_log_level(mean), std.log(), _log_level(quantiles)], 1)

    def _prior(self, images: Tensor, levels: Tensor | None) -> Tensor:
        mean, std = mean_std(images, (2, 3), 1e-5)
        standard = (images - mean[..., None, None]) / std[..., None, None]
        features = self.body(standard.to(images.dtype))
        features = torch.cat(mean_std(features, (2, 3), 1e-5)[::-1], 1)
        if levels is None:
            levels = torch.cat([_log_level(mean), std.log()], 1)
        else:
            features = features * 0.1  # small inputs learn slowly: levels first
        prior = widened(self.head(torch.cat([features, levels], 1).to(images.dtype)))
        return F.layer_norm(prior, prior.shape[1:])


def _sorted(values: Tensor) -> Tensor:
    """Along the last axis; on a CPU by numpy, where no gradient passes: a fifth of the time."""
    trained = values.requires_grad and torch.is_grad_enabled()
    if type(values) is Tensor and values.device.type == 'cpu' and not trained:  # no stand-in
        return torch.from_numpy(np.sort(values.detach().numpy()))
    return values.sort(-1).values


def _log_level(value: Tensor) -> Tensor:
    return (value + 0.05).clamp_min(0.01).log()


def _starts(size: int, window: int) -> list[int]:
    """Where windows begin that cover ``size`` evenly."""
    last = max(size - window, 0)
    count = -(-size // window)
    return [round(last * i / max(count - 1, 1)) for i in range(count)]
