"""Measures what this package adds to a training of BasicSR: to a step, a batch and a checkpoint.

    python scripts/benchmark/overhead.py --threads 1 --clock cpu

Both sides train the same network on the same batches, in turn, round by round, in one process:

    NAFNet      plain is BasicSR's SRModel
    UnfoldLDM   plain is a bare loop: forward, losses, backward, clipping, Adam, average

``package`` is our model with all that a training has: gradient norms, the guard against values that
are not finite, reproducible random numbers, the answer to signals, the average. Parts:

    step         update_learning_rate, feed_data, optimize_parameters
    batch        the next batch of BasicSR's loader, read in this process; ours with TrainingItems
    iteration    both
    checkpoint   weights and state; ours with check sums, flushed to the disk (always wall time)

Times are medians; the ratio is the median over the rounds. ``percent_of_iteration`` is the median
of what the package adds, in percent of the plain iteration; a checkpoint counts for one iteration
of ``--save-every``.
"""

import argparse
import logging
import statistics
import tempfile
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import common
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from unfoldldm_basicsr.common.option_files import read_option_file
from unfoldldm_basicsr.compat import stock
from unfoldldm_basicsr.models.unfoldldm_phase1_model import restoration_losses

SMOKE = Path(__file__).resolve().parents[2] / 'options' / 'smoke' / 'unfoldldm_phase1.yml'
NAFNET = {
    'type': 'NAFNet', 'width': 16, 'enc_blk_nums': [1, 1, 1, 1], 'middle_blk_num': 1,
    'dec_blk_nums': [1, 1, 1, 1],
}  # fmt: skip
NETWORKS = ('nafnet', 'unfoldldm')
PROMISE = 3.0  # percent of an iteration, batch and checkpoint included
EMA_DECAY, CLIP = 0.99, 0.01


