"""Weights and an image in, a restored image out: no option file, no BasicSR trainer."""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from unfoldldm_basicsr.common import contract
from unfoldldm_basicsr.common.cost import bytes_per_pixel, free_memory
from unfoldldm_basicsr.common.declaration import Options
from unfoldldm_basicsr.common.errors import first_line
from unfoldldm_basicsr.data.images import Picture
from unfoldldm_basicsr.data.pixels import to_float
from unfoldldm_basicsr.restoring.tiling import TileError, restore_in_tiles, telling_remedy
from unfoldldm_basicsr.weights.checkpoint import read_checkpoint
from unfoldldm_basicsr.weights.conditioning import AUTO, Conditioning, build_conditioning
from unfoldldm_basicsr.weights.networks import build_network, registered_networks
from unfoldldm_basicsr.weights.packaged import packaged_file

_SURELY_ENOUGH = 2**14  # bytes per pixel that no network needs


class StageImages(NamedTuple):
    """What one stage made of one image: estimates after the holistic and the decomposed gradient
    step and the stage's output, (H, W, 3) float RGB in [0, 1]; the prior (C_p,), empty without one;
    ``x`` of a run with the null prior, or None.
    """

    x_hat: np.ndarray
    x_tilde: np.ndarray
    x: np.ndarray
    prior: np.ndarray
    x_null: np.ndarray | None


class Trace(NamedTuple):
    """Input and output (H, W, 3) float RGB in [0, 1], and the stages between them."""

    lq: np.ndarray
    stages: tuple[StageImages, ...]
    output: np.ndarray


