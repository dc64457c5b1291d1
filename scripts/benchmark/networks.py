"""Measures forward passes of networks side by side: latency, peak memory, operations.

    python scripts/benchmark/networks.py --sizes 128 256 --repeats 5
    python scripts/benchmark/networks.py --networks vlunet-plain vlunet --sizes 128 256

``vlunet-plain`` computes VLU-Net's formulas in plain PyTorch with the same parameters, on sides
that are multiples of 8. Training is compared by ``training_step.py``.

All networks run in turn in one process. Times are medians in milliseconds of wall time (on a GPU of
CUDA events); ratios are medians over the rounds, to Restormer where it is among them, else to the
first. Memory is the peak above the state before the call, each network in a process of its own.
``floor_ms`` is what the machine needs for the multiply-accumulates and for touching input, output
and weights once, at the rates of a matrix product and of a copy measured here. ``system_percent``
is the share of the processor's time that the system takes, mostly for pages of fresh memory.
"""

import argparse
import resource
from collections.abc import Callable, Iterator

import common
import torch
from network_set import NAMES, REFERENCE, build, called, make_inputs, network_options
from torch import Tensor

from unfoldldm_basicsr.common.cost import network_cost

NETWORKS = ('unfoldldm-tiny', 'unfoldldm-small', 'unfoldldm-base', 'restormer', 'nafnet', 'vlunet')


def forward_call(net: Callable, inputs: list[Tensor]) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.no_grad():
            return net(*inputs)

    return call


def prepare_forward(name: str, shape: tuple, device: str) -> tuple:
    """For :func:`peak_memories`."""
    net = build(network_options(name), device).eval()
    both = [make_inputs(net, s, device) for s in ((1, 3, 32, 32), shape)]
    return tuple(forward_call(called(name, net), inputs) for inputs in both)


def system_percent(call: Callable[[], object]) -> float:
    """Share of the system in the processor's time of a call."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    call()
    after = resource.getrusage(resource.RUSAGE_SELF)
    system, user = after.ru_stime - before.ru_stime, after.ru_utime - before.ru_utime
    return 100 * system / max(system + user, 1e-9)


def compare_networks(args: argparse.Namespace) -> Iterator[dict]:
    """All chosen networks at all sizes, with ratios to the reference where it is among them."""
    options = {name: network_options(name) for name in args.networks}
    sides = {
        (name, size): (name, (args.batch, 3, size, size), args.device)
        for size in args.sizes for name in args.networks
    }  # fmt: skip
    peaks = common.peak_memories(prepare_forward, sides, args)
    limits = common.measure_limits(args.device)
    nets = {name: build(o, args.device).eval() for name, o in options.items()}
    reference = REFERENCE if REFERENCE in nets else args.networks[0]
    for size in args.sizes:
        shape = (args.batch, 3, size, size)
        calls = {
            name: forward_call(called(name, net), make_inputs(net, shape, args.device))
            for name, net in nets.items() if (name, size) in peaks
        }  # fmt: skip
        times = common.alternate(
            calls, args.repeats, device=args.device, budget=args.budget, lenient=True
        )
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
                row |= {'rounds': len(own), 'ms': f'{common.median_ms(own):.1f}'}
                row['system_percent'] = f'{system_percent(calls[name]):.1f}'
            row['floor_ms'] = f'{limits.floor_ms(touched, 2 * macs):.1f}'
            if own and other:
                row[f'ms_over_{reference}'] = f'{common.median_ratio(own, other):.2f}'
            row[f'GMACs_over_{reference}'] = f'{costs[name].macs / costs[reference].macs:.2f}'
            if not args.no_memory:
                row['peak_MiB'] = common.mib(peaks.get((name, size)))
            yield row


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = common.new_parser(__doc__)
    parser.add_argument(
        '--networks', nargs='+', metavar='NAME', choices=NAMES, default=list(NETWORKS),
        help=f'default {" ".join(NETWORKS)}',
    )  # fmt: skip
    parser.add_argument('--sizes', type=int, nargs='+', default=[128, 256], help='H = W')
    parser.add_argument('--batch', type=int, default=1)
    common.add_run_options(parser, repeats=5, out='results/networks')
    args = parser.parse_args(argv)
    if 'vlunet-plain' in args.networks and any(size % 8 for size in args.sizes):
        parser.error('vlunet-plain needs --sizes that are multiples of 8')
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    machine = common.prepare_machine(args.device, args.threads)
    print(machine)
    common.write_rows(compare_networks(args), args.out, machine)


if __name__ == '__main__':
    main()
