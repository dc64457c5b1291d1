"""What trainings and networks cost, all measured in turn in one process.

    python -m unfoldldm_basicsr.comparing.measuring steps JOB.yml TABLE.csv

JOB.yml: the arguments of :func:`steps`, or of :func:`deployment`.
"""

import ctypes
import hashlib
import inspect
import math
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from basicsr.archs import build_network
from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model
from basicsr.utils.options import parse_options
from basicsr.utils.registry import ARCH_REGISTRY
from torch.utils.flop_counter import FlopCounterMode

from unfoldldm_basicsr.common.contract import image_channels, run_on_trial
from unfoldldm_basicsr.common.option_files import read_option_file
from unfoldldm_basicsr.common.registration import KNOWN, registered, whose
from unfoldldm_basicsr.comparing.tables import digest_of, write_csv

# ---- training steps -------------------------------------------------------------------------


def steps(
    root: str, runs: Sequence[Mapping[str, Any]], places: int = 12, rounds: int = 8
) -> pd.DataFrame:
    """Seconds and multiply-accumulates of single steps of trainings, which write below ``root``.

    Steps are made at ``places`` iterations spread evenly over a training, so that its parts (frozen
    modules, progressive patches) count with their share. Other work on a machine comes in bursts
    longer than a step: every round makes each step of each training once, and a step's fastest
    counts. ``runs`` are option files; a later one may start from the (random) weights of an earlier
    one.
    """
    trainings = [Training(options, Path(root)) for options in runs]
    progress = [(place + 0.5) / places for place in range(places)]
    rows = [(training, training.count(p)) for p in progress for training in trainings]
    for _ in range(rounds):
        for training, row in rows:
            step = partial(training.step, row['iteration'])
            took = seconds_of(step, training.model.device.type)
            row['seconds'] = min(row['seconds'], round(took, 6))
    return pd.DataFrame(row for _, row in rows)


class Training:
    """A training as BasicSR builds it, that makes single steps."""

    def __init__(self, options: Mapping[str, Any], root: Path):
        self.name, self.key = options['name'], key_of(options)
        file = root / f'{options["name"]}.yml'
        file.write_text(yaml.safe_dump(options, sort_keys=False), encoding='utf-8')
        sys.argv[1:] = ['-opt', str(file)]
        opt, _ = parse_options(str(root), is_train=True)
        data = opt['datasets']['train'] | {'num_worker_per_gpu': 0, 'persistent_workers': False}
        settings = {'num_gpu': opt['num_gpu'], 'seed': opt['manual_seed']}
        loader = build_dataloader(build_dataset(data), data, **settings)
        self.batch, self.options = next(iter(loader)), opt['train']
        Path(opt['path']['models']).mkdir(parents=True, exist_ok=True)
        self.model = build_model(opt)
        self.model.save(-1, -1)

    def step(self, iteration: int) -> None:
        self.model.update_learning_rate(iteration, self.options.get('warmup_iter', -1))
        self.model.feed_data(self.batch)
        self.model.optimize_parameters(iteration)

    def count(self, progress: float) -> dict[str, Any]:
        """Multiply-accumulates of a step, which also warms up; its seconds are still unknown."""
        iteration = int(progress * self.options['total_iter']) + 1
        backward = {torch.ops.aten.convolution_backward: convolution_backward_flops}
        step = getattr(self.model, 'step', None)  # of the models of this package
        graphs = getattr(step, 'graphs', None)
        if graphs is not None:  # inside of them operations cannot be counted
            step.graphs = None
        with FlopCounterMode(display=False, custom_mapping=backward) as counter:
            self.step(iteration)
        if graphs is not None:
            step.graphs = graphs
        return {
            'run': self.name, 'options': self.key, 'iteration': iteration,
            'seconds': math.inf, 'macs': counter.get_total_flops() // 2,
            'machine': machine(torch.get_num_threads()),
        }  # fmt: skip


def default_device() -> str:
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def machine(threads: int, device: str | None = None) -> str:
    """Processor or GPU, threads and the version of torch."""
    name, info = platform.processor() or platform.machine(), Path('/proc/cpuinfo')
    if (device or default_device()) == 'cuda':
        name = torch.cuda.get_device_name()
    elif info.exists():
        lines = [s for s in info.read_text().splitlines() if s.startswith('model name')]
        name = lines[0].partition(':')[2].strip() if lines else name
    return f'{name}, {threads} CPU thread{"s" * (threads > 1)}, torch {torch.__version__}'