class Restorer:
    """A network with its weights, ready for images of any size and mode.

    Runs in float32 with deterministic kernels: the same image gives the same result every time.

    Args:
        weights: weight file (see :func:`read_checkpoint`), a network that is used as it is, or
            None for the default weights of this package.
        device: 'auto' (a GPU if there is one), 'cpu', 'cuda', 'cuda:1', ...
        tile: side of the tiles in pixels; None restores every image in one piece.
        tile_overlap: pixels shared by neighbouring tiles.
        global_statistics: all tiles of an image use the same statistics (channel attention, prior,
            degradation embedding), estimated on up to nine of them: closer to the result without
            tiles, in up to nine tiles' more time (eighteen with UnfoldLDM's ``prior_levels``).
            False: each tile its own.
        opt_file: option file for weights that do not say which network they belong to.
        param_key: 'params_ema' or 'params'; default the averaged weights where present.
        degradation: for a network that is steered by a degradation vector (VLU-Net): 'auto' where
            its weights tell the degradation from the image, else the degradation's name or index.
        clip_weights: OpenCLIP tag or file of the CLIP weights, where the weight file does without.

    Attributes:
        conditioning: makes the degradation vectors; None for other networks.
        meta: type and arguments of ``net`` ({} for a network that was passed in).
        notes: what a user should know about these weights, one sentence each.

    Raises:
        FileNotFoundError, CheckpointError: the weights cannot be used; the message says why.
        ValueError: an unreadable option file, an unusable device, tile or overlap.
    """

    def __init__(
        self,
        weights: str | Path | nn.Module | None = None,
        *,
        device: str | torch.device = 'auto',
        tile: int | None = None,
        tile_overlap: int = 32,
        global_statistics: bool = True,
        opt_file: str | Path | None = None,
        param_key: str | None = None,
        degradation: str | int = AUTO,
        clip_weights: str | Path | None = None,
    ):
        self.device = _device(device)
        self.meta: Mapping[str, Any] = {}
        self.conditioning: Conditioning | None = None
        self.notes: list[str] = []
        self.name = ''
        if isinstance(weights, nn.Module):
            net = weights.eval()
        else:
            checkpoint = read_checkpoint(packaged_file() if weights is None else weights, param_key)
            self.name = checkpoint.path.name
            net, self.meta = build_network(checkpoint, opt_file=opt_file)
            if checkpoint.arch is None and opt_file is None:
                self.notes.append(recognised(net, self.meta))
        self.contract = contract.contract_of(net)
        if self.meta and self.contract.takes_degradation:
            self.conditioning = build_conditioning(
                checkpoint, degradation=degradation, clip_weights=clip_weights
            ).to(self.device)
        if self.conditioning is None and (degradation != AUTO or clip_weights is not None):
            raise ValueError(
                f'{type(net).__name__}: its weights know no degradations, so --degradation and'
                f' --clip-weights have no meaning here.'
            )
        if tile is not None:
            contract.check_tile(tile, tile_overlap, self.contract.size_multiple)
        self.net = net.to(self.device)
        self.tile, self.tile_overlap = tile, tile_overlap
        self.global_statistics = global_statistics
        bare = contract.unwrapped(net)
        options = getattr(bare, 'options', None)
        arguments = dict(options) if isinstance(options, Options) else self.meta.get('kwargs', {})
        self.channels = contract.image_channels(type(bare), arguments)
        if self.contract.lacks_prior:
            self.notes.append(
                'Phase I weights hold no prior generator: images are restored with the null prior,'
                ' below what the weights of Phase II reach.'
            )

    def restore(
        self,
        image: np.ndarray,
        *,
        on_tile: Callable[[int, int], None] | None = None,
        **forward_options: Any,
    ) -> np.ndarray:
        """Restores one image; the result has the same shape and dtype.

        Args:
            image: (H, W) grey, (H, W, 2) grey and alpha, (H, W, 3) RGB or (H, W, 4) RGB and alpha,
                uint8 or uint16. Alpha is passed through; grey stays grey (the network sees three
                equal channels, their mean is the result).
            on_tile: called with (finished tiles, all tiles).
            forward_options: further keywords of the network, for example ``prior_source='null'``,
                or ``degradation=vector`` in place of the vector of this image.

        Raises:
            ValueError: another dtype or shape, or the network returned NaN.
            TileError: out of memory; the message tells the remedy.
        """
        colour, alpha = split_alpha(image)
        lq = self.to_tensor(colour)
        output = self.restore_tensor(lq, on_tile=on_tile, **forward_options).cpu()
        if not output.isfinite().all():
            raise ValueError(
                f'{type(self.net).__name__} returned NaN or infinite values for this image;'
                f' nothing is written for it.'
            )
        values = output[0].clamp(0, 1)
        values = values.mean(0) if colour.ndim == 2 else values.permute(1, 2, 0)
        # float64: the largest uint16 times a float32 is not exact
        restored = np.rint(values.double().numpy() * np.iinfo(colour.dtype).max)
        restored = restored.astype(colour.dtype)
        return restored if alpha is None else np.dstack([restored, alpha])

    @torch.no_grad()
    def restore_tensor(
        self,
        lq: Tensor,
        *,
        on_tile: Callable[[int, int], None] | None = None,
        **forward_options: Any,
    ) -> Tensor:
        """Restores a batch (B, C, H, W) in [0, 1]; not clamped. Errors are those of
        :meth:`restore`.
        """
        forward_options = {**self._options_of(lq, forward_options), **forward_options}
        contract.check_inputs(self.net, forward_options)
        kinds = self._kinds() or [lq.dtype]
        for key, value in forward_options.items():
            if isinstance(value, Tensor):
                alike = value.is_floating_point() and len(kinds) == 1
                forward_options[key] = value.to(self.device, kinds[0] if alike else value.dtype)

        def forward(part: Tensor) -> Tensor:
            with deterministic():
                output = self.net(part.to(self.device, kinds[0]), **forward_options)
                return contract.result_of(output).to(lq.dtype)

        height, width = lq.shape[-2:]
        self.check_memory(height, width)
        if self.tile is not None and max(height, width) > self.tile:
            return restore_in_tiles(
                self.net, forward, lq, tile=self.tile, overlap=self.tile_overlap,
                global_statistics=self.global_statistics, on_tile=on_tile,
            )  # fmt: skip
        what = f'{width}x{height} pixels could not be restored in one piece'
        with telling_remedy(what, self._remedy()):
            output = forward(lq)
        if output.shape[-2:] != lq.shape[-2:]:
            raise ValueError(
                f'{type(self.net).__name__} turns {width}x{height} pixels into'
                f' {output.shape[-1]}x{output.shape[-2]}: only networks that keep the size restore.'
            )
        return output

    @torch.no_grad()
    def trace(self, image: np.ndarray) -> Trace:
        """What every stage made of an image (without alpha), in one piece. ValueError without
        stages of two estimates.
        """
        if not self.contract.can_trace:
            raise ValueError(
                f'{type(self.net).__name__} has no stages with two estimates to draw;'
                f' only UnfoldLDM has.'
            )
        lq = self.to_tensor(split_alpha(image)[0])
        options, lq = self._options_of(lq, {}), lq.to(self.device, self._kinds()[0])
        with deterministic():
            traced = self.net(lq, return_trace=True, **options)
            null = self.net(lq, prior_source='null', return_trace=True, **options)
        stages = []
        for stage, without in zip(traced.stages, null.stages, strict=True):
            images = (to_float_rgb(t) for t in (stage.x_hat, stage.x_tilde, stage.x))
            effect = np.zeros(0), None
            if stage.prior is not None:
                effect = stage.prior[0].float().cpu().numpy(), to_float_rgb(without.x)
            stages.append(StageImages(*images, *effect))
        return Trace(to_float_rgb(lq), tuple(stages), to_float_rgb(traced.output))

    def _kinds(self) -> list[torch.dtype]:
        """Floating types of the network's parameters, the first of which is that of images."""
        kinds = (p.dtype for p in self.net.parameters() if p.is_floating_point())
        return [*dict.fromkeys(kinds)]

    def _options_of(self, lq: Tensor, given: Mapping[str, Any]) -> dict[str, Any]:
        """Keywords of the network that follow from the whole images, the same for every tile."""
        if 'degradation' in given or self.conditioning is None:
            return {}
        what = f'No degradation vector for {lq.shape[-1]}x{lq.shape[-2]} pixels'
        with telling_remedy(what, 'use --device cpu'), deterministic():
            return {'degradation': self.conditioning(lq.to(self.device))}

    def check_memory(self, height: int, width: int) -> None:
        """Raises TileError with the remedy where an image surely needs more than is free."""
        if self.tile is not None:
            height, width = min(height, self.tile), min(width, self.tile)
        free = free_memory(self.device)
        if free is None or height * width * _SURELY_ENOUGH <= free:
            return
        need = self._bytes_per_pixel * height * width
        if need > free:
            raise TileError(
                f'{width}x{height} pixels need about {need / 2**30:.1f} GiB of memory, and'
                f' {free / 2**30:.1f} GiB are free: {self._remedy()}.'
            )

    def _remedy(self) -> str:
        return 'use --tile 512 or less' if self.tile is None else 'lower --tile'

    @cached_property
    def _bytes_per_pixel(self) -> float:
        try:
            return bytes_per_pixel(self.net, self.channels)
        except ValueError:  # it has inputs of its own
            return 0.0

    def to_tensor(self, colour: np.ndarray) -> Tensor:
        """(H, W) or (H, W, 3) uint8 or uint16 -> (1, C, H, W) in [0, 1], C as the network has."""
        tensor = torch.from_numpy(np.atleast_3d(to_float(colour))).permute(2, 0, 1)
        if len(tensor) not in (1, self.channels):
            raise ValueError(
                f'The image has {len(tensor)} colour channels, but these weights restore images'
                f' with {self.channels}; convert it to grey first.'
            )
        return tensor.expand(self.channels, -1, -1)[None].contiguous()


