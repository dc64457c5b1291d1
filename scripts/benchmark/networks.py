"""Measures networks of this package side by side: latency, peak memory, operations.

    python scripts/benchmark/networks.py --sizes 128 256 --repeats 5
    python scripts/benchmark/networks.py --networks --sizes 256 512

Without ``--networks``: VLU-Net against a plain PyTorch implementation of the same formulas with the
same parameters (forward, and forward with L1 loss and backward). With ``--networks``, optionally
followed by names: networks of this package against each other (forward).

All sides run in turn in one process. Times are medians in milliseconds of wall time (on a GPU of
CUDA events); ratios are medians over the rounds. Memory is the peak above the state before the
call, each side in a process of its own. ``floor_ms`` is what the machine needs for the
multiply-accumulates and for touching input, output and weights once, at the rates of a matrix
product and of a copy measured here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from common import (
    Limits,
    add_run_options,
    alternate,
    measure_limits,
    median_ms,
    median_ratio,
    mib,
    peak_memory,
    plot_bars,
    prepare_machine,
    print_row,
    write_table,
)
from network_set import NETWORKS, REFERENCE, build, make_inputs, network_options
from torch import Tensor, nn
from torch.nn import functional as F
from vlunet_plain import plain_vlunet

from unfoldldm_basicsr.reporting.cost import network_cost

TASKS = ('forward', 'train')
SIDES = ('plain', 'package')


def forward_call(net: Callable, inputs: list[Tensor]) -> Callable[[], Tensor]:
    """A forward pass without gradients."""

    def call() -> Tensor:
        with torch.no_grad():
            return net(*inputs)

    return call


def vlunet_call(side: str, task: str, net: nn.Module, inputs: list[Tensor]) -> Callable:
    """The function to be timed; ``train`` is forward, L1 loss and backward."""
    params = dict(net.named_parameters())

    def forward(image: Tensor, d: Tensor) -> Tensor:
        return net(image, d) if side == 'package' else plain_vlunet(params, image, d)

    def train() -> None:
        net.zero_grad(set_to_none=True)
        F.l1_loss(forward(*inputs), torch.zeros_like(inputs[0])).backward()

    return forward_call(forward, inputs) if task == 'forward' else train


def prepare_vlunet(side: str, task: str, options: dict, shape: tuple, device: str) -> tuple:
    """For :func:`peak_memory`."""
    net = build(options, device)
    small = make_inputs(net, (1, 3, 32, 32), device)
    inputs = make_inputs(net, shape, device)
    return tuple(vlunet_call(side, task, net, i) for i in (small, inputs))


def prepare_forward(name: str, shape: tuple, device: str) -> tuple:
    """For :func:`peak_memory`."""
    net = build(network_options(name), device).eval()
    small = make_inputs(net, (1, 3, 32, 32), device)
    return tuple(forward_call(net, i) for i in (small, make_inputs(net, shape, device)))


def compare_vlunet(args: argparse.Namespace, **changes: object) -> list[dict]:
    """VLU-Net against the plain implementation; ``changes`` replace arguments of the network."""
    options = network_options('vlunet', **changes)
    net = build(options, args.device)
    rows = []
    for task in args.tasks:
        for size in args.sizes:
            shape = (args.batch, 3, size, size)
            inputs = make_inputs(net, shape, args.device)
            a, b = (vlunet_call(side, 'forward', net, inputs)() for side in SIDES)
            calls = {side: vlunet_call(side, task, net, inputs) for side in SIDES}
            times = alternate(
                calls, args.repeats, device=args.device, budget=args.budget,
                warm_up=task == 'train' or args.device == 'cuda',
            )  # fmt: skip
            row = {
                'task': task, 'batch': args.batch, 'size': size, 'rounds': len(times['plain']),
                'max_difference': f'{(a - b).abs().max().item():.1e}',
                **{f'{side}_ms': f'{median_ms(times[side]):.1f}' for side in SIDES},
                'speedup': f'{median_ratio(times["plain"], times["package"]):.2f}',
            }  # fmt: skip
            for side in () if args.no_memory else SIDES:
                peak = peak_memory(
                    prepare_vlunet, side, task, options, shape, args.device,
                    device=args.device, threads=args.threads,
                )  # fmt: skip
                row[f'{side}_MiB'] = mib(peak)
            print_row(row)
            rows.append(row)
    return rows


def compare_networks(args: argparse.Namespace, limits: Limits) -> list[dict]:
    """All chosen networks at all sizes, with ratios to the reference where it is among them."""
    nets = {name: build(network_options(name), args.device).eval() for name in args.networks}
    reference = REFERENCE if REFERENCE in nets else args.networks[0]
    rows = []
    for size in args.sizes:
        shape = (args.batch, 3, size, size)
        calls = {
            n: forward_call(net, make_inputs(net, shape, args.device)) for n, net in nets.items()
        }
        times = alternate(calls, args.repeats, device=args.device, budget=args.budget)
        costs = {name: network_cost(network_options(name), size) for name in nets}
        for name in nets:
            macs, params = args.batch * costs[name].macs, costs[name].params
            touched = 4 * (params + 2 * 3 * args.batch * size**2)
            row = {
                'network': name, 'batch': args.batch, 'size': size,
                'params_M': f'{params / 1e6:.2f}', 'GMACs': f'{macs / 1e9:.2f}',
                'rounds': len(times[name]), 'ms': f'{median_ms(times[name]):.1f}',
                'floor_ms': f'{limits.floor_ms(touched, 2 * macs):.1f}',
                f'ms_over_{reference}': f'{median_ratio(times[name], times[reference]):.2f}',
                f'GMACs_over_{reference}': f'{costs[name].macs / costs[reference].macs:.2f}',
            }  # fmt: skip
            if not args.no_memory:
                peak = peak_memory(
                    prepare_forward, name, shape, args.device,
                    device=args.device, threads=args.threads,
                )  # fmt: skip
                row['peak_MiB'] = mib(peak)
            print_row(row)
            rows.append(row)
    return rows


def plot(rows: list[dict], args: argparse.Namespace, machine: str) -> None:
    if args.networks is None:
        panels = {
            title: {f'{r["task"]} {r["size"]}, {s}': float(r[f'{s}_{key}'] or 0)
                    for r in rows for s in SIDES if f'{s}_{key}' in r}
            for title, key in (('VLU-Net, time', 'ms'), ('VLU-Net, peak memory', 'MiB'))
        }  # fmt: skip
        units = ['milliseconds', 'MiB']
    else:
        panels = {
            title: {f'{r["network"]} {r["size"]}': float(r[key] or 0) for r in rows if key in r}
            for title, key in (('forward', 'ms'), ('peak memory', 'peak_MiB'), ('cost', 'GMACs'))
        }
        units = ['milliseconds', 'MiB', 'GMACs']
    filled = [(p, u) for p, u in zip(panels.items(), units, strict=True) if p[1]]
    path = plot_bars(dict(p for p, _ in filled), args.out, machine, unit=[u for _, u in filled])
    print(f'written: {path}')


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--networks', nargs='*', metavar='NAME',
        help=f'compare networks of this package; default {" ".join(NETWORKS)}',
    )  # fmt: skip
    parser.add_argument('--sizes', type=int, nargs='+', default=[128, 256], help='H = W')
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--tasks', nargs='+', choices=TASKS, help='of VLU-Net (both)')
    add_run_options(parser, repeats=5, out='results/networks')
    args = parser.parse_args(argv)
    if args.networks is not None and args.tasks:
        parser.error('--networks compares forward passes; training_step.py compares training')
    if args.networks == []:
        args.networks = list(NETWORKS)
    args.tasks = args.tasks or list(TASKS)
    if args.networks is None and any(size % 8 for size in args.sizes):
        parser.error('the plain implementation needs --sizes that are multiples of 8')
    for name in args.networks or ():
        try:
            network_options(name)
        except ValueError as error:
            parser.error(str(error))
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    machine = prepare_machine(args.device, args.threads)
    print(machine)
    if args.networks is None:
        rows = compare_vlunet(args)
    else:
        rows = compare_networks(args, measure_limits(args.device))
    print(f'written: {write_table(rows, args.out, machine)}')
    plot(rows, args, machine)


if __name__ == '__main__':
    main()
