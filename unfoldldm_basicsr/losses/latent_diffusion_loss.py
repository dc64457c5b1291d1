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

    def forward(self, generated_priors: Sequence[Tensor], target: Tensor | Sequence[Tensor]):
        """Generated priors (B, C_p) of all stages; the target (B, C_p), or one for each stage.

        No gradient reaches the target.

        Returns:
            A scalar.
        """
        targets = [target] * len(generated_priors) if isinstance(target, Tensor) else target
        terms = [
            (p.float() - t.detach().float()).abs().mean()
            for p, t in zip(generated_priors, targets, strict=True)
        ]
        return self.loss_weight * sum(terms) / len(terms)
