"""What the benchmark scripts share: alternating runs, peak memory, limits, tables and plots.

What is compared runs in turn, round by round, in one process, so that other load on the machine
hits every side. Reported are medians, and ratios as the median over the rounds. Memory is the peak
above the state before the call, each side in a process of its own.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from unfoldldm_basicsr.training.memory import prefer_huge_pages

Call = Callable[[], Any]
Times = dict[str, list[float]]

CLOCKS = ('wall', 'cpu')
_GPU_WARM_UP = 3


class OutOfMemoryError(RuntimeError):
    """A measurement needs more memory than there is."""


class Limits(NamedTuple):
    """What the machine reaches, measured: bytes per second of a copy, flops per second of sgemm."""

    bytes_per_second: float
    flops: float

    def floor_ms(self, num_bytes: float, num_flops: float) -> float:
        """Milliseconds below which no implementation with these needs can get."""
        return 1e3 * max(num_bytes / self.bytes_per_second, num_flops / self.flops)


def usable_device(name: str) -> str:
    """Type of an argument: a device, which must be there."""
    if name == 'cuda' and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(
            'PyTorch finds no GPU here (torch.cuda.is_available() is False); use cpu'
        )
    return name


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """``--device``; asking for a GPU where there is none is an error of the command line."""
    parser.add_argument('--device', type=usable_device, default='cpu', choices=['cpu', 'cuda'])


def add_run_options(parser: argparse.ArgumentParser, *, repeats: int, out: str) -> None:
    """The options that every script has."""
    parser.add_argument('--repeats', type=int, default=repeats, help=f'rounds ({repeats})')
    parser.add_argument(
        '--budget', type=float, default=60.0, help='seconds after which no further round starts'
    )
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    add_device_option(parser)
    parser.add_argument('--no-memory', action='store_true', help='skip the memory measurement')
    parser.add_argument('--out', type=Path, default=Path(out), help=f'without suffix ({out})')


def prepare_machine(device: str, threads: int) -> str:
    """Sets threads, large pages and full float32; returns a line that names the machine.

    On a GPU cuDNN chooses its algorithms by trial, as in BasicSR's trainer.
    """
    prefer_huge_pages()
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    name = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if device == 'cuda':
        torch.backends.cudnn.benchmark = True
        name = f'{torch.cuda.get_device_name()}, TF32 off, cudnn.benchmark on'
    elif cpuinfo.exists():
        models = [s for s in cpuinfo.read_text().splitlines() if s.startswith('model name')]
        name = models[0].split(':', 1)[1].strip() if models else name
    unit = 'thread' if threads == 1 else 'threads'
    return f'{name}, {threads} {unit}, torch {torch.__version__}, {platform.system()}'


def run_seconds(call: Call, device: str, clock: str = 'wall') -> float:
    """Duration of one call: CUDA events on a GPU, otherwise wall or CPU time of this process."""
    if device == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    now = time.process_time if clock == 'cpu' else time.perf_counter
    begin = now()
    call()
    return now() - begin


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error, by its type or words, says that the machine or the GPU has no memory."""
    words = ('out of memory', "can't allocate memory", 'not enough memory')
    return isinstance(error, MemoryError) or any(w in str(error) for w in words)


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def alternate(
    calls: Mapping[str, Call],
    repeats: int,
    *,
    device: str = 'cpu',
    clock: str = 'wall',
    warm_up: bool = True,
    budget: float | None = None,
    lenient: bool = False,
) -> Times:
    """Runs all calls in turn, ``repeats`` rounds.

    Args:
        calls: name -> what to time.
        repeats: rounds, at least one.
        device: 'cpu' or 'cuda'.
        clock: 'wall' or 'cpu' (on a GPU always CUDA events).
        warm_up: one untimed round before (three on a GPU).
        budget: seconds of wall time after which no further round starts.
        lenient: a call that runs out of memory is left out, with a message, and the others go on.

    Returns:
        name -> seconds, equally many for every name.
    """
    left = dict(calls)

    def attempt(name: str, run: Call) -> Any:
        try:
            return run()
        except (RuntimeError, MemoryError) as error:
            if not lenient or not ran_out_of_memory(error):
                raise
            print(f'{name} is left out: {first_line(error)}', flush=True)
            del left[name]
            return None

    if warm_up:
        for _ in range(_GPU_WARM_UP if device == 'cuda' else 1):
            for name, call in tuple(left.items()):
                attempt(name, call)
    times: Times = {name: [] for name in calls}
    begin = time.perf_counter()
    for round_ in range(max(1, repeats)):
        if round_ and budget is not None and time.perf_counter() - begin > budget:
            break
        for name, call in tuple(left.items()):
            times[name].append(attempt(name, partial(run_seconds, call, device, clock)))
    return {name: times[name] for name in left}


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median of the ratios of neighbouring runs."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def median_ms(seconds: Sequence[float]) -> float:
    return 1e3 * statistics.median(seconds)


