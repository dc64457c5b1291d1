"""L_diff of UnfoldLDM: 1/K sum_k mean |P_hat_k - stopgrad(P)|, at the end of the chain."""

from __future__ import annotations

from collections.abc import Sequence

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from unfoldldm_basicsr.common.registration import register


@register(LOSS_REGISTRY)
class LatentDiffusionLoss(nn.Module):
    """Mean absolute error between generated priors and the teacher's prior.

    Args:
        loss_weight: factor of the loss.
    """

    def __init__(self, loss_weight: float = 1.0):
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, generated_priors: Sequence[Tensor], target: Tensor):
        """Generated priors of all stages and their target, each (B, C_p); a scalar.

        No gradient reaches the target.
        """
        target = target.detach().float()
        terms = [(prior.float() - target).abs().mean() for prior in generated_priors]
        return self.loss_weight * sum(terms) / len(terms)
