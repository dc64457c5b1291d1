"""What the benchmark scripts share: alternating runs, peak memory, limits, tables and plots.

What is compared runs in turn, round by round, in one process, so that other load on the machine
hits every side. Reported are medians, and ratios as the median over the rounds. Memory is the peak
above the state before the call, each side in a process of its own.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch

from unfoldldm_basicsr.common.errors import first_line
from unfoldldm_basicsr.comparing.measuring import machine, peak_growth, seconds_of
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


def new_parser(text: str) -> argparse.ArgumentParser:
    """A command line that shows the text of its script as it is written."""
    return argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """``--device``; asking for a GPU where there is none is an error of the command line."""

    def usable(name: str) -> str:
        if name == 'cuda' and not torch.cuda.is_available():
            raise argparse.ArgumentTypeError(
                'PyTorch finds no GPU here (torch.cuda.is_available() is False); use cpu'
            )
        return name

    parser.add_argument('--device', type=usable, default='cpu', choices=['cpu', 'cuda'])


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
    if device != 'cuda':
        return machine(threads, device)
    torch.backends.cudnn.benchmark = True
    return f'{machine(threads, device)}, TF32 off, cudnn.benchmark on'


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error, by its type or words, says that the machine or the GPU has no memory."""
    words = ('out of memory', "can't allocate memory", 'not enough memory')  # not: illegal access
    return isinstance(error, MemoryError | OutOfMemoryError) or any(w in str(error) for w in words)


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
    """Runs all calls in turn, ``repeats`` rounds: name -> seconds, equally many for every name.

    Args:
        calls: name -> what to time.
        repeats: rounds, at least one.
        device: 'cpu' or 'cuda'.
        clock: 'wall' or 'cpu' (on a GPU always CUDA events).
        warm_up: one untimed round before (three on a GPU).
        budget: seconds of wall time after which no further round starts.
        lenient: a call that runs out of memory is left out, with a message, and the others go on.
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
            times[name].append(attempt(name, partial(seconds_of, call, device, clock)))
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


def in_own_process(function: Callable, *arguments: Any) -> Any:
    """Calls a function of a module in a fresh process and returns its result.

    Raises OutOfMemoryError where a signal ended the process.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise OutOfMemoryError(
                f'The process that measured {function.__name__} was ended, probably for lack of '
                'memory.'
            ) from error


def _grow(prepare: Callable, arguments: tuple, device: str, threads: int) -> float:
    prepare_machine(device, threads)
    small, call = prepare(*arguments)
    small()
    if device == 'cuda':
        call()  # what cuDNN takes for trying its algorithms is no part of later runs
    return peak_growth(call, device)


def peak_memories(
    prepare: Callable, sides: Mapping[Any, tuple], args: argparse.Namespace
) -> dict[Any, float | None]:
    """Peak of a call in MiB for every side, NaN where the system does not tell it; before the
    timing, after which this process keeps memory for itself.

    On a CPU each has a process of its own; on a GPU the allocator counts, whatever ran before.

    Args:
        prepare: function of a module; gets the arguments of a side and returns two calls, a small
            one that makes the process load what it needs, and the one to be measured.
        sides: side -> arguments that can be pickled.
        args: of :func:`add_run_options`.

    Returns:
        side -> peak, None where memory is not measured; one that runs out of memory is missing,
        with a message.
    """
    if args.no_memory:
        return dict.fromkeys(sides)
    peaks = {}
    for side, arguments in sides.items():
        job = prepare, arguments, args.device, args.threads
        try:
            peaks[side] = in_own_process(_grow, *job) if args.device == 'cpu' else _grow(*job)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            print(f'{side} is left out: {first_line(error)}', flush=True)
        if args.device == 'cuda':
            torch.cuda.empty_cache()
    return peaks


def mib(value: float | None) -> str:
    """A figure of the column ``peak_MiB``; empty where unknown."""
    return '' if value is None or value != value else f'{value:.0f}'


def write_photos(folder: Path, count: int, width: int, height: int) -> None:
    """Seeded pictures with structure of several scales and a little noise, as PNG."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for index in range(count):
        coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        photo = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        noisy = photo + 3 * rng.standard_normal(photo.shape)
        cv2.imwrite(str(folder / f'{index}.png'), np.clip(noisy, 0, 255).astype(np.uint8))


def print_row(row: Mapping[str, Any]) -> None:
    print('  '.join(f'{key} {value}' for key, value in row.items() if value != ''), flush=True)


def write_table(rows: Sequence[Mapping[str, Any]], path: Path, machine: str) -> Path:
    """Writes ``path`` with suffix .csv: the machine as a comment, then a table of all keys."""
    path = path.with_suffix('.csv')
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows, dtype=object).to_csv(index=False)
    path.write_text(f'# {machine}\n{table}', encoding='utf-8')
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
    """A figure with panels side by side; SystemExit where there are none."""
    if panels == 0:
        raise SystemExit('No picture: nothing could be measured.')
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * panels, height), layout='constrained')
    return figure, [figure.add_subplot(1, panels, i + 1) for i in range(panels)]


def save_figure(figure: Any, path: Path, machine: str) -> None:
    figure.suptitle(machine, fontsize=8)
    path = path.with_suffix('.png')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f'written: {path}')