def measure_limits(device: str) -> Limits:
    """Copies 128 MiB (on a GPU 1 GiB) and multiplies square matrices; the best of five counts."""
    size, length = (4096, 2**28) if device == 'cuda' else (1024, 2**25)
    a, b, out = (torch.ones(size, size, device=device) for _ in range(3))
    source = torch.ones(length, device=device)
    target = torch.empty_like(source)
    calls = {'copy': lambda: target.copy_(source), 'product': lambda: torch.mm(a, b, out=out)}
    best = {name: min(t) for name, t in alternate(calls, 5, device=device).items()}
    return Limits(2 * source.nbytes / best['copy'], 2 * size**3 / best['product'])


def process_memory(field: str) -> float:
    """MiB of this process (Linux): VmRSS now, VmHWM at its peak."""
    status = Path('/proc/self/status').read_text()
    return int(status.split(f'{field}:')[1].split()[0]) / 2**10


def forget_peak() -> None:
    """Gives free memory back and sets the peak of this process (VmHWM) back to its present size.

    glibc keeps what is freed, and a call that takes it again would seem to need no memory.
    """
    if sys.platform != 'linux':
        return
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        trim(0)
    reset = Path('/proc/self/clear_refs')
    if os.access(reset, os.W_OK):
        reset.write_text('5')


def growth_of(call: Call, device: str) -> float:
    """Peak memory during a call beyond that before it, in MiB."""
    if device == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    forget_peak()
    before = process_memory('VmRSS')
    call()
    return process_memory('VmHWM') - before


def in_own_process(function: Callable, *arguments: Any) -> Any:
    """Calls a function of a module in a fresh process and returns its result.

    Raises:
        OutOfMemoryError: the function ran out of memory, or a signal ended the process.
        RuntimeError: the function failed in another way, which the process has printed.
    """
    context = multiprocessing.get_context('spawn')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        result, lacking = receiver.recv()
    except EOFError as error:
        process.join()
        end = f'The process that measured {function.__name__} ended with code {process.exitcode}'
        if process.exitcode < 0:  # by a signal
            raise OutOfMemoryError(f'{end}, probably for lack of memory.') from error
        raise RuntimeError(f'{end}; its error is above.') from error
    finally:
        process.join()
    if lacking:
        raise OutOfMemoryError(lacking)
    return result


def _answer(connection: Any, function: Callable, arguments: tuple) -> None:
    """Sends the result, and what was said where memory ran out."""
    try:
        answer = function(*arguments), ''
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        answer = None, first_line(error)
    connection.send(answer)


