"""Measures the four-direction selective scan against the recurrence written as a plain loop.

    python scripts/benchmark/scan.py --sizes 32 64 --d-states 1 16 --repeats 5 --out results/scan

Three implementations of the same sum, run alternately in one process on one thread, so that other
load on the machine hits all of them:

    op        ss2d_scan: image in, image out, all four directions
    unbind    plain loop over L positions on prepared sequences, steps taken with ``unbind``
    indexing  the same loop taking steps by indexing, as the published reference functions do; its
              backward pass allocates a full gradient per step, so it is skipped above L = 1024

The loops get their four direction-ordered sequences for nothing (they are built before the clock
starts) and return them unmerged; the op does all of its own work. Times are medians in
milliseconds of CPU time (``time.process_time``) or of CUDA events; "times faster" is the median of
the ratios of neighbouring runs. Memory is the peak that the allocator holds during a call beyond
what was there before, in bytes per scanned element (4 B C H W of them). Writes <out>.csv and
<out>.png and prints the table and the machine.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from unfoldldm_basicsr.ops.ss2d import describe_backends, set_scan_backend, ss2d_scan

IMPLEMENTATIONS = ('op', 'unbind', 'indexing')
TASKS = ('forward', 'forward+backward')
FIELDS = ('height', 'width', 'channels', 'd_state', 'task', 'implementation', 'milliseconds',
          'op_times_faster', 'bytes_per_element', 'op_relative_difference')  # fmt: skip
QUADRATIC_LIMIT = 1024


def plain_scan(u, delta, A, B, C, D, bias, *, unbind: bool) -> Tensor:
    """u, delta (B, 4 C, L); A (4 C, N); B, C (B, 4, N, L); D, bias (4 C,) -> (B, 4 C, L)."""
    delta = F.softplus(delta + bias[:, None])
    per_direction = u.shape[1] // 4
    B, C = (t.repeat_interleave(per_direction, 1).transpose(2, 3) for t in (B, C))
    decay = torch.exp(delta[..., None] * A[:, None])  # B 4C L N
    drive = (delta * u)[..., None] * B
    h, ys = u.new_zeros(u.shape[0], *A.shape), []
    if unbind:
        for decay_t, drive_t, c_t in zip(*(t.unbind(2) for t in (decay, drive, C)), strict=True):
            h = decay_t * h + drive_t
            ys.append((h * c_t).sum(-1))
    else:
        for t in range(u.shape[2]):
            h = decay[:, :, t] * h + drive[:, :, t]
            ys.append((h * C[:, :, t]).sum(-1))
    return torch.stack(ys, -1) + D[:, None] * u


def make_inputs(size: int, channels: int, d_state: int, device: str) -> list[Tensor]:
    """Inputs of ss2d_scan with Mamba's initialisation: A = -1..-N, steps around 0.01."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    grid = (1, size, size)
    A = -torch.arange(1.0, d_state + 1).repeat(4, channels, 1)
    inputs = [normal(*grid, channels), normal(*grid, 4, channels) - 4.6, A,
              normal(*grid, 4, d_state), normal(*grid, 4, d_state), torch.ones(4, channels),
              torch.zeros(4, channels)]  # fmt: skip
    return [t.to(device) for t in inputs]


def to_sequences(t: Tensor) -> Tensor:
    """(1, H, W, 4, Z) -> (1, 4, Z, L), every direction in its own order."""
    rows, columns = t.permute(0, 3, 4, 1, 2).flatten(3), t.permute(0, 3, 4, 2, 1).flatten(3)
    ordered = (rows[:, 0], columns[:, 1], rows[:, 2].flip(2), columns[:, 3].flip(2))
    return torch.stack(ordered, 1).contiguous()


def make_calls(inputs: list[Tensor], task: str) -> dict[str, Callable[[], Tensor]]:
    """One function per implementation; ``task`` is 'forward' or 'forward+backward'."""
    x, dt, A, Bm, Cm, D, bias = inputs
    four = x.unsqueeze(3).expand(-1, -1, -1, 4, -1)
    sequences = [to_sequences(four).flatten(1, 2), to_sequences(dt).flatten(1, 2),
                 A.flatten(0, 1), to_sequences(Bm), to_sequences(Cm), D.flatten(),
                 bias.flatten()]  # fmt: skip
    train = task != 'forward'

    def call(function: Callable, arguments: list[Tensor], **options: bool) -> Callable:
        leaves = [t.detach().clone().requires_grad_(train) for t in arguments]

        def run() -> Tensor:
            with torch.set_grad_enabled(train):
                y = function(*leaves, **options)
                if train:
                    torch.autograd.grad(y.sum(), leaves)
            return y.detach()

        return run

    calls = {
        'op': call(ss2d_scan, inputs),
        'unbind': call(plain_scan, sequences, unbind=True),
        'indexing': call(plain_scan, sequences, unbind=False),
    }
    if train and x.shape[1] * x.shape[2] > QUADRATIC_LIMIT:
        del calls['indexing']
    return calls


def merge(y: Tensor, size: int) -> Tensor:
    """Sum of the four sequences (1, 4 C, L) at every pixel: (1, H, W, C)."""
    y = y.unflatten(1, (4, -1))
    rows = (y[:, 0] + y[:, 2].flip(2)).unflatten(2, (size, size))
    columns = (y[:, 1] + y[:, 3].flip(2)).unflatten(2, (size, size))
    return (rows + columns.transpose(2, 3)).permute(0, 2, 3, 1)


