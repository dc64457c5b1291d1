"""Options of small data sets, and batches as BasicSR's training loads them."""

import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.utils import set_random_seed

from unfoldldm_basicsr.common.declaration import OptionError

NOISE = [{'type': 'gaussian_noise', 'sigma': [10, 50]}]
NOTHING = [{'type': 'gaussian_noise', 'sigma': 0}]


def synthetic(root, phase='train', **changes) -> dict:
    options = {
        'name': 'photos', 'type': 'SyntheticDegradationDataset', 'phase': phase, 'scale': 1,
        'dataroot_gt': str(root),
        'io_backend': {'type': 'lmdb' if str(root).endswith('.lmdb') else 'disk'},
        'degradations': NOISE,
    }  # fmt: skip
    if phase == 'train':
        options |= {'gt_size': 16, 'batch_size_per_gpu': 2, 'num_worker_per_gpu': 0}
    return options | changes


def paired(gt, lq, phase='train', **changes) -> dict:
    options = synthetic(gt, phase, dataroot_lq=str(lq), type='PairedDegradationDataset')
    del options['degradations']
    return options | changes


def refusals(options: dict) -> dict[str, str]:
    """What is wrong with a section, by key; {} if the data set can be built."""
    try:
        build_dataset(options)
    except OptionError as error:
        return {problem.path: problem.message for problem in error.problems}
    return {}


def epochs(options: dict, count: int = 1) -> list[list[dict]]:
    """The batches of the first epochs, from the loader that BasicSR makes."""
    set_random_seed(10)
    dataset = build_dataset(options)
    sampler = EnlargedSampler(dataset, num_replicas=1, rank=0, ratio=1)
    loader = build_dataloader(dataset, options, sampler=sampler, seed=10)
    batches = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        batches.append(list(loader))
    return batches


def same(first: list[dict], second: list[dict], keys=('lq', 'gt')) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in keys
    )
