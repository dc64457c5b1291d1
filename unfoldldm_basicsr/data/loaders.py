"""Order of the training images, and what tells one training set from another."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping

import torch
from torch.utils.data import Dataset

from unfoldldm_basicsr.data.items import SeededIndex, draw_seed


def no_full_batch(images: int, samples: int, batch: int) -> str:
    """Message for a batch that the data cannot fill."""
    factor = math.ceil(batch / max(samples, 1))
    return (
        f'{images} images give each process {samples} samples per epoch, less than one batch of '
        f'{batch}, so no step would be made. Lower it, or multiply dataset_enlarge_ratio by '
        f'{factor}.'
    )


def fingerprint(dataset: Dataset) -> dict[str, int | str]:
    """What tells one training set from another: number of images, and a hash of their names.

    Data sets of this package give theirs (``fingerprint()``), with sizes.
    """
    if hasattr(dataset, 'fingerprint'):
        return dataset.fingerprint()
    paths = getattr(dataset, 'paths', [])
    entries = [list(p.values()) if isinstance(p, Mapping) else [p] for p in paths]
    names = '\n'.join(os.path.basename(str(path)) for entry in entries for path in entry)
    return {'images': len(dataset), 'sha256': hashlib.sha256(names.encode()).hexdigest()}


class SeededSampler(torch.utils.data.Sampler):
    """Order of the images of each epoch, a function of seed and epoch only.

    Like BasicSR's ``EnlargedSampler`` (every rank its share of one permutation, the data repeated
    ``ratio`` times), except that ``seed`` takes part in the permutation, and that every index
    carries the seed of its own draw, a function of seed, epoch and place in the permutation.
    """

    def __init__(self, dataset: Dataset, num_replicas: int, rank: int, ratio: float, seed: int):
        self.dataset, self.num_replicas, self.rank, self.seed = dataset, num_replicas, rank, seed
        self.epoch = 0
        self.num_samples = math.ceil(len(dataset) * ratio / num_replicas)
        self._first = 0, 0

    def start_at(self, epoch: int, samples: int) -> None:
        """The run starts in ``epoch``, whose first ``samples`` (of each rank) are used already."""
        self.epoch = epoch
        self._first = epoch, samples

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch
        used = self._first[1] if epoch == self._first[0] else 0
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.num_samples * self.num_replicas, generator=generator)
        order %= len(self.dataset)
        for position in range(used * self.num_replicas + self.rank, len(order), self.num_replicas):
            yield SeededIndex(int(order[position]), draw_seed(self.seed, epoch, position))

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
