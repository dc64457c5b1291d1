"""VLU-Net's degradation-aware gradient step on features (D-GDM).

    a      = softmax(W_d d)                          weights of the learned prompts
    P      = resize(sum_n a_n prompt_n)
    x     <- x - r Phi^T( Phi(x; P) - y )

Phi is channel cross-attention from x (query, value) to the prompt (key), Phi^T a channel
self-attention, r one learned number. "Vision-Language Gradient Descent-driven All-in-One Deep
Unfolding Networks", CVPR 2025 (arXiv 2503.16930), section 3; key names of the released code.

Shapes: B batch, C channels, N prompts, E entries of the degradation vector d, p prompt channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfoldldm_basicsr.archs.layers.attention import (
    TransposedSelfAttention,
    attend_and_project,
    channel_attention_map,
)
from unfoldldm_basicsr.archs.layers.convolution import separable_parts
from unfoldldm_basicsr.archs.layers.layout import to_quick_layout

PROMPT_SIDE = 96  # rows and columns of the prompts at the full resolution
NUM_HEADS = 2


class GradientStepTrace(NamedTuple):
    """What one gradient step did."""

    weights: Tensor  # (B, N) weights a of the prompts, rows sum to 1
    residual: Tensor  # (B, C, H, W) Phi(x) - y
    step: Tensor  # (B, C, H, W) what was subtracted from x


class PromptCrossAttention(nn.Module):
    """Phi: channel attention with queries and values from x, keys from the prompt."""

    def __init__(self, dim: int, prompt_dim: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(NUM_HEADS, 1, 1))
        self.qv = nn.Conv2d(dim, 2 * dim, 1, bias=False)
        self.qv_dwconv = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim, bias=False)
        self.k = nn.Conv2d(prompt_dim, dim, 1, bias=False)
        self.k_dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        """x (B, C, H, W), prompt (B, p, H, W) -> (B, C, H, W)."""
        q, v = separable_parts(x, self.qv, self.qv_dwconv, 2)
        k = self.k_dwconv(self.k(prompt))
        attention = channel_attention_map(q, k, self.temperature)
        return attend_and_project(attention, v, self.project_out)


class DGDM(nn.Module):
    """The gradient step of level s = 1..4, with N = ``de_dim`` prompts of (C // 10) * s channels
    and 96 // s rows; C = ``dim`` is at least 10 and even, E = ``embed_dim``.
    """

    def __init__(self, dim: int, level: int, de_dim: int, embed_dim: int = 512) -> None:
        super().__init__()
        prompt_dim, side = dim // 10 * level, PROMPT_SIDE // level
        self.r = nn.Parameter(torch.ones(1))
        self.prompt_param = nn.Parameter(torch.rand(1, de_dim, prompt_dim, side, side))
        self.phi = PromptCrossAttention(dim, prompt_dim)
        self.phit = TransposedSelfAttention(dim, NUM_HEADS)
        self.linear = nn.Linear(embed_dim, de_dim)

    def _apply(self, fn, recurse: bool = True) -> 'DGDM':
        """Shows the bank to ``fn`` as a matrix: channels last is undefined for five dimensions."""

        def apply_flat(tensor: Tensor) -> Tensor:
            return fn(tensor.flatten(1)).view(tensor.shape) if tensor.ndim == 5 else fn(tensor)

        return super()._apply(apply_flat, recurse)

    def combine_prompts(self, degradation: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """d (B, E) and the (H, W) wanted -> prompt (B, p, H, W) and its weights (B, N), without a
        copy of the bank per image.
        """
        logits = self.linear(degradation)
        weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        bank = self.prompt_param[0]
        prompt = (weights.to(bank.dtype) @ bank.flatten(1)).view(-1, *bank.shape[1:])
        prompt = to_quick_layout(prompt)
        return F.interpolate(prompt, size, mode='bilinear', align_corners=False), weights

    def forward(
        self, x: Tensor, y: Tensor, degradation: Tensor
    ) -> tuple[Tensor, GradientStepTrace]:
        """Features x of the estimate and y of the observation (B, C, H, W), d (B, E) -> new x and
        what happened.
        """
        prompt, weights = self.combine_prompts(degradation, x.shape[-2:])
        residual = self.phi(x, prompt) - y
        step = self.r * self.phit(residual)
        return x - step, GradientStepTrace(weights, residual, step)
