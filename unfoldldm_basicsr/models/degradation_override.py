"""Validation with the degradation vector of another degradation, to see what the vector does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from unfoldldm_basicsr.data.loading import read_item
from unfoldldm_basicsr.training.batches import Batch

WRONG = 'wrong'


class DegradationOverride:
    """Chooses the item whose degradation vector an item of the validation set gets.

    A label embedding is told another label. An embedding that looks at images is shown an item of
    the other degradation in its place: the one at the same position among its own, which in a
    mixture over the same photos is the same photo, degraded otherwise.

    ``choice`` is the name of the degradation, or 'wrong': for each item the next degradation in the
    order of ``names`` (for embeddings of images, the next that the set contains).
    """

    def __init__(self, choice: str, names: Sequence[str], needs_label: bool):
        self.choice, self.names, self.needs_label = choice, list(names), needs_label
        self._members: dict[int, dict[int, list[int]]] = {}

    @property
    def label(self) -> dict[str, str]:
        """Prefix of the scores, and the same in words."""
        prefix = 'wrong_' if self.choice == WRONG else f'as_{self.choice}_'
        whose = 'the next degradation' if self.choice == WRONG else self.choice
        note = f' (ablation: every image is restored with the degradation vector of {whose})'
        return {'prefix': prefix, 'note': note}

    def stand_in(self, dataset: Dataset, index: int, batch: Batch) -> dict[str, Tensor]:
        """``lq`` (1, 3, H, W) and ``degradation`` (1,) that the embedding gets for an item.

        ``batch`` is the item as a batch of one.

        Raises:
            ValueError: the items have no label, or the set has none of the degradation.
        """
        if 'degradation' not in batch or not hasattr(dataset, 'label_of'):
            raise ValueError(
                'val.degradation_override needs a validation set that knows the degradations of '
                'its images, such as MixedDegradationDataset.'
            )
        label, count = int(batch['degradation'][0]), len(self.names)
        if self.choice == WRONG:
            wanted = [(label + step) % count for step in range(1, count)]
        else:
            wanted = [self.names.index(self.choice)]
        if self.needs_label:
            return {'lq': batch['lq'], 'degradation': torch.tensor(wanted[:1])}
        if id(dataset) not in self._members:
            labels = [dataset.label_of(place) for place in range(len(dataset))]
            self._members[id(dataset)] = {
                other: [place for place, found in enumerate(labels) if found == other]
                for other in set(labels)
            }
        members = self._members[id(dataset)]
        present = [other for other in wanted if other in members]
        if not present:
            raise ValueError(
                f'val.degradation_override: {self.choice}: the validation set has no image with '
                f'{" or ".join(self.names[other] for other in wanted)} to take the vector from.'
            )
        others = members[present[0]]
        item = read_item(dataset, others[members[label].index(index) % len(others)])
        return {'lq': item['lq'][None], 'degradation': torch.tensor(present[:1])}
