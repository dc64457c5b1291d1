"""One stage of proximal-gradient unfolding, built from exchangeable parts.

    estimates = gradient_step(x, y)         data term
    z         = prior(estimates)            optional
    x         = proximal_step(estimates, z)

The parts are arguments, so that any unfolding network with this shape can take UnfoldLDM's gradient
step, its prior or its proximal step, and UnfoldLDM can take another's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unfoldldm_basicsr.archs.unfolding.degradation import Factor
from unfoldldm_basicsr.archs.unfolding.gradient_step_mgda import Estimates


class StagePrior(NamedTuple):
    """Priors of one stage, each (B, C_p) or None.

    Attributes:
        guide: what the proximal step uses.
        generated: what the diffusion produced, if it ran.
        target: what the diffusion should produce, if known.
    """

    guide: Tensor | None
    generated: Tensor | None = None
    target: Tensor | None = None


class StageTrace(NamedTuple):
    """What one stage produced; images (B, c, h, w).

    Attributes:
        x_hat, x_tilde: estimates after the holistic and the decomposed gradient step.
        W, M: degradation factors, or None where not estimated; as matrices ``W.dense()`` and
            ``M.dense().mT``.
        prior, generated, target: see :class:`StagePrior`; ``prior`` is the guide.
        x: the stage's output.
        embedding: (B, d_e) degradation embedding, or None.
    """

    x_hat: Tensor
    x_tilde: Tensor
    W: Factor | None
    M: Factor | None
    prior: Tensor | None
    generated: Tensor | None
    target: Tensor | None
    x: Tensor
    embedding: Tensor | None


class UnfoldTrace(NamedTuple):
    """``forward(..., return_trace=True)`` of an unfolding network guided by a prior.

    Attributes:
        output: (B, c, H, W), what forward returns without the trace.
        stages: one :class:`StageTrace` for each traced stage, images cropped to H x W.
        target_prior: (B, C_p) detached, one for each stage where they differ, or None.
    """

    output: Tensor
    stages: tuple[StageTrace, ...]
    target_prior: Tensor | tuple[Tensor, ...] | None


def unfolding_stage(
    gradient_step: nn.Module,
    prior: Callable[[Estimates], StagePrior],
    proximal_step: nn.Module,
    x: Tensor,
    y: Tensor,
    k: int = 0,
    train_steps: bool = True,
) -> tuple[Estimates, StagePrior, Tensor]:
    """Runs one stage with the ``k``-th step sizes of both parts.

    Args:
        gradient_step: (x, y, k) -> :class:`Estimates`.
        prior: estimates -> :class:`StagePrior`.
        proximal_step: (x_hat, x_tilde, guide, k) -> x.
        x, y: last estimate and observation, (B, c, h, w).
        train_steps: False records no gradients in both steps, only in the prior.

    Returns:
        The estimates, the priors, and the new x.
    """
    with torch.set_grad_enabled(train_steps and torch.is_grad_enabled()):
        estimates = gradient_step(x, y, k)
    priors = prior(estimates)
    with torch.set_grad_enabled(train_steps and torch.is_grad_enabled()):
        x = proximal_step(estimates.x_hat, estimates.x_tilde, priors.guide, k)
    return estimates, priors, x