def seconds_of(call: Callable[[], object], device: str, clock: str = 'cpu') -> float:
    """Duration of a call: of the device on a GPU, else of this process ('cpu') or 'wall' time."""
    if device == 'cuda':
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000
    now = time.process_time if clock == 'cpu' else time.perf_counter
    start = now()
    call()
    return now() - start


def convolution_backward_flops(
    grad_shape, x_shape, w_shape, _bias, _stride, _padding, _dilation, transposed, _output_padding,
    _groups, output_mask, out_shape=None,
) -> int:  # fmt: skip
    """Each gradient costs what the convolution does (torch counts grouped ones as if dense)."""
    places = (x_shape if transposed else grad_shape)[2:]
    forward = 2 * x_shape[0] * math.prod(places) * math.prod(w_shape)
    return forward * sum(output_mask[:2])


def key_of(options: Mapping[str, Any]) -> str:
    """A hash of the options of a training without paths, and of its network's :func:`code_of`."""
    known = {key: value for key, value in options.items() if key != 'path'}
    code = code_of(options.get('network_g') or {})
    return digest_of(known | ({'code': code} if code else {}))


def code_of(network: Mapping[str, Any]) -> list[str]:
    """Digests of the sources of a project whose class ``network_g`` names, of its package or module
    alone; empty for classes of BasicSR and of this package.
    """
    cls = registered(ARCH_REGISTRY, network.get('type'))
    if cls is None or whose(cls) in KNOWN:
        return []
    modules = map(sys.modules.get, (cls.__module__.partition('.')[0], cls.__module__))
    files = (getattr(module, '__file__', None) for module in modules)
    file = next((Path(name) for name in files if name), None)  # notebooks have none
    if file is None:
        return []
    found = sorted(file.parent.rglob('*.py')) if file.name == '__init__.py' else [file]
    return [hashlib.sha256(source.read_bytes()).hexdigest() for source in found]


# ---- networks in use ------------------------------------------------------------------------


def deployed(network: Mapping[str, Any]) -> dict[str, Any]:
    """``network_g`` as it is used: Phase II of UnfoldLDM without the teacher of its prior."""
    cls = registered(ARCH_REGISTRY, network.get('type'))  # none for a classical method
    default = cls and inspect.signature(cls).parameters.get('phase')
    trained = default and network.get('phase', default.default) in (2, 'joint')
    return {**network, 'phase': 'inference'} if trained else dict(network)


def deployment(
    networks: Mapping[str, Mapping], sizes: Sequence[int], threads: int, rounds: int = 10
) -> pd.DataFrame:
    """Latency (the fastest round) and peak memory (the largest growth; Linux, or a GPU).

    Every round, after one that warms up, restores one square image with every network (side ->
    ``network_g``) at every size.
    """
    torch.set_num_threads(threads)
    device, calls = default_device(), {}
    for name, opt in networks.items():
        net = build_network(dict(opt)).to(device).eval()
        channels = image_channels(type(net), opt)
        for size in sizes:
            image = torch.rand(1, channels, size, size, device=device)
            calls[name, size] = partial(run_on_trial, net, image)
    rows = []
    with torch.no_grad():
        for number in range(rounds + 1):
            for (name, size), call in calls.items():
                row = {'side': name, 'size': size}
                row['latency_ms'] = 1e3 * seconds_of(call, device, 'wall')
                row['peak_MiB'] = peak_growth(call, device)
                rows += [row] if number else []
    sides = pd.DataFrame(rows).groupby(['side', 'size'], sort=False)
    return sides.agg({'latency_ms': 'min', 'peak_MiB': 'max'}).round(2).reset_index()


def peak_growth(call: Callable[[], object], device: str) -> float:
    """MiB that a call needs at its peak above the state before; NaN where nothing tells it."""
    if device == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if sys.platform != 'linux':
        return float('nan')
    forget_peak()
    before = process_memory('VmRSS')
    call()
    return process_memory('VmHWM') - before


def forget_peak() -> None:
    """Sets the peak of this process (VmHWM, Linux) back to its present size.

    What earlier calls freed goes back to the system, else it would hide what the next one needs.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path('/proc/self/clear_refs').write_text('5')


def process_memory(field: str) -> float:
    """MiB of this process (Linux): VmRSS now, VmHWM at its peak."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def main(argv: Sequence[str]) -> None:
    """Writes the table of a job."""
    measure = {'steps': steps, 'deployment': deployment}[argv[0]]
    write_csv(measure(**read_option_file(Path(argv[1]))), Path(argv[2]))


if __name__ == '__main__':
    main(sys.argv[1:])
