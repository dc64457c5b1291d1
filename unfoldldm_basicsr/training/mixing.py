"""Mixing the pairs of a training batch, as the option files of Restormer ask for it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

KEYS = ('mixup', 'mixup_beta', 'use_identity')


class MixUp:
    """Blends every pair of a batch with another one: a lq_i + (1 - a) lq_j, and gt alike.

    One share a ~ Beta(mixup_beta, mixup_beta) and one order of partners for the whole batch, drawn
    from the seed, the iteration and the rank, so that a resumed run repeats them. Other entries of
    the batch (paths, labels) stay those of pair i.

    Args:
        mixup_beta: both parameters of the beta distribution, above 0.
        use_identity: leaves every second batch, on average, as it is.
        seed: seed of the run.
        rank: rank of this process.
    """

    def __init__(
        self, *, mixup_beta: float = 1.2, use_identity: bool = True, seed: int = 0, rank: int = 0
    ):
        self.mixup_beta = mixup_beta
        self.use_identity = use_identity
        self.seed = seed
        self.rank = rank

    def __call__(self, batch: Mapping[str, Any], current_iter: int) -> dict[str, Any]:
        """Mixes ``lq`` and ``gt`` (B,C,H,W) of a batch; returns a new dict."""
        batch = dict(batch)
        draw = random.Random(f'mixup/{self.seed}/{current_iter}/{self.rank}')
        if self.use_identity and draw.random() < 0.5:
            return batch
        share = draw.betavariate(self.mixup_beta, self.mixup_beta)
        size = batch['lq'].shape[0]
        partners = draw.sample(range(size), size)
        for key in ('lq', 'gt'):
            batch[key] = share * batch[key] + (1 - share) * batch[key][partners]
        return batch


def build_mixing(mixing_augs: Mapping[str, Any] | None, seed: int, rank: int) -> MixUp | None:
    """What ``train.mixing_augs`` describes; None where it is missing or switched off."""
    options = dict(mixing_augs or {})
    if not options.pop('mixup', False):
        return None
    return MixUp(**options, seed=seed, rank=rank)


def check_mixing(mixing_augs: Any) -> list[tuple[str, str]]:
    """Problems of ``train.mixing_augs`` as (key path below ``train``, message)."""
    if not isinstance(mixing_augs, Mapping):
        return [('mixing_augs', f'must be a section with {", ".join(KEYS)}, got {mixing_augs!r}.')]
    problems = [
        (f'mixing_augs.{key}', f'is not an option; known: {", ".join(KEYS)}.')
        for key in mixing_augs
        if key not in KEYS
    ]
    for key in ('mixup', 'use_identity'):
        if not isinstance(mixing_augs.get(key, True), bool):
            problems.append((f'mixing_augs.{key}', f'must be true or false: {mixing_augs[key]!r}.'))
    beta = mixing_augs.get('mixup_beta', 1.2)
    if isinstance(beta, bool) or not isinstance(beta, int | float) or not beta > 0:
        problems.append(('mixing_augs.mixup_beta', f'must be a number above 0, got {beta!r}.'))
    return problems
