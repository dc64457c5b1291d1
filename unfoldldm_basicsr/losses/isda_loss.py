"""ISDA, the intra-stage consistency of UnfoldLDM's two gradient steps (arXiv 2511.18152).

    L_ISDA = 1 / (K - start + 1) sum_{k=start..K} w_k mean |x_hat_k - x_tilde_k|

It starts at stage 2: in stage 1 the degradation is least informed, and both steps start from y.
Norm and weights are not published; they are options here.
"""

from __future__ import annotations

from collections.abc import Sequence

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from unfoldldm_basicsr.common.registration import register

_CHOICES = {
    'norm': ('l1', 'l2'),
    'weighting': ('uniform', 'linear'),
    'stop_gradient': ('none', 'hat', 'tilde'),
}


@register(LOSS_REGISTRY)
class ISDALoss(nn.Module):
    """Consistency of the holistic and the decomposed estimate.

    Args:
        loss_weight: factor of the loss; the option files of UnfoldLDM take 0.01.
        start: first stage that counts, from 1.
        norm: 'l1' (mean absolute) or 'l2' (mean squared difference).
        weighting: 'uniform' (w_k = 1) or 'linear' (w_k = k / K).
        stop_gradient: which estimate is only a target: 'none', 'hat' or 'tilde'.

    Raises:
        ValueError: an unknown choice, or ``start`` below 1.
    """

    def __init__(
        self,
        loss_weight: float = 0.1,
        start: int = 2,
        norm: str = 'l1',
        weighting: str = 'uniform',
        stop_gradient: str = 'none',
    ):
        super().__init__()
        for name, value in (
            ('norm', norm),
            ('weighting', weighting),
            ('stop_gradient', stop_gradient),
        ):
            if value not in _CHOICES[name]:
                known = ', '.join(_CHOICES[name])
                raise ValueError(f"ISDALoss {name}: unknown value '{value}'. Known: {known}.")
        if start < 1:
            raise ValueError(f'ISDALoss start counts stages from 1, got {start}.')
        self.loss_weight, self.start = loss_weight, start
        self.norm, self.weighting, self.stop_gradient = norm, weighting, stop_gradient

    def forward(self, x_hats: Sequence[Tensor], x_tildes: Sequence[Tensor]) -> Tensor:
        """One (B, c, h, w) estimate of each kind for each stage -> scalar.

        Zero (with a graph) when no stage counts, so that all ranks log the same losses.
        """
        num_stages = len(x_hats)
        terms = []
        for k in range(self.start, num_stages + 1):
            hat, tilde = x_hats[k - 1].float(), x_tildes[k - 1].float()
            if self.stop_gradient == 'hat':
                hat = hat.detach()
            elif self.stop_gradient == 'tilde':
                tilde = tilde.detach()
            gap = hat - tilde
            term = gap.abs().mean() if self.norm == 'l1' else gap.square().mean()
            terms.append(term * (k / num_stages if self.weighting == 'linear' else 1.0))
        if not terms:
            return x_hats[-1].sum() * 0.0
        return self.loss_weight * sum(terms) / len(terms)
