"""Measures how the quick start's training step uses the cores of a machine.

    python scripts/benchmark/threads.py
    python scripts/benchmark/threads.py --steps 10 --busy 0

One step of UnfoldLDM as options/smoke trains it (batch 8 of 48 pixels): forward, losses, backward,
clipping, AdamW. Sides: one thread; two threads; two ranks (processes with one thread each, half of
the batch each, gradients averaged by DistributedDataParallel over gloo), each where OpenMP's
waiting threads sleep (``passive``, what the entry points choose) and where they spin (``default``);
on idle cores and beside ``--busy`` processes that compute all the time. Each side is a process of
its own; columns: median, best and worst seconds of a step, and processor seconds of all ranks.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import prepare_machine, write_rows

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ROOT / 'options' / 'smoke' / 'unfoldldm_phase1.yml'
SIDES = ((1, 1), (2, 1), (1, 2))  # threads, ranks


def train(threads: int, ranks: int, port: int, rank: int, steps: int) -> None:
    """One rank: prints its seconds and processor seconds per step."""
    import torch
    import yaml
    from basicsr.losses import build_loss

    from unfoldldm_basicsr.archs.unfoldldm_arch import UnfoldLDM  # repairs BasicSR's import
    from unfoldldm_basicsr.models.unfoldldm_phase1_model import restoration_losses

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    options = yaml.safe_load(OPTIONS.read_text())
    network = {key: value for key, value in options['network_g'].items() if key != 'type'}
    net, section = UnfoldLDM(**network), options['train']
    pixel, isda = build_loss(section['pixel_opt']), build_loss(section['isda_opt'])
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    wrapped = net
    if ranks > 1:
        torch.distributed.init_process_group(
            'gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=ranks
        )
        wrapped = torch.nn.parallel.DistributedDataParallel(net)
    data = options['datasets']['train']
    lq = torch.rand(data['batch_size_per_gpu'] // ranks, 3, data['gt_size'], data['gt_size'])
    seconds, processor = [], []
    for _ in range(steps + 2):
        began, used = time.perf_counter(), time.process_time()
        trace = wrapped(lq, lq, return_trace=True)
        losses = restoration_losses(trace, lq, pixel, isda, section['stage_loss_weight'])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), section['grad_clip_norm'])
        optimizer.step()
        seconds.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    print(*seconds[2:], '|', statistics.mean(processor[2:]))


@contextmanager
def busy(count: int) -> Iterator[None]:
    others = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()


def measure(threads: int, ranks: int, policy: str, steps: int) -> dict[str, float]:
    """Seconds per step of one side; the slowest rank counts, processor times are added."""
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
    environment.pop('OMP_WAIT_POLICY', None)
    if policy == 'passive':
        environment['OMP_WAIT_POLICY'] = 'PASSIVE'
    port = 29500 + os.getpid() % 1000
    command = [sys.executable, __file__, '--steps', str(steps)]
    command += ['--side', str(threads), str(ranks), str(port)]
    processes = [
        subprocess.Popen([*command, str(rank)], env=environment, stdout=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f'the side with {threads} threads and {ranks} ranks failed')
    times, used = zip(*(output.split('|') for output in outputs), strict=True)
    each = [[float(value) for value in line.split()] for line in times]
    steps_of_all = [max(step) for step in zip(*each, strict=True)]
    return {
        'median_s': round(statistics.median(steps_of_all), 3),
        'best_s': round(min(steps_of_all), 3),
        'worst_s': round(max(steps_of_all), 3),
        'processor_s': round(sum(map(float, used)), 3),
    }


def measure_all(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for others in args.busy:
        with busy(others):
            for threads, ranks in SIDES:
                for policy in ('default', 'passive'):
                    side = {'busy': others, 'threads': threads, 'ranks': ranks, 'waiting': policy}
                    yield side | measure(threads, ranks, policy, args.steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--steps', type=int, default=8, help='measured steps of a side (8)')
    parser.add_argument('--busy', type=int, nargs='+', default=[0, 2], help='computing processes')
    parser.add_argument('--out', type=Path, default=Path('results/threads'), help='without suffix')
    parser.add_argument('--side', type=int, nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        train(*args.side, args.steps)
    else:
        write_rows(measure_all(args), args.out, prepare_machine('cpu', 1))


if __name__ == '__main__':
    main()
