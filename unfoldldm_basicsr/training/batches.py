"""What is done with the batches of a loader before and in a step: cropped, mixed, sliced."""

import random
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate, pairwise
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.utils._pytree import tree_map_only

from unfoldldm_basicsr.common.declaration import Options, Tuple
from unfoldldm_basicsr.common.sections import Positive

Batch = dict[str, Any]


def to_device(batch: Mapping[str, Any], device: torch.device) -> Batch:
    """The tensors of a batch, also those inside of its entries, on a device."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=True), dict(batch))


def slices_of(batch: Batch, parts: int) -> Iterator[tuple[Batch, float]]:
    """Cuts a batch along its first dimension into ``parts`` slices of nearly equal size.

    There are no more of them than images.

    Yields:
        A slice and its share of the batch; losses that are means over the batch, weighted by the
        shares, sum to the loss of the whole batch.
    """
    size = batch['lq'].shape[0]
    parts = min(parts, size)
    for start, stop in pairwise(size * i // parts for i in range(parts + 1)):
        yield _take(batch, start, stop), (stop - start) / size


def _take(batch: Batch, start: int, stop: int) -> Batch:
    if start == 0 and stop == batch['lq'].shape[0]:
        return dict(batch)  # a project's own entries may be of any length
    cut = Tensor | list | tuple
    return {k: v[start:stop] if isinstance(v, cut) else v for k, v in batch.items()}


class ProgressiveOptions(Options):
    """``train.progressive``: patch and batch sizes that change during training."""

    iters: Tuple[Positive]
    """Length of each phase in iterations; the last one goes on for ever."""
    gt_sizes: Tuple[Positive]
    """Patch size of each phase."""
    mini_batch_sizes: Tuple[Positive]
    """Batch size per GPU of each phase."""


class MixingOptions(Options):
    """``train.mixing_augs``: mixed pairs, as the option files of Restormer ask for them."""

    mixup: bool = False
    """Blend every pair of a batch with another one."""
    mixup_beta: Annotated[float, Field(gt=0)] = 1.2
    """Both parameters of the Beta distribution that the share is drawn from."""
    use_identity: bool = False
    """Leave every second batch, on average, as it is."""


def prepare(batch: Batch, train: Options, seed: int, current_iter: int, rank: int) -> Batch:
    """What section ``train`` makes of a batch of the loader before a step.

    What is drawn follows from seed, iteration and rank alone, so that a resumed run repeats it.

    Raises ValueError: the batch is no pair of equal sizes, or too small for ``train.progressive``.
    """
    if 'gt' not in batch:
        raise ValueError('datasets.train gives no gt; training needs pairs.')
    lq, gt = (tuple(batch[key].shape) for key in ('lq', 'gt'))
    if (lq[0], *lq[2:]) != (gt[0], *gt[2:]):  # two views of a sensor have more channels
        raise ValueError(
            f'lq {lq} and gt {gt} differ in size; restoration needs equal sizes (scale: 1).'
        )
    place = f'{seed}/{current_iter}/{rank}'
    if train.progressive is not None:
        batch = smaller(batch, train.progressive, current_iter, random.Random(place))
    if train.mixing_augs is not None and train.mixing_augs.mixup:
        batch = mixed(batch, train.mixing_augs, random.Random(f'mixup/{place}'))
    if train.use_channels_last:
        for key in ('lq', 'gt'):
            batch[key] = batch[key].contiguous(memory_format=torch.channels_last)
    return batch


def smaller(
    batch: Batch, options: ProgressiveOptions, current_iter: int, draw: random.Random
) -> Batch:
    """Patch and batch sizes that change during training (Restormer's progressive learning).

    The loader delivers the largest patch and the largest batch of the run; the first items of the
    batch (``lq``, ``gt``: (B,C,H,W)) are kept and one window, the same for the whole batch, is cut
    out of the patches, which lie at random places already.
    """
    phase = bisect_left(list(accumulate(options.iters))[:-1], current_iter)
    gt_size, mini_batch_size = options.gt_sizes[phase], options.mini_batch_sizes[phase]
    h, w = batch['lq'].shape[2:]
    if min(h, w) < gt_size:
        raise ValueError(
            f'train.progressive asks for patches of {gt_size} at iteration {current_iter} but the '
            f'loader gives {h}x{w}: datasets.train.gt_size must be the largest of the schedule.'
        )
    batch = _take(batch, 0, mini_batch_size)  # or fewer, as the loader gives
    top, left = draw.randint(0, h - gt_size), draw.randint(0, w - gt_size)
    for key in ('lq', 'gt'):
        batch[key] = batch[key][..., top : top + gt_size, left : left + gt_size]
    return batch


def mixed(batch: Batch, options: MixingOptions, draw: random.Random) -> Batch:
    """Blends every pair of a batch with another one: a lq_i + (1 - a) lq_j, and gt alike.

    One share a ~ Beta(mixup_beta, mixup_beta) and one order of partners for the whole batch. Other
    entries of the batch (paths, labels) stay those of pair i.
    """
    batch, beta = dict(batch), options.mixup_beta
    if options.use_identity and draw.random() < 0.5:
        return batch
    share, size = draw.betavariate(beta, beta), batch['lq'].shape[0]
    partners = draw.sample(range(size), size)
    for key in ('lq', 'gt'):
        batch[key] = share * batch[key] + (1 - share) * batch[key][partners]
    return batch
