"""VLU-Net guided by a latent prior, in the two phases of UnfoldLDM.

    Phase I    L = L_rec,                        P = PI(x_gt) guides the last stage
    Phase II   II-a   L = L_diff                 PI' and f_theta alone
               II-b   L = L_rec + L_diff         guided by the generated prior

There is one gradient step per stage and one stage that shows images, so UnfoldLDM's consistency of
two gradient steps (ISDA) and its losses of earlier stages have nothing to act on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from basicsr.utils.registry import MODEL_REGISTRY

from unfoldldm_basicsr.common.registration import register
from unfoldldm_basicsr.models.conditioning_options import CONDITIONING_OPTION_KEYS
from unfoldldm_basicsr.models.degradation_conditioning import DegradationConditioning
from unfoldldm_basicsr.models.unfoldldm_phase1_model import UnfoldLDMPhase1Model
from unfoldldm_basicsr.models.unfoldldm_phase2_model import UnfoldLDMPhase2Model
from unfoldldm_basicsr.training.model_options import Problems, merged, section_of
from unfoldldm_basicsr.training.restoration_model import Losses


class OneStage:
    """What differs from UnfoldLDM's phases: the network has one stage with one gradient step."""

    @classmethod
    def check_options(cls, opt: Mapping[str, Any]) -> Problems:
        problems = super().check_options(opt)
        train, val = section_of(opt, 'train'), section_of(opt, 'val')
        reasons = {
            'isda_opt': 'ties two gradient steps of a stage, and VLU-Net takes one; remove it.',
            'stage_loss_weight': 'weights stages before the last, and only the last shows an '
            'image; remove it.',
        }
        problems += [(f'train.{key}', text) for key, text in reasons.items() if train.get(key)]
        network = section_of(opt, 'network_g')
        if network.get('corrector') is False:
            unused = [key for key in network if str(key).startswith('corrector_')]
            message = 'has no effect with corrector: false; remove it.'
            problems += [(f'network_g.{key}', message) for key in unused]
        if val.get('prior_source') == 'shuffled' and val.get('degradation_override'):
            message = 'changes the prior as well with prior_source: shuffled; choose one of them.'
            problems.append(('val.degradation_override', message))
        return problems

    @torch.no_grad()
    def trace_figures(self, trace, lq, current_iter: int) -> Losses:
        """``correction``: mean |x - x~|, what OCFormer changes, in the iterations that are logged.

        The step |x^ - lq| is not watched: x^ has no loss of its own, so its size means nothing.
        """
        corrected = self.get_bare_model(self.net_g).corrector is not None
        if not corrected or current_iter % self.opt['logger']['print_freq']:
            return {}
        stage = trace.stages[-1]
        return {'correction': (stage.x.float() - stage.x_tilde.float()).abs().mean()}


@register(MODEL_REGISTRY)
class VLUNetPriorPhase1Model(DegradationConditioning, OneStage, UnfoldLDMPhase1Model):
    """Trains ``VLUNetPrior(phase=1)`` on L1 with the prior of the ground truth.

    ``path.pretrain_network_g`` may name weights of this network, or of a plain VLU-Net of the same
    size: then the host starts from these and the rest anew, which changes nothing at first.
    Validation and its names are those of ``UnfoldLDMPhase1Model``.
    """

    option_keys = merged(UnfoldLDMPhase1Model.option_keys, CONDITIONING_OPTION_KEYS)


@register(MODEL_REGISTRY)
class VLUNetPriorPhase2Model(DegradationConditioning, OneStage, UnfoldLDMPhase2Model):
    """Trains ``VLUNetPrior(phase=2)`` from Phase I's weights (``path.pretrain_network_phase1``).

    The degradation embedding comes with that file and stays as it is, whichever it is: in II-a no
    loss depends on it, and the vectors that PI was trained beside are to be kept.
    """

    option_keys = merged(UnfoldLDMPhase2Model.option_keys, CONDITIONING_OPTION_KEYS)
    embedding_may_train = False

    @classmethod
    def check_options(cls, opt: Mapping[str, Any]) -> Problems:
        problems = super().check_options(opt)
        limits = section_of(opt, 'train').get('grad_clip_norm')
        if isinstance(limits, Mapping) and 'embedding' in limits:
            message = 'the embedding is frozen in Phase II; remove its limit.'
            problems.append(('train.grad_clip_norm', message))
        return problems
