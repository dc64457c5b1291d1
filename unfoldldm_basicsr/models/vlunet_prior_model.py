"""VLU-Net guided by a latent prior, in the two phases of UnfoldLDM.

    Phase I    L = L_rec,                        P = PI(x_gt) guides the last stage
    Phase II   II-a   L = L_diff                 PI' and f_theta alone
               II-b   L = L_rec + L_diff         guided by the generated prior

There is one gradient step per stage and one stage that shows images, so UnfoldLDM's consistency of
two gradient steps (ISDA) and its losses of earlier stages have nothing to act on.
"""

from __future__ import annotations

from collections.abc import Iterator

from basicsr.utils.registry import MODEL_REGISTRY

from unfoldldm_basicsr.common.declaration import Problem
from unfoldldm_basicsr.common.registration import register
from unfoldldm_basicsr.models import conditioning
from unfoldldm_basicsr.models import unfoldldm_phase2_model as phase2
from unfoldldm_basicsr.models.unfolding_losses import correction_figures
from unfoldldm_basicsr.models.unfoldldm_phase1_model import Phase1Val, UnfoldLDMPhase1Model
from unfoldldm_basicsr.options.run import Run


class PriorPhase1Val(Phase1Val, conditioning.ConditionedVal):
    """``val``."""


class PriorPhase2Val(phase2.Phase2Val, conditioning.ConditionedVal):
    """``val``."""


class PriorPhase2Path(phase2.Phase2Path, conditioning.ConditionedPath):
    """``path``."""


def one_stage_is_used(run: Run) -> Iterator[Problem]:
    """The network has one stage with one gradient step."""
    network = run.network_sections['network_g']
    if run.is_train and run.train.isda_opt:
        message = 'ties two gradient steps of a stage, and VLU-Net takes one; remove it.'
        yield Problem('train.isda_opt', message)
    if run.is_train and run.train.stage_loss_weight:
        message = 'weights stages before the last, and only the last shows an image; remove it.'
        yield Problem('train.stage_loss_weight', message)
    if network.get('corrector') is False:
        for key in network:
            if str(key).startswith('corrector_'):
                message = 'has no effect with corrector: false; remove it.'
                yield Problem(f'network_g.{key}', message)
    if run.val.prior_source == 'shuffled' and run.val.degradation_override:
        message = 'changes the prior as well with prior_source: shuffled; choose one of them.'
        yield Problem('val.degradation_override', message)


def embedding_has_no_limit(run: Run) -> Iterator[Problem]:
    """Phase II trains no embedding."""
    limits = run.train.grad_clip_norm if run.is_train else None
    if isinstance(limits, dict) and conditioning.GROUP in limits:
        message = 'the embedding is frozen in Phase II; remove its limit.'
        yield Problem('train.grad_clip_norm', message)


@register(MODEL_REGISTRY)
class VLUNetPriorPhase1Model(UnfoldLDMPhase1Model):
    """Trains ``VLUNetPrior(phase=1)`` on L1 with the prior of the ground truth.

    ``path.pretrain_network_g`` may name weights of this network, or of a plain VLU-Net of the same
    size: then the host starts from these and the rest anew, which changes nothing at first.
    Validation and its names are those of ``UnfoldLDMPhase1Model``.
    """

    sections = {**UnfoldLDMPhase1Model.sections, **conditioning.SECTIONS, 'val': PriorPhase1Val}
    rules = (*UnfoldLDMPhase1Model.rules, *conditioning.RULES, one_stage_is_used)
    conditioning_class = conditioning.Conditioning
    figures = staticmethod(correction_figures)


@register(MODEL_REGISTRY)
class VLUNetPriorPhase2Model(phase2.UnfoldLDMPhase2Model):
    """Trains ``VLUNetPrior(phase=2)`` from Phase I's weights (``path.pretrain_network_phase1``).

    The degradation embedding comes with that file and stays as it is, whichever it is: in II-a no
    loss depends on it, and the vectors that PI was trained beside are to be kept.
    """

    sections = {
        **phase2.UnfoldLDMPhase2Model.sections,
        **conditioning.SECTIONS,
        'path': PriorPhase2Path,
        'val': PriorPhase2Val,
    }
    rules = (
        embedding_has_no_limit,
        *phase2.UnfoldLDMPhase2Model.rules,
        *conditioning.RULES,
        one_stage_is_used,
    )
    conditioning_class = conditioning.Conditioning
    embedding_may_train = False
    figures = staticmethod(correction_figures)
