"""Measures forward passes of networks side by side: latency, peak memory, operations.

    python scripts/benchmark/networks.py --sizes 128 256 --repeats 5
    python scripts/benchmark/networks.py --networks --sizes 256 512

Without ``--networks``: VLU-Net against a plain PyTorch implementation of the same formulas with the
same parameters. With ``--networks``, optionally followed by names: networks of this package against
each other. Training is compared by ``training_step.py``.

All sides run in turn in one process. Times are medians in milliseconds of wall time (on a GPU of
CUDA events); ratios are medians over the rounds. Memory is the peak above the state before the
call, each side in a process of its own. ``floor_ms`` is what the machine needs for the
multiply-accumulates and for touching input, output and weights once, at the rates of a matrix
product and of a copy measured here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

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
from vlunet_plain import plain_vlunet

from unfoldldm_basicsr.reporting.cost import network_cost

SIDES = ('plain', 'package')


def forward_call(net: Callable, inputs: list[Tensor]) -> Callable[[], Tensor]:
    """A forward pass without gradients."""

    def call() -> Tensor:
        with torch.no_grad():
            return net(*inputs)

    return call


def side_of(net: nn.Module, side: str) -> Callable:
    """The network itself, or the plain formulas with its parameters."""
    return net if side == 'package' else partial(plain_vlunet, dict(net.named_parameters()))


def prepare_forward(options: dict, side: str, shape: tuple, device: str) -> tuple:
    """For :func:`peak_memory`."""
    net = build(options, device).eval()
    both = [make_inputs(net, s, device) for s in ((1, 3, 32, 32), shape)]
    return tuple(forward_call(side_of(net, side), inputs) for inputs in both)


def compare_vlunet(args: argparse.Namespace, **changes: object) -> list[dict]:
    """VLU-Net against the plain implementation; ``changes`` replace arguments of the network."""
    options = network_options('vlunet', **changes)
    net = build(options, args.device)
    rows = []
    for size in args.sizes:
        shape = (args.batch, 3, size, size)
        inputs = make_inputs(net, shape, args.device)
        calls = {side: forward_call(side_of(net, side), inputs) for side in SIDES}
        a, b = (call() for call in calls.values())
        times = alternate(
            calls, args.repeats, device=args.device, budget=args.budget,
            warm_up=args.device == 'cuda',
        )  # fmt: skip
        row = {
            'batch': args.batch, 'size': size, 'rounds': len(times['plain']),
            'max_difference': f'{(a - b).abs().max().item():.1e}',
            **{f'{side}_ms': f'{median_ms(times[side]):.1f}' for side in SIDES},
            'speedup': f'{median_ratio(times["plain"], times["package"]):.2f}',
        }  # fmt: skip
        for side in () if args.no_memory else SIDES:
            row[f'{side}_MiB'] = mib(peak_of(args, options, side, shape))
        print_row(row)
        rows.append(row)
    return rows


def peak_of(args: argparse.Namespace, options: dict, side: str, shape: tuple) -> float | None:
    """Peak memory of a forward pass in MiB."""
    return peak_memory(
        prepare_forward, options, side, shape, args.device,
        device=args.device, threads=args.threads,
    )  # fmt: skip


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
                row['peak_MiB'] = mib(peak_of(args, network_options(name), 'package', shape))
            print_row(row)
            rows.append(row)
    return rows


def plot(rows: list[dict], args: argparse.Namespace, machine: str) -> None:
    if args.networks is None:
        panels = {
            title: {f'{r["size"]}, {s}': float(r[f'{s}_{key}'] or 0)
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
    add_run_options(parser, repeats=5, out='results/networks')
    args = parser.parse_args(argv)
    if args.networks == []:
        args.networks = list(NETWORKS)
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
