"""The contract of one unfolding stage, and what a network shows of it.

    degradation = estimate(look(y), size)               what the gradient step knows of y
    estimates   = gradient_step(x, y, k, degradation)   data term
    z           = prior(estimates)                      optional
    x           = proximal_step(x, estimates, z)

Any unfolding network of this shape can take UnfoldLDM's gradient step, its prior or its proximal
step, and UnfoldLDM can take another's: look, estimate and forward make ``mgda``.
"""

from typing import NamedTuple

from pydantic import Field
from torch import Tensor

from unfoldldm_basicsr.archs.unfolding.degradation import Factor
from unfoldldm_basicsr.common.declaration import Options


class PriorVectorOptions(Options):
    """What every part that makes or takes a prior must know."""

    prior_dim: int = Field(64, ge=2)
    """Length C_p of the prior."""


class Estimates(NamedTuple):
    """What a gradient step hands on; what it does not estimate is None."""

    x_hat: Tensor  # (B, c, h, w), after the holistic step
    x_tilde: Tensor  # (B, c, h, w), after the decomposed step
    W: Factor | None = None  # of every image, with wm_window of every window; W.matrix
    M: Factor | None = None  # as a matrix M.matrix.mT


class StagePrior(NamedTuple):
    """Priors of one stage, each (B, C_p) or None."""

    guide: Tensor | None  # what the proximal step uses
    generated: Tensor | None = None  # what the diffusion produced, if it ran
    target: Tensor | None = None  # what it should produce, if known; without gradient


class StageTrace(NamedTuple):
    """What one stage produced: see :class:`Estimates` and :class:`StagePrior`."""

    x_hat: Tensor
    x_tilde: Tensor
    W: Factor | None
    M: Factor | None
    prior: Tensor | None  # the guide
    generated: Tensor | None
    target: Tensor | None
    x: Tensor  # (B, c, h, w), the stage's output


class UnfoldTrace(NamedTuple):
    """``forward(..., return_trace=True)`` of UnfoldLDM."""

    output: Tensor  # (B, c, H, W), what forward returns without the trace
    stages: tuple[StageTrace, ...]  # their images cropped to H x W
    target_prior: Tensor | None  # (B, C_p), detached
    start: Tensor  # (B, c, H, W), the degraded image as the first stage sees it, enlarged again
