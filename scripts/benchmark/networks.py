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
from collections.abc import Callable, Iterator
from functools import partial

import torch
from common import (
    Times,
    add_run_options,
    alternate,
    measure_limits,
    median_ms,
    median_ratio,
    mib,
    peak_memories,
    plot_bars,
    prepare_machine,
    write_rows,
)
from network_set import NETWORKS, REFERENCE, build, make_inputs, network_options
from torch import Tensor, nn
from vlunet_plain import plain_vlunet

from unfoldldm_basicsr.common.cost import network_cost

SIDES = ('plain', 'package')


def forward_call(
    net: Callable, inputs: list[Tensor], keep: Callable[[Tensor], object] | None = None
) -> Callable[[], None]:
    """A forward pass without gradients; ``keep`` gets its result."""

    def call() -> None:
        with torch.no_grad():
            result = net(*inputs)
        if keep is not None:
            keep(result)

    return call


def side_of(net: nn.Module, side: str) -> Callable:
    """The network itself, or the plain formulas with its parameters."""
    return net if side == 'package' else partial(plain_vlunet, dict(net.named_parameters()))


def prepare_forward(options: dict, side: str, shape: tuple, device: str) -> tuple:
    """For :func:`peak_memory`."""
    net = build(options, device).eval()
    both = [make_inputs(net, s, device) for s in ((1, 3, 32, 32), shape)]
    return tuple(forward_call(side_of(net, side), inputs) for inputs in both)


def compare_vlunet(args: argparse.Namespace, **changes: object) -> Iterator[dict]:
    """VLU-Net against the plain implementation; ``changes`` replace arguments of the network."""
    options = network_options('vlunet', **changes)
    peaks = peaks_of(args, {side: (options, side) for side in SIDES})
    net = build(options, args.device)
    for size in args.sizes:
        shape = (args.batch, 3, size, size)
        inputs = make_inputs(net, shape, args.device)
        outputs: dict[str, Tensor] = {}
        calls = {
            side: forward_call(side_of(net, side), inputs, partial(outputs.__setitem__, side))
            for side in SIDES if (side, size) in peaks
        }  # fmt: skip
        times = timed(calls, args)
        row = {'batch': args.batch, 'size': size}
        if len(times) == len(SIDES):
            plain, package = (outputs[side] for side in SIDES)
            row |= {
                'rounds': len(times['plain']),
                'max_difference': f'{(plain - package).abs().max().item():.1e}',
            }
        row |= {f'{side}_ms': f'{median_ms(seconds):.1f}' for side, seconds in times.items()}
        if len(times) == len(SIDES):
            row['speedup'] = f'{median_ratio(times["plain"], times["package"]):.2f}'
        if not args.no_memory:
            row |= {f'{side}_MiB': mib(peaks.get((side, size))) for side in SIDES}
        yield row


def timed(calls: dict[str, Callable], args: argparse.Namespace) -> Times:
    """Seconds of the calls, run in turn; without those that run out of memory."""
    return alternate(calls, args.repeats, device=args.device, budget=args.budget, lenient=True)


def peaks_of(args: argparse.Namespace, sides: dict[str, tuple]) -> dict[tuple, float | None]:
    """Peak memory in MiB of forward passes; those that run out of memory are missing.

    Has to come before the timing, after which this process keeps a GPU's memory for itself.

    Args:
        args: where no memory is to be measured, all are there without a figure.
        sides: name -> options of the network, and which side.

    Returns:
        (name, size) -> peak.
    """
    arguments = {
        (name, size): (*side, (args.batch, 3, size, size), args.device)
        for size in args.sizes for name, side in sides.items()
    }  # fmt: skip
    if args.no_memory:
        return dict.fromkeys(arguments)
    return peak_memories(prepare_forward, arguments, device=args.device, threads=args.threads)


def compare_networks(args: argparse.Namespace) -> Iterator[dict]:
    """All chosen networks at all sizes, with ratios to the reference where it is among them."""
    options = {name: network_options(name) for name in args.networks}
    peaks = peaks_of(args, {name: (o, 'package') for name, o in options.items()})
    limits = measure_limits(args.device)
    nets = {name: build(o, args.device).eval() for name, o in options.items()}
    reference = REFERENCE if REFERENCE in nets else args.networks[0]
    for size in args.sizes:
        shape = (args.batch, 3, size, size)
        calls = {
            name: forward_call(net, make_inputs(net, shape, args.device))
            for name, net in nets.items() if (name, size) in peaks
        }  # fmt: skip
        times = timed(calls, args)
        costs = {name: network_cost(o, size) for name, o in options.items()}
        for name in nets:
            macs, params = args.batch * costs[name].macs, costs[name].params
            touched = 4 * (params + 2 * 3 * args.batch * size**2)
            row = {
                'network': name, 'batch': args.batch, 'size': size,
                'params_M': f'{params / 1e6:.2f}', 'GMACs': f'{macs / 1e9:.2f}',
            }  # fmt: skip
            own, other = times.get(name), times.get(reference)
            if own:
                row |= {'rounds': len(own), 'ms': f'{median_ms(own):.1f}'}
            row['floor_ms'] = f'{limits.floor_ms(touched, 2 * macs):.1f}'
            if own and other:
                row[f'ms_over_{reference}'] = f'{median_ratio(own, other):.2f}'
            row[f'GMACs_over_{reference}'] = f'{costs[name].macs / costs[reference].macs:.2f}'
            if not args.no_memory:
                row['peak_MiB'] = mib(peaks.get((name, size)))
            yield row


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
    print(f'written: {plot_bars(panels, args.out, machine, unit=units)}')


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
    found = compare_vlunet(args) if args.networks is None else compare_networks(args)
    rows = write_rows(found, args.out, machine)
    plot(rows, args, machine)


if __name__ == '__main__':
    main()