def milliseconds(call: Callable, device: str) -> float:
    if device == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)
    start = time.process_time()
    call()
    return 1e3 * (time.process_time() - start)


def peak_bytes(call: Callable, device: str) -> int:
    """Largest growth of the allocator's memory during the call."""
    if device == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == '[memory]']
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    del result
    return peak


def measure(size: int, channels: int, d_state: int, task: str, arguments) -> list[dict]:
    """Rows of the table for one problem."""
    inputs = make_inputs(size, channels, d_state, arguments.device)
    calls = make_calls(inputs, task)
    outputs = {name: call() for name, call in calls.items()}  # also the warm-up
    times = {name: [] for name in calls}
    for _ in range(arguments.repeats):
        for name, call in calls.items():
            times[name].append(milliseconds(call, arguments.device))
    rows = []
    for name, call in calls.items():
        ratios = [other / op for other, op in zip(times[name], times['op'], strict=True)]
        expected = outputs['op'] if name == 'op' else merge(outputs[name], size)
        difference = (outputs['op'] - expected).abs().max() / expected.abs().max()
        rows.append({
            'height': size, 'width': size, 'channels': channels, 'd_state': d_state,
            'task': task, 'implementation': name,
            'milliseconds': round(statistics.median(times[name]), 3),
            'op_times_faster': round(statistics.median(ratios), 2),
            'bytes_per_element': round(
                peak_bytes(call, arguments.device) / (4 * size * size * channels), 1),
            'op_relative_difference': f'{difference.item():.1e}',
        })  # fmt: skip
    return rows


def print_rows(rows: list[dict]) -> None:
    for r in rows:
        print(
            f'{r["height"]:4}x{r["width"]:<4} C={r["channels"]:<4} N={r["d_state"]:<3}'
            f'{r["task"]:17}{r["implementation"]:9}{r["milliseconds"]:11.2f} ms  '
            f'op {r["op_times_faster"]:7.2f}x faster {r["bytes_per_element"]:8.1f} B/el  '
            f'differs {r["op_relative_difference"]}',
            flush=True,
        )


def plot(rows: list[dict], path: Path, machine: str) -> None:
    """Time over the number of pixels, one panel per task, one line per implementation and N."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('The plot needs matplotlib: pip install matplotlib') from error
    tasks = list(dict.fromkeys(r['task'] for r in rows))
    figure = Figure(figsize=(5 * len(tasks), 4), layout='constrained')
    styles = dict(zip(IMPLEMENTATIONS, ('o-', 's--', '^:'), strict=True))
    for panel, task in enumerate(tasks):
        axes = figure.add_subplot(1, len(tasks), panel + 1)
        chosen = [r for r in rows if r['task'] == task]
        for colour, d_state in enumerate(sorted({r['d_state'] for r in chosen})):
            for name, style in styles.items():
                line = [r for r in chosen if (r['d_state'], r['implementation']) == (d_state, name)]
                if line:
                    axes.loglog([r['height'] * r['width'] for r in line],
                                [r['milliseconds'] for r in line], style,
                                color=f'C{colour}', label=f'{name}, N = {d_state}')  # fmt: skip
        axes.set(title=task, xlabel='pixels', ylabel='milliseconds')
        axes.grid(alpha=0.3, which='both')
        axes.legend(fontsize=8)
    figure.suptitle(machine, fontsize=8)
    figure.savefig(path, dpi=150)


def machine_name(device: str) -> str:
    name = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if device == 'cuda':
        name = torch.cuda.get_device_name()
    elif cpuinfo.exists():
        models = [s for s in cpuinfo.read_text().splitlines() if s.startswith('model name')]
        name = models[0].split(':')[1].strip() if models else name
    return f'{name}, 1 thread, torch {torch.__version__}, {platform.system()}'


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--sizes', type=int, nargs='+', default=[16, 32, 64], help='H = W')
    parser.add_argument('--channels', type=int, default=96)
    parser.add_argument('--d-states', type=int, nargs='+', default=[1, 16])
    parser.add_argument('--tasks', nargs='+', choices=TASKS, default=TASKS)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--backend', choices=('torch', 'triton', 'mamba'), help='on CUDA')
    parser.add_argument('--out', type=Path, default=Path('results/scan'), help='without suffix')
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    if arguments.backend:
        set_scan_backend(arguments.backend)
    machine = machine_name(arguments.device)
    print(machine)
    for name, note in describe_backends().items():
        print(f'backend {name}: {note}')
    rows = []
    for d_state in arguments.d_states:
        for size in arguments.sizes:
            for task in arguments.tasks:
                new = measure(size, arguments.channels, d_state, task, arguments)
                print_rows(new)
                rows += new
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table = arguments.out.with_suffix('.csv')
    with table.open('w', newline='', encoding='utf-8') as file:
        file.write(f'# {machine}\n')
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    picture = arguments.out.with_suffix('.png')
    plot(rows, picture, machine)
    print(f'Wrote {table} and {picture}.')


if __name__ == '__main__':
    main()