def options_of(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Option dict as the trainer has it when it builds loaders and models."""
    network = NAFNET if name == 'nafnet' else read_option_file(SMOKE)['network_g']
    train: dict[str, Any] = {
        'total_iter': 10**6, 'ema_decay': EMA_DECAY, 'pixel_opt': {'type': 'L1Loss'},
        'optim_g': {'type': 'Adam', 'lr': 1e-4, 'weight_decay': 0.0, 'betas': [0.9, 0.999]},
        'scheduler': {'type': 'MultiStepLR', 'milestones': [5 * 10**5], 'gamma': 0.5},
    }  # fmt: skip
    if name == 'unfoldldm':
        train |= {'isda_opt': {'type': 'ISDALoss'}, 'use_grad_clip': True, 'grad_clip_norm': CLIP}
    data = {
        'name': 'photos', 'type': 'SyntheticDegradationDataset', 'phase': 'train', 'scale': 1,
        'dataroot_gt': str(folder / 'photos'), 'io_backend': {'type': 'disk'}, 'repeat': 1000,
        'degradations': [{'type': 'gaussian_noise', 'sigma': [5, 50]}], 'gt_size': args.size,
        'batch_size_per_gpu': args.batch, 'num_worker_per_gpu': 0, 'persistent_workers': False,
    }  # fmt: skip
    return {
        'name': 'overhead', 'scale': 1, 'num_gpu': int(args.device == 'cuda'), 'dist': False,
        'rank': 0, 'world_size': 1, 'is_train': True, 'manual_seed': 0, 'val': None,
        'datasets': {'train': data}, 'network_g': dict(network), 'path': {}, 'train': train,
        'logger': {'print_freq': 100},
    }  # fmt: skip


def with_folders(options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A copy of the options for a model that writes below ``folder``."""
    options = deepcopy(options)
    for key in ('models', 'training_states'):
        (folder / key).mkdir(parents=True)
        options['path'][key] = str(folder / key)
    options['path']['log'] = str(folder)
    return options


# ---- models -------------------------------------------------------------------------------------


def plain_model(name: str, options: dict[str, Any]) -> Any:
    """BasicSR's model as BasicSR has it; for UnfoldLDM with the bare loop as its step."""
    from basicsr.losses import build_loss  # can be imported only after this package
    from basicsr.models.base_model import BaseModel
    from basicsr.models.sr_model import SRModel

    model = SRModel(options)
    model.reduce_loss_dict = partial(stock(BaseModel.reduce_loss_dict), model)
    if name == 'unfoldldm':
        model.cri_isda = build_loss(options['train']['isda_opt'])
        model.optimize_parameters = partial(bare_step, model)
    return model


def bare_step(model: Any, current_iter: int) -> None:
    """What a training of UnfoldLDM's Phase I cannot do without."""
    model.optimizer_g.zero_grad()
    trace = model.net_g(model.lq, model.gt, return_trace=True)
    losses = restoration_losses(trace, model.gt, model.cri_pix, model.cri_isda, 0)
    sum(losses.values()).backward()
    nn.utils.clip_grad_norm_(model.net_g.parameters(), CLIP)
    model.optimizer_g.step()
    model.log_dict = {key: value.item() for key, value in losses.items()}
    average = get_ema_multi_avg_fn(EMA_DECAY)
    average(list(model.net_g_ema.parameters()), list(model.net_g.parameters()), 1)


def package_model(name: str, options: dict[str, Any]) -> Any:
    from unfoldldm_basicsr.models import RestorationModel, UnfoldLDMPhase1Model

    return (RestorationModel if name == 'nafnet' else UnfoldLDMPhase1Model)(options)


def step_of(model: Any, batches: list[Mapping]) -> Callable[[], None]:
    """One iteration of BasicSR's trainer, on the batches in turn."""
    done = 0

    def call() -> None:
        nonlocal done
        done += 1
        model.update_learning_rate(done, warmup_iter=-1)
        model.feed_data(batches[done % len(batches)])
        model.optimize_parameters(done)

    return call


# ---- loaders ------------------------------------------------------------------------------------


def plain_loader(options: dict[str, Any]) -> tuple:
    """Loader and sampler as BasicSR's trainer makes them."""
    from basicsr.data import build_dataloader, build_dataset
    from basicsr.data.data_sampler import EnlargedSampler

    data = options['datasets']['train']
    dataset = build_dataset(data)
    sampler = EnlargedSampler(dataset, 1, 0, 1)
    return build_dataloader(dataset, data, num_gpu=0, sampler=sampler, seed=0), sampler


def package_loader(options: dict[str, Any]) -> tuple:
    import basicsr.train

    quiet = logging.getLogger('overhead')
    return basicsr.train.create_train_val_dataloader(options, quiet)[:2]


def reader_of(loader: Any, sampler: Any) -> Callable[[], Mapping]:
    """The next batch, as BasicSR's trainer takes it."""
    from basicsr.data.prefetch_dataloader import CPUPrefetcher

    prefetcher, epoch = CPUPrefetcher(loader), 0
    prefetcher.reset()

    def call() -> Mapping:
        nonlocal epoch
        batch = prefetcher.next()
        if batch is None:
            epoch += 1
            sampler.set_epoch(epoch)
            prefetcher.reset()
            batch = prefetcher.next()
        return batch

    return call


# ---- table --------------------------------------------------------------------------------------


def row_of(
    name: str, part: str, times: common.Times, iteration: float, each: int = 1
) -> dict[str, Any]:
    """A line of the table: seconds of both sides; ``iteration`` takes so many seconds in the plain
    one, and ``each`` iterations lie between two of these parts.
    """
    added = statistics.median(
        own - other for own, other in zip(times['package'], times['plain'], strict=True)
    )
    return {
        'network': name, 'part': part, 'rounds': len(times['plain']),
        'plain_ms': f'{common.median_ms(times["plain"]):.3f}',
        'package_ms': f'{common.median_ms(times["package"]):.3f}',
        'ratio': f'{common.median_ratio(times["package"], times["plain"]):.4f}',
        'percent_of_iteration': f'{100 * added / (each * iteration):.3f}',
    }  # fmt: skip


def measure(name: str, folder: Path, args: argparse.Namespace) -> list[dict]:
    options = options_of(name, folder, args)
    readers = {
        side: reader_of(*make(deepcopy(options)))
        for side, make in (('plain', plain_loader), ('package', package_loader))
    }
    batches = [readers['package']() for _ in range(4)]
    models = {
        'plain': plain_model(name, with_folders(options, folder / name / 'plain')),
        'package': package_model(name, with_folders(options, folder / name / 'package')),
    }
    limits = {'clock': args.clock, 'budget': args.budget}
    times = {
        'step': common.alternate(
            {side: step_of(model, batches) for side, model in models.items()},
            args.repeats, device=args.device, **limits,
        ),
        'batch': common.alternate(readers, args.repeats, **limits),
    }  # fmt: skip
    both = zip(times['step'].values(), times['batch'].values(), strict=True)
    times['iteration'] = {
        side: [a + b for a, b in zip(*parts, strict=False)]  # the budget may end one sooner
        for side, parts in zip(times['step'], both, strict=True)
    }
    saves = {side: partial(model.save, 0, 1) for side, model in models.items()}
    times['checkpoint'] = common.alternate(saves, max(1, args.repeats // 4), budget=args.budget)
    plain = statistics.median(times['iteration']['plain'])
    each = {'checkpoint': args.save_every}
    return [row_of(name, part, t, plain, each.get(part, 1)) for part, t in times.items()]


def verdict(name: str, rows: list[dict]) -> str:
    """One sentence on what a training of this network pays in all."""
    parts = [r for r in rows if r['network'] == name and r['part'] in ('iteration', 'checkpoint')]
    total = sum(float(row['percent_of_iteration']) for row in parts)
    kept = 'kept' if total < PROMISE else 'NOT kept'
    return f'{name}: {total:.2f} % in all, promised less than {PROMISE:g} %: {kept}'


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = common.new_parser(__doc__)
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument('--size', type=int, default=64, help='side of a patch (64)')
    parser.add_argument('--batch', type=int, default=4, help='patches of a batch (4)')
    parser.add_argument('--picture', type=int, nargs=2, default=[480, 320], metavar=('W', 'H'))
    parser.add_argument(
        '--save-every', type=int, default=1000, help='iterations between checkpoints (1000)'
    )
    parser.add_argument(
        '--clock', choices=common.CLOCKS, default='wall', help='cpu: for a machine with other load'
    )
    common.add_run_options(parser, repeats=60, out='results/overhead')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    machine = f'{common.prepare_machine(args.device, args.threads)}, {args.clock} time'
    print(machine)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        common.write_photos(folder / 'photos', 8, *args.picture)
        for name in args.networks:
            rows += measure(name, folder, args)
            for row in rows[-4:]:
                common.print_row(row)
            print(verdict(name, rows))
    print(f'written: {common.write_table(rows, args.out, machine)}')


if __name__ == '__main__':
    main()
