"""VLU-Net: all-in-one restoration steered by a degradation vector (CVPR 2025, arXiv 2503.16930).

L = |VLUNet(lq, E(lq, label)) - gt|_1,   E frozen (CLIP, label) or trained jointly (learned)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn
from torch.utils.data import Dataset

from unfoldldm_basicsr.common.registration import register
from unfoldldm_basicsr.models import conditioning
from unfoldldm_basicsr.training.batches import Batch
from unfoldldm_basicsr.training.evaluation import Evaluator
from unfoldldm_basicsr.training.networks import TrainedNetwork
from unfoldldm_basicsr.training.optimisation import Groups
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
    network_inputs = ('degradation',)

    @classmethod
    def trained_groups(cls, networks: Mapping[str, nn.Module]) -> Groups:
        groups, embedding = super().trained_groups(networks), networks.get('network_e')
        return groups if embedding is None else groups | conditioning.trained_group(embedding)

    def trained_network(self, bare: nn.Module) -> TrainedNetwork:
        network = super().trained_network(bare)
        self.conditioning = conditioning.Conditioning(self.run, self.device)
        self.groups = self.groups | self.conditioning.groups
        return network

    @property
    def networks(self) -> dict[str, TrainedNetwork]:
        return super().networks | {'net_e': self.conditioning.network}

    def start_averages(self) -> None:
        self.conditioning.start_average()
        super().start_averages()

    def network_arguments(self, batch: Batch) -> dict[str, Any]:
        return {'degradation': self.conditioning(batch)}

    def build_evaluator(self, **settings: Any) -> Evaluator:
        return super().build_evaluator(**self.conditioning.label, **settings)

    def validation_extras(self, dataset: Dataset, index: int, batch: Batch) -> Batch:
        """With ``val.degradation_override``: whose vector the item gets."""
        if self.run.val.degradation_override is None:
            return {}
        return {'stand_in': self.conditioning.stand_in(dataset, index, batch)}

    def checkpoint_extras(self) -> dict[str, Any]:
        return self.conditioning.record()
