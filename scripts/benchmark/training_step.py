"""Measures one training step: forward, losses, backward, AdamW.

    python scripts/benchmark/training_step.py --sizes 128 --repeats 3
    python scripts/benchmark/training_step.py --networks unfoldldm-base-phase1 \\
        --variants plain checkpoint bf16 bf16+checkpoint

Networks: VLU-Net and its plain PyTorch implementation (``vlunet-plain``), Restormer, NAFNet, and
UnfoldLDM in both training phases with the losses of its option files. Variants, joined by ``+``:
``plain`` (float32), ``checkpoint`` (the blocks of UnfoldLDM, VLU-Net and Restormer are computed
again in the backward pass), ``bf16`` (autocast), ``channels_last``, ``compile``, and on a GPU
``graphs`` (``train.use_cuda_graphs``).

All sides run in turn in one process. Times are medians in milliseconds of wall time (on a GPU of
CUDA events); ratios are medians over the rounds: to Restormer in the first variant, and to the same
network in the plain one. Memory is the peak above network, optimiser state and gradients, each side
in a process of its own. ``floor_ms`` (float32 only) is what the machine needs for three times the
multiply-accumulates of the forward pass, and for reading and writing weights, gradients and the two
moments of AdamW once, at the rates of a matrix product and of a copy measured here.
"""

import argparse
import inspect
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import common
import torch
from network_set import (
    REFERENCE,
    TRAINED,
    build,
    called,
    make_inputs,
    network_options,
    preset_options,
)
from torch import Tensor, nn
from torch.nn import functional as F

from unfoldldm_basicsr import archs
from unfoldldm_basicsr.common.cost import network_cost
from unfoldldm_basicsr.models.unfoldldm_phase1_model import restoration_losses
from unfoldldm_basicsr.training.cuda_graphs import GradientGraphs
from unfoldldm_basicsr.training.memory import keep_freed_memory

NETWORKS = (
    'vlunet-plain', 'vlunet', 'unfoldldm-base-phase1', 'unfoldldm-base-phase2', 'restormer',
    'nafnet',
)  # fmt: skip
VARIANTS = ('plain', 'checkpoint', 'bf16', 'channels_last', 'compile', 'graphs')


def unfolding_loss(name: str) -> Callable:
    """Sum of the losses that the option file of a phase asks for: (net, inputs, gt) -> scalar."""
    from basicsr.losses import build_loss  # can be imported only after this package

    phase = int(name[-1])
    train = preset_options(name.split('-')[1], phase)['train']
    keys = ('pixel_opt', 'isda_opt', 'diffusion_opt')
    pixel, isda, diffusion = (build_loss(train[k]) if train.get(k) else None for k in keys)

    def loss(net: nn.Module, inputs: list[Tensor], gt: Tensor) -> Tensor:
        trace = net(*inputs, gt, return_trace=True)
        total = sum(restoration_losses(trace, gt, pixel, isda, 0).values())
        if diffusion is not None:
            priors = [stage.generated.float() for stage in trace.stages]
            total = total + diffusion(priors, trace.target_prior)
        return total

    return loss


def plain_loss(net: nn.Module, inputs: list[Tensor], gt: Tensor) -> Tensor:
    return F.l1_loss(net(*inputs).float(), gt)


def loss_of(name: str) -> Callable:
    return unfolding_loss(name) if 'phase' in name else plain_loss


def options_of(name: str, parts: list[str]) -> dict:
    changes = {'use_checkpoint': True} if 'checkpoint' in parts else {}
    return network_options(name, **changes)


def make_steps(
    name: str, variant: str, shapes: list[tuple], device: str
) -> tuple[nn.Module, list[Callable]]:
    """A network, and its training steps on batches of these shapes (B, 3, H, W)."""
    if device == 'cpu':
        keep_freed_memory()  # as trainings do
    parts = variant.split('+')
    net = build(options_of(name, parts), device).train()
    layout = torch.channels_last if 'channels_last' in parts else torch.contiguous_format
    net = net.to(memory_format=layout)
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    loss = loss_of(name)
    forward = torch.compile(net) if 'compile' in parts else called(name, net)
    graphs = GradientGraphs(trained, []) if 'graphs' in parts else None

    def step(shape: tuple) -> Callable[[], None]:
        inputs = make_inputs(net, shape, device)
        gt, inputs[0] = (torch.rand(shape, device=device).to(memory_format=layout) for _ in 'ab')

        def gradients(_batch: dict[str, Tensor]) -> dict[str, Tensor]:
            with torch.autocast(device, torch.bfloat16, enabled='bf16' in parts):
                value = loss(forward, inputs, gt)
            value.backward()
            return {}

        def call() -> None:
            optimizer.zero_grad(set_to_none=True)
            if graphs is None:
                gradients({})
            else:
                graphs({'lq': inputs[0]}, gradients, nullcontext, kind=False)
            optimizer.step()

        return call

    return net, [step(shape) for shape in shapes]


