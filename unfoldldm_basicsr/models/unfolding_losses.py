"""What both phases of UnfoldLDM compute from the trace of a forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from basicsr.utils import get_root_logger
from torch import Tensor, nn

from unfoldldm_basicsr.common.errors import RunFailure

if TYPE_CHECKING:
    from unfoldldm_basicsr.archs.unfolding.stage import UnfoldTrace


def restoration_losses(
    trace: UnfoldTrace,
    gt: Tensor,
    cri_pix: nn.Module,
    cri_isda: nn.Module | None,
    stage_loss_weight: float,
) -> dict[str, Tensor]:
    """L_rec of the last stage, L_ISDA over the stages, and optionally L_rec of earlier stages.

    Args:
        trace: of the whole batch; images (B,c,H,W), as ``gt``.
        stage_loss_weight: weight of the mean pixel loss of the stages before the last; 0: none.

    Returns:
        Scalars in fp32: ``l_pix``, ``l_isda`` and ``l_stage`` where they are trained.
    """
    losses = {'l_pix': cri_pix(trace.output.float(), gt)}
    if cri_isda is not None:
        losses['l_isda'] = cri_isda(
            [stage.x_hat.float() for stage in trace.stages],
            [stage.x_tilde.float() for stage in trace.stages],
        )
    if stage_loss_weight > 0:
        earlier = [cri_pix(stage.x.float(), gt) for stage in trace.stages[:-1]]
        mean = sum(earlier) / len(earlier) if earlier else losses['l_pix'] * 0
        losses['l_stage'] = stage_loss_weight * mean
    return losses


@torch.no_grad()
def step_figures(trace: UnfoldTrace, lq: Tensor) -> dict[str, Tensor]:
    """Sizes of the gradient steps, averaged over the stages.

    Returns:
        ``step_size``: mean |x_hat_k - x_{k-1}|, in units of the image range; above 1 the learned
        step has diverged. ``isda_ratio``: mean |x_hat_k - x_tilde_k| relative to it; near 0 the
        two estimates have collapsed into one.
    """
    steps, gaps, before = [], [], lq
    for stage in trace.stages:
        steps.append((stage.x_hat.float() - before.float()).abs().mean())
        gaps.append((stage.x_hat.float() - stage.x_tilde.float()).abs().mean())
        before = stage.x
    step, gap = torch.stack(steps).mean(), torch.stack(gaps).mean()
    return {'step_size': step, 'isda_ratio': gap / step.clamp_min(1e-8)}


class StepWatch:
    """Warns when the gradient step is larger than the image range, and stops when it stays so.

    A single large step happens and recovers; only a run of them means that the training diverged.
    The largest mean step ``limit`` is in units of the image range.
    """

    def __init__(self, limit: float = 1.0, patience: int = 10):
        self.limit, self.patience, self.in_a_row = limit, patience, 0

    def observe(self, step_size: float, current_iter: int) -> None:
        """Raises RunFailure after ``patience`` observations in a row above the limit."""
        self.in_a_row = self.in_a_row + 1 if step_size > self.limit else 0
        if not self.in_a_row:
            return
        message = (
            f'Iteration {current_iter}: the holistic gradient step moves the image by '
            f'{step_size:.2f} on average, more than its range, for {self.in_a_row} logged '
            'iterations in a row'
        )
        if self.in_a_row >= self.patience:
            raise RunFailure(
                f'{message}: training stopped. The last checkpoints may be affected; go back to '
                'one from before the first such warning, with a lower optim_g.lr or grad_clip_norm.'
            )
        get_root_logger().warning(f'{message}; at {self.patience} the training stops.')
