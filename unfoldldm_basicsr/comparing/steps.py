"""What one iteration of each training costs, all measured in turn in one process.

    python -m unfoldldm_basicsr.comparing.steps --root FOLDER -o FILE.csv OPTIONS=DIGEST...

The rows are added to FILE.csv. Every round makes one step of every training, at iterations spread
evenly over it, so that phases within a training (frozen parts, progressive patches) count with
their share. The option files are in order: a later one may start from the weights of an earlier
one, which are random here.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

import unfoldldm_basicsr  # noqa: F401
from unfoldldm_basicsr.comparing.tables import read_csv, write_csv

Costs = dict[str, tuple[float, float]]  # run -> seconds, multiply-accumulates of an iteration


def device_seconds(call: Callable[[], object]) -> float:
    """Seconds of a call: of the device on a GPU, of the process on the CPU."""
    if torch.cuda.is_available():
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000
    start = time.process_time()
    call()
    return time.process_time() - start


def convolution_backward_flops(
    grad_shape, x_shape, w_shape, _bias, _stride, _padding, _dilation, transposed, _output_padding,
    _groups, output_mask, out_shape=None,
) -> int:  # fmt: skip
    """Each gradient costs what the convolution does (torch counts grouped ones as if dense)."""
    places = (x_shape if transposed else grad_shape)[2:]
    forward = 2 * x_shape[0] * math.prod(places) * math.prod(w_shape)
    return forward * sum(output_mask[:2])


class Training:
    """A training as BasicSR builds it, that makes single steps."""

    def __init__(self, file: str, root: str):
        from basicsr.data import build_dataloader, build_dataset
        from basicsr.models import build_model
        from basicsr.utils.options import parse_options

        file, _, self.digest = file.rpartition('=')
        sys.argv[1:] = ['-opt', file]
        self.opt, _ = parse_options(root, is_train=True)
        data = self.opt['datasets']['train'] | {
            'num_worker_per_gpu': 0,
            'persistent_workers': False,
        }
        loader = build_dataloader(
            build_dataset(data), data, num_gpu=self.opt['num_gpu'], seed=self.opt['manual_seed']
        )
        self.batch = next(iter(loader))
        Path(self.opt['path']['models']).mkdir(parents=True, exist_ok=True)
        self.model = build_model(self.opt)
        self.model.save(-1, -1)

    def step(self, iteration: int) -> None:
        """One training step on a batch."""
        self.model.update_learning_rate(iteration, self.opt['train'].get('warmup_iter', -1))
        self.model.feed_data(self.batch)
        self.model.optimize_parameters(iteration)

    def measure(self, iteration: int) -> dict[str, object]:
        """Seconds and multiply-accumulates of a step; the counted one also warms up."""
        backward = {torch.ops.aten.convolution_backward: convolution_backward_flops}
        with FlopCounterMode(display=False, custom_mapping=backward) as counter:
            self.step(iteration)
        seconds = device_seconds(lambda: self.step(iteration))
        return {
            'run': self.opt['name'], 'options': self.digest, 'iteration': iteration,
            'seconds': round(seconds, 6), 'macs': counter.get_total_flops() // 2,
        }  # fmt: skip


def mean_costs(file: Path) -> dict[tuple[str, str], tuple[float, float]]:
    """(run, digest of its options) -> mean seconds and multiply-accumulates of an iteration."""
    means = read_csv(file).groupby(['run', 'options'])[['seconds', 'macs']].mean()
    return dict(zip(means.index, means.itertuples(index=False, name=None), strict=True))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('files', nargs='+')
    parser.add_argument('--root', required=True)
    parser.add_argument('--rounds', type=int, default=6)
    parser.add_argument('-o', '--output', type=Path, required=True)
    args = parser.parse_args(argv)
    trainings = [Training(file, args.root) for file in args.files]
    rows = []
    for turn in range(args.rounds):
        for training in trainings:
            total = training.opt['train']['total_iter']
            rows.append(training.measure(int((turn + 0.5) / args.rounds * total) + 1))
    known = [read_csv(args.output)] if args.output.exists() else []
    write_csv(pd.concat([*known, pd.DataFrame(rows)]), args.output)


if __name__ == '__main__':
    main()
