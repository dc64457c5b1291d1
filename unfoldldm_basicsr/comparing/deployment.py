"""What networks cost in use: latency and peak memory, all in turn in one process.

    python -m unfoldldm_basicsr.comparing.deployment -o FILE.csv --sizes 256 NETWORKS.yml

NETWORKS.yml: name -> ``network_g``. Every round restores one image with every network at every
size. Latency is the fastest, memory the largest growth of all rounds (on Linux, or a GPU).
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

import unfoldldm_basicsr  # noqa: F401
from unfoldldm_basicsr.common.contract import contract_of
from unfoldldm_basicsr.comparing.tables import write_csv
from unfoldldm_basicsr.options.read import read_option_file

_STATUS, _RESET = Path('/proc/self/status'), Path('/proc/self/clear_refs')


def deployed(network: Mapping[str, Any]) -> dict[str, Any]:
    """``network_g`` as it is used: Phase II of UnfoldLDM without the teacher of its prior."""
    return {**network, 'phase': 'inference'} if network.get('phase') == 2 else dict(network)


def restoring(net: nn.Module, size: int, device: torch.device) -> Callable[[], object]:
    """A call that restores one image."""
    image, contract = torch.rand(1, 3, size, size, device=device), contract_of(net)
    extra = {}
    if contract.takes_degradation:
        extra['degradation'] = torch.zeros(1, contract.embed_dim, device=device)
    return lambda: net(image, **extra)


def wall_seconds(call: Callable[[], object]) -> float:
    """Seconds until the result is there."""
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_growth(call: Callable[[], object]) -> float:
    """MiB that a call needs at its peak above the state before; NaN where nothing tells it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if sys.platform != 'linux':
        return float('nan')
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed must not hide what this one needs
    _RESET.write_text('5')  # the peak starts from here
    before = _memory('VmRSS')
    call()
    return _memory('VmHWM') - before


def _memory(field: str) -> float:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure(networks: Mapping[str, Mapping], sizes: list[int], rounds: int) -> list[dict]:
    """A row for each network and size."""
    from basicsr.archs import build_network

    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    nets = {name: build_network(dict(opt)).to(device).eval() for name, opt in networks.items()}
    calls = {(n, s): restoring(net, s, device) for s in sizes for n, net in nets.items()}
    seconds: dict = {key: [] for key in calls}
    growth: dict = {key: [] for key in calls}
    with torch.no_grad():
        for number in range(rounds + 1):  # the first round warms up
            for key, call in calls.items():
                taken, needed = wall_seconds(call), peak_growth(call)
                if number:
                    seconds[key].append(taken)
                    growth[key].append(needed)
    return [
        {
            'side': name,
            'size': size,
            'latency_ms': round(1e3 * min(seconds[name, size]), 2),
            'peak_MiB': round(max(growth[name, size]), 1),
        }
        for name, size in calls
    ]


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('networks', type=Path)
    parser.add_argument('-o', '--output', type=Path, required=True)
    parser.add_argument('--sizes', type=int, nargs='+', required=True)
    parser.add_argument('--rounds', type=int, default=10)
    args = parser.parse_args(argv)
    rows = measure(read_option_file(args.networks), args.sizes, args.rounds)
    write_csv(pd.DataFrame(rows), args.output)


if __name__ == '__main__':
    main()
