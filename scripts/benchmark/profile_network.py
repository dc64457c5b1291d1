"""Shows where a forward pass spends its time: kinds of operations and parts of the network.

    python scripts/benchmark/profile_network.py --networks unfoldldm-base restormer --size 256

By torch's profiler, on the CPU. Every operation counts once, for its own time without that of the
operations it calls. ``selective scan`` is everything between a VSS block's depthwise convolution
and its norm, projections included. Parts are the direct children of the network (for UnfoldLDM:
MGDA, OCFormer, and the generation of the prior), each with all it calls.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from common import new_figure, prepare_machine, print_row, save_figure, write_table
from network_set import build, make_inputs, network_options
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from unfoldldm_basicsr.archs.layers.vss import SS2D

SCAN = 'selective scan'
KINDS = ('1x1 convolution', 'depthwise convolution', 'other convolution', 'matrix product',
         'layer norm', SCAN, 'elementwise and copies')  # fmt: skip
_PRODUCTS = ('aten::bmm', 'aten::mm', 'aten::addmm', 'aten::baddbmm')


def kind_of(event: Any) -> str:
    """One of :data:`KINDS` for an operation of the profiler."""
    if within(event, SCAN):
        return SCAN
    if 'conv' in event.name and len(event.input_shapes) > 1 and len(event.input_shapes[1]) == 4:
        _, channels, height, _ = event.input_shapes[1]
        if height == 1:
            return '1x1 convolution'
        return 'depthwise convolution' if channels == 1 else 'other convolution'
    if event.name in _PRODUCTS:
        return 'matrix product'
    return 'layer norm' if event.name == 'aten::native_layer_norm' else 'elementwise and copies'


def within(event: Any, name: str) -> bool:
    """Whether an operation is, or was called by, the one called ``name``."""
    while event is not None:
        if event.name == name:
            return True
        event = event.cpu_parent
    return False


def mark_parts(net: nn.Module) -> list[str]:
    """Makes the profiler see the children of ``net`` and the scans; returns the names."""
    names = []
    for name, child in net.named_children():
        record(child, 'forward', f'part {name}')
        names.append(f'part {name}')
    for module in net.modules():
        if isinstance(module, SS2D):
            record(module, 'scan', SCAN)
    return names


def record(module: nn.Module, method: str, name: str) -> None:
    """Gives the calls of a method a name in the profile."""
    function = getattr(module, method)

    def recorded(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return function(*args, **kwargs)

    setattr(module, method, recorded)


def measure(name: str, size: int) -> tuple[dict, dict]:
    """Rows of the kinds and of the parts: milliseconds and percent."""
    net = build(network_options(name)).eval()
    inputs = make_inputs(net, (1, 3, size, size), 'cpu')
    parts = mark_parts(net)
    with torch.no_grad():
        net(*inputs)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            net(*inputs)
    kinds, shares = Counter(), Counter()
    for event in profiler.events():
        kinds[kind_of(event)] += event.self_cpu_time_total / 1e3
        if event.name in parts:
            shares[event.name.removeprefix('part ')] += event.cpu_time_total / 1e3
    total = sum(kinds.values())
    shares['outside'] = max(0.0, total - sum(shares.values()))
    rows = []
    for values in ({k: kinds[k] for k in KINDS}, dict(shares.most_common())):
        row = {'network': name, 'size': size, 'ms': f'{total:.0f}'}
        rows.append(row | {key: f'{100 * value / total:.1f}' for key, value in values.items()})
    return rows[0], rows[1]


def plot(rows: list[dict], path: Path, machine: str) -> Path:
    """One stacked bar per network."""
    figure, (axes,) = new_figure(1, 1.5 + 0.6 * len(rows))
    figure.set_size_inches(9, 1.5 + 0.6 * len(rows))
    left = [0.0] * len(rows)
    labels = [f'{r["network"]}\n{float(r["ms"]) / 1e3:.2f} s' for r in rows]
    for kind in KINDS:
        widths = [float(r[kind]) for r in rows]
        axes.barh(labels, widths, left=left, label=kind)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set(xlabel='% of a forward pass', xlim=(0, 100))
    axes.invert_yaxis()
    axes.legend(fontsize=8, ncols=4, loc='upper center', bbox_to_anchor=(0.45, -0.3))
    return save_figure(figure, path, machine)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--networks', nargs='+', default=['unfoldldm-base', 'restormer'])
    parser.add_argument('--size', type=int, default=256, help='H = W')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--out', type=Path, default=Path('results/profile'), help='without suffix')
    args = parser.parse_args(argv)
    for name in args.networks:
        try:
            network_options(name)
        except ValueError as error:
            parser.error(str(error))
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    machine = prepare_machine('cpu', args.threads)
    print(machine)
    kinds, parts = [], []
    for name in args.networks:
        for rows, row in zip((kinds, parts), measure(name, args.size), strict=True):
            print_row(row)
            rows.append(row)
    print(f'written: {write_table(kinds, args.out, machine)}')
    print(f'written: {write_table(parts, args.out.with_name(args.out.name + "_parts"), machine)}')
    print(f'written: {plot(kinds, args.out, machine)}')


if __name__ == '__main__':
    main()