def recognised(net: nn.Module, meta: Mapping[str, Any]) -> str:
    """What was made of weights that do not say which network they belong to."""
    kind, known = type(net), registered_networks()
    arguments = ', '.join(f'{key}: {value}' for key, value in meta['kwargs'].items())
    note = f'The weights were recognised as {meta["type"]} ({arguments}).'
    others = [k for k, c in known.items() if issubclass(c, kind) and c is not kind]
    others = [k for k in others if 'infer_kwargs' not in vars(known[k])]  # else other weights
    if others:
        note += (
            f' {" and ".join(others)} has the same weights and other statistics of large images:'
            f' give --opt file.yml with network_g: type: {others[0]} to use it.'
        )
    return note


def split_alpha(image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Colour (H, W) or (H, W, 3), and alpha (H, W) or None; ValueError: not of 8 or 16 bits."""
    kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
    if kind not in (np.uint8, np.uint16):
        raise ValueError(f'Images must be arrays of uint8 or uint16, got {kind}.')
    if image.ndim < 2 or 0 in image.shape or image.shape[2:] not in ((), (2,), (3,), (4,)):
        raise ValueError(f'Images must be (H, W) or (H, W, 2 to 4), got shape {image.shape}.')
    picture = Picture(image)
    return picture.opaque, picture.alpha


def to_float_rgb(tensor: Tensor) -> np.ndarray:
    """First of (B, C, H, W) -> (H, W, 3) float in [0, 1]."""
    image = tensor[0].float().clamp(0, 1).cpu()
    return image.expand(3, -1, -1).permute(1, 2, 0).numpy()


def deterministic():
    """Same kernels and precision every time, for a ``with`` statement."""
    return torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False)


def _device(device: str | torch.device) -> torch.device:
    if str(device) == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).cpu()  # meta has no data
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(
            f"device: {device} cannot be used here ({first_line(error)}); use 'auto' or 'cpu', or "
            f"run 'unfoldldm doctor' to see why a GPU is not seen."
        ) from error
    return chosen
