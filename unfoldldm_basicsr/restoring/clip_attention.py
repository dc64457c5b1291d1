"""Where CLIP looks when it names a degradation, before and after the tuning of its adapters.

The backbone is frozen, so its attention itself is the same before and after; what changes is which
part of it matters for the answer. With A_h the attention of head h in the last block of the image
tower, c the degradation with the highest tuned score, and the contrast of its score

    s = l_c - mean_n l_n                      l: scores of the image for the N texts,

the relevance of image patch j is

    R_j = sum_h sum_i max(0, A_h[i, j] ds/dA_h[i, j]),   then divided by sum_j R_j.

The gradient is zero in all rows i that the embedding is not read from; for CLIP the sum over i is
therefore the row of its class token. Before: l = cosines of CLIP's image and text embeddings;
after: l = scores of the adapted ones. Both ask for the same c. The rule is that of Chefer, Gur,
Wolf, "Generic attention-model explainability", ICCV 2021 (arXiv 2103.15679), for the last block.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


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

    handle = layer.register_forward_hook(compute)
    try:
        yield found
    finally:
        handle.remove()