def prepare_step(name: str, variant: str, shape: tuple, device: str) -> tuple:
    """For :func:`peak_memories`; the first step also creates the optimiser's state.

    A compiled one has the measured shape: for another the compiler would start again.
    """
    first = shape if 'compile' in variant else (1, 3, 32, 32)
    return tuple(make_steps(name, variant, [first, shape], device)[1])


def recomputes(name: str) -> bool:
    kind = getattr(archs, options_of(name, [])['type'])
    return name != 'vlunet-plain' and 'use_checkpoint' in inspect.signature(kind).parameters


def sides_of(networks: list[str], variants: list[str]) -> list[tuple[str, str]]:
    """(network, variant) without those that make no difference."""
    return [
        (name, variant)
        for name in networks
        for variant in variants
        if ('checkpoint' not in variant or recomputes(name))
        and (variant == 'plain' or name != 'vlunet-plain')
    ]


def floor_ms(limits: common.Limits, name: str, variant: str, size: int, batch: int) -> float | None:
    """Milliseconds that no implementation can undercut; None where the limits are not those."""
    if 'bf16' in variant:
        return None
    trained = name.removesuffix('-phase2')  # the frozen teacher has a forward pass only
    cost = network_cost(options_of(trained, []), size)
    return limits.floor_ms(2 * 4 * 4 * cost.params, 3 * 2 * cost.macs * batch)


def measure(
    args: argparse.Namespace, size: int, peaks: dict[tuple, float | None], limits: common.Limits
) -> Iterator[dict]:
    """Rows of the table for one size; without a time where memory does not suffice."""
    shape = (args.batch, 3, size, size)
    sides = sides_of(args.networks, args.variants)
    calls = {
        f'{name}|{variant}': make_steps(name, variant, [shape], args.device)[1][0]
        for name, variant in sides if (name, variant, size) in peaks
    }  # fmt: skip
    times = common.alternate(
        calls, args.repeats, device=args.device, budget=args.budget, lenient=True
    )
    for name, variant in sides:
        own = times.get(f'{name}|{variant}', [])
        row = {
            'network': name, 'variant': variant, 'batch': args.batch, 'size': size,
            'rounds': len(own), 'ms': f'{common.median_ms(own):.1f}' if own else '',
        }  # fmt: skip
        floor = floor_ms(limits, name, variant, size, args.batch)
        row['floor_ms'] = '' if floor is None else f'{floor:.1f}'
        first = f'{REFERENCE}|{args.variants[0]}'
        others = {REFERENCE: first, 'plain_variant': f'{name}|plain'}
        if name == 'vlunet':
            others['vlunet_plain'] = 'vlunet-plain|plain'
        for title, other in others.items():
            known = own and other in times and other != f'{name}|{variant}'
            row[f'ms_over_{title}'] = (
                f'{common.median_ratio(own, times[other]):.2f}' if known else ''
            )
        if not args.no_memory:
            row['peak_MiB'] = common.mib(peaks.get((name, variant, size)))
        yield row


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = common.new_parser(__doc__)
    parser.add_argument(
        '--networks', nargs='+', metavar='NAME', choices=TRAINED, default=list(NETWORKS)
    )
    parser.add_argument('--variants', nargs='+', metavar='VARIANT', default=['plain'])
    parser.add_argument('--sizes', type=int, nargs='+', default=[128], help='H = W')
    parser.add_argument('--batch', type=int, default=1)
    common.add_run_options(parser, repeats=3, out='results/training_step')
    args = parser.parse_args(argv)
    for variant in args.variants:
        for part in variant.split('+'):
            if part not in VARIANTS:
                parser.error(f"variant '{part}' is unknown; known: {', '.join(VARIANTS)}")
        if 'graphs' in variant and args.device == 'cpu':
            parser.error('graphs: needs --device cuda')
    if not sides_of(args.networks, args.variants):
        having = ', '.join(name for name in NETWORKS if recomputes(name))
        parser.error(
            f'nothing to measure: {", ".join(args.networks)} with {", ".join(args.variants)}; '
            f'checkpoint is an option of {having}, and vlunet-plain has the variant plain only'
        )
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    machine = common.prepare_machine(args.device, args.threads)
    print(machine)
    sides = {
        (*side, size): (*side, (args.batch, 3, size, size), args.device)
        for size in args.sizes for side in sides_of(args.networks, args.variants)
    }  # fmt: skip
    peaks = common.peak_memories(prepare_step, sides, args)
    limits = common.measure_limits(args.device)
    found = (row for size in args.sizes for row in measure(args, size, peaks, limits))
    common.write_rows(found, args.out, machine)


if __name__ == '__main__':
    main()
