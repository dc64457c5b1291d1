"""Shows where a forward pass or a training step spends its time: operations and parts.

    python scripts/benchmark/profile_network.py --networks unfoldldm-base restormer --size 256
    python scripts/benchmark/profile_network.py --task training \\
        --networks unfoldldm-base-phase1 restormer --size 256

By torch's profiler, on the CPU. Every operation counts once, for its own time without that of the
operations it calls. ``selective scan`` is everything between a VSS block's depthwise convolution
and its norm, projections included. Parts are the direct children of the network (for UnfoldLDM:
MGDA, OCFormer, and the generation of the prior), each with all it calls.

A training step is that of ``training_step.py``. What a backward operation does counts as the
operation of the forward pass whose gradient it computes, and for its part of the network; so do
the sums of gradients that the engine makes with its result. Only what adds a gradient to that of a
parameter (AccumulateGrad) is elementwise and ``outside``. ``system_percent`` is the share of the
processor's time that the system took, mostly for pages of fresh memory, without the profiler.
"""

from __future__ import annotations

import argparse
import resource
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import in_own_process, new_figure, prepare_machine, print_row, save_figure, write_table
from network_set import build, make_inputs, network_options
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function
from training_step import check_network, make_steps

from unfoldldm_basicsr.archs.layers.vss import SS2D

SCAN = 'selective scan'
KINDS = ('1x1 convolution', 'depthwise convolution', 'other convolution', 'matrix product',
         'layer norm', SCAN, 'elementwise and copies', 'optimiser')  # fmt: skip
_PRODUCTS = ('aten::bmm', 'aten::mm', 'aten::addmm', 'aten::baddbmm')
_BACKWARD = 'autograd::engine::evaluate_function: '


def kind_of(event: Any) -> str:
    """One of :data:`KINDS` for an operation of the forward pass or of the optimiser."""
    if within(event, SCAN):
        return SCAN
    if within(event, 'Optimizer.step'):
        return 'optimiser'
    if 'conv' in event.name and len(event.input_shapes) > 1 and len(event.input_shapes[1]) == 4:
        _, channels, height, _ = event.input_shapes[1]
        if height == 1:
            return '1x1 convolution'
        return 'depthwise convolution' if channels == 1 else 'other convolution'
    if event.name in _PRODUCTS:
        return 'matrix product'
    return 'layer norm' if event.name == 'aten::native_layer_norm' else 'elementwise and copies'


def within(event: Any, start: str) -> Any:
    """The innermost of an operation and its callers whose name starts so, or None."""
    while event is not None and not event.name.startswith(start):
        event = event.cpu_parent
    return event


def originals(events: list) -> dict[int, Any]:
    """The operation of the forward pass for each sequence number.

    Autograd numbers its nodes; an operation bears the number of the node that comes next. So the
    last one with a number is the one that made the node.
    """
    found = {}
    for event in sorted(events, key=lambda e: e.time_range.start):
        if event.sequence_nr >= 0 and within(event, _BACKWARD) is None:
            found[event.sequence_nr] = event
    return found


def mark_parts(net: nn.Module) -> list[str]:
    """Makes the profiler see the children of ``net`` and the scans; returns the names."""
    names = []
    for name, child in net.named_children():
        for called in child if isinstance(child, nn.ModuleList) else [child]:
            for method in {'forward', 'look', 'estimate'}.intersection(dir(called)):
                record(called, method, f'part {name}')
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


def prepare(name: str, size: int, task: str) -> tuple[nn.Module, Callable[[], Any]]:
    """A network and what is to be profiled."""
    if task == 'training':
        net, (step,) = make_steps(name, 'plain', [(1, 3, size, size)], 'cpu')
        return net, step
    net = build(network_options(name)).eval()
    inputs = make_inputs(net, (1, 3, size, size), 'cpu')
    return net, torch.no_grad()(lambda: net(*inputs))


def system_percent(call: Callable[[], Any]) -> float:
    """Share of the system in the processor's time of a call."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    call()
    after = resource.getrusage(resource.RUSAGE_SELF)
    system, user = after.ru_stime - before.ru_stime, after.ru_utime - before.ru_utime
    return 100 * system / (system + user)


def measure(name: str, size: int, task: str, threads: int) -> tuple[dict, dict]:
    """Rows of the kinds and of the parts: milliseconds and percent."""
    prepare_machine('cpu', threads)
    net, call = prepare(name, size, task)
    call()
    system = system_percent(call)
    parts = mark_parts(net)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        call()
    events = list(profiler.events())
    forward = originals(events)
    kinds, shares = Counter(), Counter(dict.fromkeys(parts, 0.0))
    for event in events:
        node = within(event, _BACKWARD)
        source = event if node is None else forward.get(node.sequence_nr)
        kind = 'elementwise and copies' if source is None else kind_of(source)
        kinds[kind] += event.self_cpu_time_total / 1e3
        part = within(source, 'part ')
        shares['outside' if part is None else part.name] += event.self_cpu_time_total / 1e3
    total = sum(kinds.values())
    row = {'network': name, 'task': task, 'size': size, 'ms': f'{total:.0f}'}
    percent = [
        {key.removeprefix('part '): f'{100 * value / total:.1f}' for key, value in values.items()}
        for values in ({k: kinds[k] for k in KINDS}, dict(shares.most_common()))
    ]
    return row | percent[0] | {'system_percent': f'{system:.1f}'}, row | percent[1]


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
    title = {'forward': 'forward pass', 'training': 'training step'}[rows[0]['task']]
    axes.set(xlabel=f'% of a {title}', xlim=(0, 100))
    axes.invert_yaxis()
    axes.legend(fontsize=8, ncols=4, loc='upper center', bbox_to_anchor=(0.45, -0.3))
    return save_figure(figure, path, machine)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--networks', nargs='+', metavar='NAME')
    parser.add_argument('--task', choices=['forward', 'training'], default='forward')
    parser.add_argument('--size', type=int, default=256, help='H = W')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--out', type=Path, default=Path('results/profile'), help='without suffix')
    args = parser.parse_args(argv)
    if args.networks is None:
        ours = 'unfoldldm-base' if args.task == 'forward' else 'unfoldldm-base-phase1'
        args.networks = [ours, 'restormer']
    if args.task == 'training' and 'vlunet-plain' in args.networks:
        parser.error('vlunet-plain consists of functions: it has no parts to be told apart')
    for name in args.networks:
        try:
            network_options(name) if args.task == 'forward' else check_network(name)
        except ValueError as error:
            parser.error(str(error))
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    machine = prepare_machine('cpu', args.threads)
    print(machine)
    kinds, parts = [], []
    for name in args.networks:
        found = in_own_process(measure, name, args.size, args.task, args.threads)
        for rows, row in zip((kinds, parts), found, strict=True):
            print_row(row)
            rows.append(row)
    print(f'written: {write_table(kinds, args.out, machine)}')
    print(f'written: {write_table(parts, args.out.with_name(args.out.name + "_parts"), machine)}')
    print(f'written: {plot(kinds, args.out, machine)}')


if __name__ == '__main__':
    main()