def peak_memory(prepare: Callable, *arguments: Any, device: str, threads: int) -> float | None:
    """Peak of a call in MiB; None where the system does not tell it.

    On a CPU it runs in a process of its own; on a GPU the allocator counts, whatever ran before.

    Args:
        prepare: function of a module; gets ``arguments`` and returns two calls, a small one that
            makes the process load what it needs, and the one to be measured.
        arguments: anything that can be pickled.
        device: 'cpu' or 'cuda'.
        threads: of the process.
    """
    if device == 'cpu' and not Path('/proc/self/status').exists():
        return None
    if device == 'cpu':
        return in_own_process(_grow, prepare, arguments, device, threads)
    try:
        return _grow(prepare, arguments, device, threads)
    except RuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        raise OutOfMemoryError(first_line(error)) from None  # frees what the frames hold
    finally:
        torch.cuda.empty_cache()


def _grow(prepare: Callable, arguments: tuple, device: str, threads: int) -> float:
    prepare_machine(device, threads)
    small, call = prepare(*arguments)
    small()
    if device == 'cuda':
        call()  # what cuDNN takes for trying its algorithms is no part of later runs
    return growth_of(call, device)


def peak_memories(
    prepare: Callable, sides: Mapping[Any, tuple], *, device: str, threads: int
) -> dict[Any, float | None]:
    """:func:`peak_memory` for the arguments of every side.

    Returns:
        side -> peak; one that runs out of memory is missing, with a message.
    """
    peaks = {}
    for side, arguments in sides.items():
        try:
            peaks[side] = peak_memory(prepare, *arguments, device=device, threads=threads)
        except OutOfMemoryError as error:
            print(f'{side} is left out: {first_line(error)}', flush=True)
    return peaks


def mib(value: float | None) -> str:
    """A figure of the column ``peak_MiB``; empty where unknown."""
    return '' if value is None else f'{value:.0f}'


def print_row(row: Mapping[str, Any]) -> None:
    print('  '.join(f'{key} {value}' for key, value in row.items() if value != ''), flush=True)


def write_table(rows: Sequence[Mapping[str, Any]], path: Path, machine: str) -> Path:
    """Writes ``path`` with suffix .csv: the machine as a comment, then a table of all keys."""
    path = path.with_suffix('.csv')
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = list(dict.fromkeys(key for row in rows for key in row))
    with path.open('w', newline='', encoding='utf-8') as file:
        file.write(f'# {machine}\n')
        writer = csv.DictWriter(file, fields, restval='')
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path, machine: str) -> list[Mapping]:
    """Prints rows as they come and writes the table after each, so that none is lost."""
    done: list[Mapping] = []
    for row in rows:
        print_row(row)
        done.append(row)
        write_table(done, path, machine)
    print(f'written: {path.with_suffix(".csv")}')
    return done


def new_figure(panels: int, height: float = 4.0) -> tuple[Any, list]:
    """A figure with panels side by side.

    Raises:
        ImportError: matplotlib is missing.
        SystemExit: there are no panels.
    """
    if panels == 0:
        raise SystemExit('No picture: nothing could be measured.')
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('The plot needs matplotlib: pip install matplotlib') from error
    figure = Figure(figsize=(5 * panels, height), layout='constrained')
    return figure, [figure.add_subplot(1, panels, i + 1) for i in range(panels)]


def save_figure(figure: Any, path: Path, machine: str) -> Path:
    """Writes ``path`` with suffix .png and the machine above it."""
    figure.suptitle(machine, fontsize=8)
    path = path.with_suffix('.png')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def plot_bars(
    panels: Mapping[str, Mapping[str, float]], path: Path, machine: str, *, unit: Sequence[str]
) -> Path:
    """Horizontal bars, one panel per title: title -> label -> value; one unit per panel.

    Titles without bars are left out.
    """
    chosen = [(*item, name) for item, name in zip(panels.items(), unit, strict=True) if item[1]]
    most = max((len(bars) for _, bars, _ in chosen), default=0)
    figure, all_axes = new_figure(len(chosen), 1.5 + 0.3 * most)
    for axes, (title, bars, name) in zip(all_axes, chosen, strict=True):
        drawn = axes.barh(list(bars), list(bars.values()), color='C0')
        axes.bar_label(drawn, fmt='%.4g', padding=2, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set(title=title, xlabel=name)
    return save_figure(figure, path, machine)
