"""The losses of UnfoldLDM beside the pixel loss (arXiv 2511.18152).

    L_ISDA = 1 / (K - start + 1) sum_{k=start..K} mean |x_hat_k - x_tilde_k|
    L_diff = 1 / K sum_{k=1..K} mean |P_hat_k - stopgrad(P)|

ISDA starts at stage 2: in stage 1 the degradation is least informed, and both steps start from y.
The norm is not published; it is an option here. L_diff counts at the end of the diffusion chain.
"""

from collections.abc import Sequence

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from unfoldldm_basicsr.common.suggest import check_choice


@LOSS_REGISTRY.register()
class ISDALoss(nn.Module):
    """Intra-stage consistency (ISDA): the holistic and the decomposed estimate of a stage agree.

    Args:
        loss_weight: factor of the loss; 0.01 in the option files that use it (docs/findings.md).
        start: first stage that counts, from 1.
        norm: 'l1' (mean absolute) or 'l2' (mean squared difference).

    Raises ValueError: an unknown norm, or ``start`` below 1.
    """

    def __init__(self, loss_weight: float = 0.1, start: int = 2, norm: str = 'l1'):
        super().__init__()
        check_choice('ISDALoss norm', norm, ('l1', 'l2'))
        if start < 1:
            raise ValueError(f'ISDALoss start counts stages from 1, got {start}.')
        self.loss_weight, self.start, self.norm = loss_weight, start, norm

    def forward(self, x_hats: Sequence[Tensor], x_tildes: Sequence[Tensor]) -> Tensor:
        """One (B, c, h, w) estimate of each kind for each stage -> scalar.

        Zero (with a graph) when no stage counts, so that all ranks log the same losses.
        """
        terms = []
        for hat, tilde in list(zip(x_hats, x_tildes, strict=True))[self.start - 1 :]:
            gap = hat.float() - tilde.float()
            terms.append(gap.abs().mean() if self.norm == 'l1' else gap.square().mean())
        if not terms:
            return x_hats[-1].sum() * 0.0
        return self.loss_weight * sum(terms) / len(terms)


@LOSS_REGISTRY.register()
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
