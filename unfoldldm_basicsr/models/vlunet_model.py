"""VLU-Net: all-in-one restoration steered by a degradation vector (CVPR 2025, arXiv 2503.16930).

L = |VLUNet(lq, E(lq, label)) - gt|_1,   E frozen (CLIP, label) or trained jointly (learned)
"""

from __future__ import annotations

from basicsr.utils.registry import MODEL_REGISTRY

from unfoldldm_basicsr.common.registration import register
from unfoldldm_basicsr.models import conditioning
from unfoldldm_basicsr.training.options import RULES, SECTIONS
from unfoldldm_basicsr.training.restoration_model import RestorationModel


@register(MODEL_REGISTRY)
class VLUNetModel(RestorationModel):
    """Trains VLUNet with a CLIP, label or learned degradation embedding (``network_e``).

    The recipe of the paper in options: L1Loss, AdamW, ``warmup_iter`` and TrueCosineAnnealingLR.
    What is checked: the embedding's length against ``network_g.embed_dim``, the order of
    ``degradation_names`` in all data and in the weights, the size of a label table against it. The
    number of prompts ``network_g.de_dim`` is free: prompts are a bank that the vector mixes, not a
    list of classes. ``val.degradation_override`` validates with the vector of another degradation.
    """

    sections = {**SECTIONS, **conditioning.SECTIONS}
    rules = (*RULES, *conditioning.RULES)
    conditioning_class = conditioning.Conditioning
