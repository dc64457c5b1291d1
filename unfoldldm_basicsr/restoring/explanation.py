"""What VLU-Net did to an image: prompts, gradient steps, and where CLIP looked.

CLIP's backbone is frozen, so its attention itself is the same before and after the tuning of its
adapters; what changes is which part of it matters for the answer. With A_h the attention of head h
in the last block of the image tower, c the degradation with the highest tuned score, and the
contrast of its score

    s = l_c - mean_n l_n                      l: scores of the image for the N texts,

the relevance of image patch j is

    R_j = sum_h sum_i max(0, A_h[i, j] ds/dA_h[i, j]),   then divided by sum_j R_j.

The gradient is zero in all rows i that the embedding is not read from; for CLIP the sum over i is
therefore the row of its class token. Before: l = cosines of CLIP's image and text embeddings;
after: l = scores of the adapted ones. Both ask for the same c. The rule is that of Chefer, Gur,
Wolf, "Generic attention-model explainability", ICCV 2021 (arXiv 2103.15679), for the last block.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

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


class ClipAttention(NamedTuple):
    """Where CLIP looks. All maps are (g, g) float32 shares of the patches that sum to 1."""

    view: np.ndarray  # (S, S, 3) float RGB, the part of the image that CLIP sees
    texts: tuple[str, ...]  # N, that the image is compared with
    asked: int  # the one of the relevance
    attention: np.ndarray  # of the class token in the last block, mean over heads
    before: np.ndarray  # relevance for the text, by CLIP alone
    after: np.ndarray  # and by the tuned adapters
    scores_before: np.ndarray  # (N,) probabilities of the texts
    scores_after: np.ndarray


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

    def keep(name: str, _module: nn.Module, _inputs: tuple, output: tuple) -> None:
        trace = output[1]
        scale = padded // trace.residual.shape[-1]
        rows, columns = (-(-side // scale) for side in size)
        residual, step = (
            maps[0, :, :rows, :columns].abs().mean(0).float().cpu().numpy()
            for maps in (trace.residual, trace.step)
        )
        weights, channels = trace.weights[0].float().cpu().numpy(), trace.residual.shape[1]
        found[name] = StageSteps(name, weights, channels, residual, step, scale)

    with ExitStack() as hooks:
        for name, module in _gradient_steps(restorer.net).items():
            hooks.enter_context(module.register_forward_hook(partial(keep, name)))
        yield found


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


# ---- where CLIP looks ------------------------------------------------------------------------


class NoAttentionError(ValueError):
    """An embedding without attention to look at; the message says why."""


def clip_attention(embedding: nn.Module, lq: Tensor) -> ClipAttention:
    """Maps and scores of one image (1, 3, H, W), RGB in [0, 1], by a ``CLIPDegradationEmbedding``.

    Raises NoAttentionError: another embedding, or its image tower is no vision transformer.
    """
    clip = getattr(embedding, 'clip_model', None)
    if clip is None:
        raise NoAttentionError(
            f'No attention maps: {type(embedding).__name__} has no attention, only CLIP has.'
        )
    grid, layer = getattr(clip.visual, 'grid_size', None), _last_attention(clip.visual)
    view = embedding.preprocess(lq)
    with torch.enable_grad(), _opened(layer) as attention:
        features = clip.encode_image(view)
        cosines = F.normalize(features, dim=-1) @ F.normalize(embedding.encode_raw_texts()).T
        before = cosines * clip.logit_scale.exp()
        after = embedding.compare(embedding.ad_imageEncoder['adapter'](features))
        asked = int(after[0].argmax())
        weights = attention[0]
        maps = [relevance(logits[0], asked, weights, grid) for logits in (before, after)]
    classes = weights.detach()[0, :, 0].mean(0)  # the class token's row, all heads
    picture = (view * embedding.std + embedding.mean)[0].clamp(0, 1).permute(1, 2, 0)
    return ClipAttention(
        view=picture.cpu().numpy(),
        texts=tuple(embedding.class_texts),
        asked=asked,
        attention=_on_grid(classes, grid),
        before=maps[0],
        after=maps[1],
        scores_before=before[0].detach().softmax(0).cpu().numpy(),
        scores_after=after[0].detach().softmax(0).cpu().numpy(),
    )


def relevance(logits: Tensor, asked: int, weights: Tensor, grid: tuple[int, int]):
    """R of the formula above on the ``grid`` (rows, columns), float32; sums to 1, or all zero if
    nothing speaks for c = ``asked``. ``logits`` (N,) depend on the attention ``weights``
    (1, heads, L, L) over the class token and L - 1 patches.
    """
    score = logits[asked] - logits.mean() if len(logits) > 1 else logits[asked]
    (gradient,) = torch.autograd.grad(score, weights, retain_graph=True)
    return _on_grid((weights.detach() * gradient).clamp(min=0).sum((0, 1, 2)), grid)


def _on_grid(tokens: Tensor, grid: tuple[int, int]):
    """Values of the class token and the patches -> shares of the patches, as an array."""
    patches = tokens[1:].double()
    total = patches.sum()
    return (patches / total if total > 0 else patches).view(grid).float().cpu().numpy()


def _last_attention(visual: nn.Module) -> nn.MultiheadAttention:
    blocks = getattr(getattr(visual, 'transformer', None), 'resblocks', None)
    layer = getattr(blocks[-1], 'attn', None) if blocks else None
    if not isinstance(layer, nn.MultiheadAttention) or not hasattr(visual, 'class_embedding'):
        raise NoAttentionError(
            f'No attention maps: the image tower of this CLIP ({type(visual).__name__}) is not the'
            f' vision transformer with a class token that they are defined for.'
        )
    return layer


@contextmanager
def _opened(layer: nn.MultiheadAttention) -> Iterator[list[Tensor]]:
    """Lets a self-attention compute its output from weights that gradients can be taken of; yields
    a list that receives them, (B, heads, L, L), one entry per call.
    """
    found: list[Tensor] = []

    def compute(module: nn.MultiheadAttention, inputs: tuple[Tensor, ...], _output):
        x = inputs[0] if module.batch_first else inputs[0].transpose(0, 1)
        qkv = F.linear(x, module.in_proj_weight, module.in_proj_bias)
        q, k, v = rearrange(qkv, 'b l (part h c) -> part b h l c', part=3, h=module.num_heads)
        weights = (q @ k.mT / module.head_dim**0.5).softmax(-1).detach().requires_grad_()
        found.append(weights)
        x = module.out_proj(rearrange(weights @ v, 'b h l c -> b l (h c)'))
        return (x if module.batch_first else x.transpose(0, 1)), None

    with layer.register_forward_hook(compute):
        yield found
