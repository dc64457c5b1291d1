"""What VLU-Net did to an image: prompts, gradient steps, and where CLIP looked."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import nn

from unfoldldm_basicsr.restoring.clip_attention import (
    ClipAttention,
    NoAttentionError,
    clip_attention,
)
from unfoldldm_basicsr.restoring.restorer import Restorer, deterministic, split_alpha, to_float_rgb
from unfoldldm_basicsr.restoring.tiling import TileError


class StageSteps(NamedTuple):
    """One gradient step of VLU-Net."""

    name: str
    weights: np.ndarray  # (N,) of the prompts, sum 1
    channels: int  # C, over which the maps are means
    residual: np.ndarray  # (h, w) mean |Phi(x) - y|
    step: np.ndarray  # (h, w) mean |what was subtracted from x|
    scale: int  # pixels of the image per pixel of the maps, in rows and columns


class VLUExplanation(NamedTuple):
    """What VLU-Net did to one image; ``lq``, ``output`` (H, W, 3) float RGB in [0, 1]."""

    lq: np.ndarray
    output: np.ndarray
    prompts: tuple[str, ...]  # names: the degradations if there are as many, else numbers
    stages: tuple[StageSteps, ...]
    attention: ClipAttention | None  # None for the reason attention_note
    attention_note: str


def can_explain(restorer: Restorer) -> bool:
    """Whether :func:`explain_vlunet` works: gradient steps that a degradation vector steers."""
    return restorer.conditioning is not None and bool(_gradient_steps(restorer.net))


@torch.no_grad()
def explain_vlunet(restorer: Restorer, image: np.ndarray) -> VLUExplanation:
    """Restores an image in one piece and watches its gradient steps; alpha is left out.

    Raises ValueError: out of memory, see :func:`reduce_image`.
    """
    conditioning = restorer.conditioning
    lq = restorer.to_tensor(split_alpha(image)[0]).to(restorer.device)
    size = (lq.shape[-2], lq.shape[-1])
    try:
        restorer.check_memory(*size)  # runs a copy of the network, which must not be watched
        with _watched(restorer, size) as stages:
            output = restorer.restore_tensor(lq)
    except TileError as error:
        raise ValueError(f'{error} There are no tiles here: lower --max-size.') from error
    with deterministic():
        try:
            attention, note = clip_attention(conditioning.embedding, lq), ''
        except NoAttentionError as error:
            attention, note = None, str(error)
    found, names = tuple(stages.values()), conditioning.classes
    count = len(found[0].weights)
    if count != len(names):
        names = tuple(f'prompt {number}' for number in range(1, count + 1))
    return VLUExplanation(to_float_rgb(lq), to_float_rgb(output), names, found, attention, note)


def _gradient_steps(net: nn.Module) -> dict[str, nn.Module]:
    modules, end = net.named_modules(), '.gradient_descent'
    return {name.removesuffix(end): module for name, module in modules if name.endswith(end)}


@contextmanager
def _watched(restorer: Restorer, size: tuple[int, int]) -> Iterator[dict[str, StageSteps]]:
    """Keeps mean maps of all gradient steps by stage, in the order in which they ran, cropped to an
    image of ``size`` (rows, columns).
    """
    found: dict[str, StageSteps] = {}
    padded = -(-size[1] // restorer.contract.size_multiple) * restorer.contract.size_multiple

    def keep(name: str, output: tuple) -> None:
        trace = output[1]
        scale = padded // trace.residual.shape[-1]
        rows, columns = (-(-side // scale) for side in size)
        residual, step = (
            maps[0, :, :rows, :columns].abs().mean(0).float().cpu().numpy()
            for maps in (trace.residual, trace.step)
        )
        weights, channels = trace.weights[0].float().cpu().numpy(), trace.residual.shape[1]
        found[name] = StageSteps(name, weights, channels, residual, step, scale)

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
        for name, module in _gradient_steps(restorer.net).items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def reduce_image(image: np.ndarray, max_size: int) -> np.ndarray:
    """Reduces an image to at most ``max_size`` (16 or more) pixels a side by averaging areas.

    This weakens noise and fine rain: what is shown then is the reduced image's own restoration.
    """
    if max_size < 16:
        raise ValueError(f'--max-size: at least 16 pixels, got {max_size}.')
    height, width = image.shape[:2]
    factor = max_size / max(height, width)
    if factor >= 1:
        return image
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
