"""Measures the four-direction selective scan against the recurrence written as a plain loop.

    python scripts/benchmark/scan.py --sizes 32 64 --d-states 1 16 --repeats 5 --out results/scan
    python scripts/benchmark/scan.py --core

Implementations of the same sum, run alternately in one process on one thread, so that other load on
the machine hits all of them:

    op        ss2d_scan: image in, image out, all four directions, on the first of --backends
    op NAME   the same on each further backend (CUDA: mamba, triton, torch)
    loop      plain loop over L positions on prepared sequences, steps taken with ``unbind``: with
              indexing, as in the published reference functions, the backward pass allocates a full
              gradient per step

The loops get their four direction-ordered sequences for nothing (they are built before the clock
starts) and return them unmerged; the op does all of its own work. Times are medians in
milliseconds of CPU time (``time.process_time``) or of CUDA events; "times faster" is the median of
the ratios of neighbouring runs. Memory is the peak that the allocator holds during a call beyond
what was there before, in bytes per scanned element (4 B C H W of them). ``floor_ms`` is what the
machine needs to read every input and write every output once and for the arithmetic, at the rates
of a copy and of a matrix product measured here.

``--core`` measures everything between a VSS block's depthwise convolution and its layer norm,
projections included, against MambaIR's formula (four direction-ordered copies, projections on
each, loop, merge) with the same parameters; memory is then in bytes per element of x (B C H W).

Writes <out>.csv and <out>.png.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import common
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from unfoldldm_basicsr.archs.layers.vss import SS2D
from unfoldldm_basicsr.ops.ss2d import describe_backends, set_scan_backend, ss2d_scan
from unfoldldm_basicsr.ops.ss2d.op import scan_flops

TASKS = ('forward', 'forward+backward')


def plain_scan(u, delta, A, B, C, D, bias) -> Tensor:
    """u, delta (B, 4 C, L); A (4 C, N); B, C (B, 4, N, L); D, bias (4 C,) -> (B, 4 C, L)."""
    delta = F.softplus(delta + bias[:, None])
    per_direction = u.shape[1] // 4
    B, C = (t.repeat_interleave(per_direction, 1).transpose(2, 3) for t in (B, C))
    decay = torch.exp(delta[..., None] * A[:, None])  # B 4C L N
    drive = (delta * u)[..., None] * B
    h, ys = u.new_zeros(u.shape[0], *A.shape), []
    for decay_t, drive_t, c_t in zip(*(t.unbind(2) for t in (decay, drive, C)), strict=True):
        h = decay_t * h + drive_t
        ys.append((h * c_t).sum(-1))
    return torch.stack(ys, -1) + D[:, None] * u


def make_inputs(size: int, channels: int, d_state: int, device: str) -> list[Tensor]:
    """Inputs of ss2d_scan with Mamba's initialisation: A = -1..-N, steps around 0.01."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    grid = (1, size, size)
    A = -torch.arange(1.0, d_state + 1).repeat(4, channels, 1)
    inputs = [normal(*grid, channels), normal(*grid, 4, channels) - 4.6, A,
              normal(*grid, 4, d_state), normal(*grid, 4, d_state), torch.ones(4, channels),
              torch.zeros(4, channels)]  # fmt: skip
    return [t.to(device) for t in inputs]


def to_sequences(t: Tensor) -> Tensor:
    """(1, H, W, 4, Z) -> (1, 4, Z, L), every direction in its own order."""
    rows, columns = t.permute(0, 3, 4, 1, 2).flatten(3), t.permute(0, 3, 4, 2, 1).flatten(3)
    ordered = (rows[:, 0], columns[:, 1], rows[:, 2].flip(2), columns[:, 3].flip(2))
    return torch.stack(ordered, 1).contiguous()


def with_backend(name: str) -> Callable[..., Tensor]:
    """The op on one backend; a call costs the same look-up for all of them."""

    def scan(*inputs: Tensor) -> Tensor:
        set_scan_backend(name)
        return ss2d_scan(*inputs)

    return scan


def make_calls(
    inputs: list[Tensor], task: str, backends: Sequence[str] = ('torch',)
) -> dict[str, Callable[[], Tensor]]:
    """One function per implementation; ``task`` is 'forward' or 'forward+backward'.

    The op runs on the first backend as 'op', on every further one as 'op NAME'.
    """
    x, dt, A, Bm, Cm, D, bias = inputs
    four = x.unsqueeze(3).expand(-1, -1, -1, 4, -1)
    sequences = [to_sequences(four).flatten(1, 2), to_sequences(dt).flatten(1, 2),
                 A.flatten(0, 1), to_sequences(Bm), to_sequences(Cm), D.flatten(),
                 bias.flatten()]  # fmt: skip
    train = task != 'forward'

    def call(function: Callable, arguments: list[Tensor]) -> Callable:
        leaves = [t.detach().clone().requires_grad_(train) for t in arguments]

        def run() -> Tensor:
            with torch.set_grad_enabled(train):
                y = function(*leaves)
                if train:
                    torch.autograd.grad(y.sum(), leaves)
            return y.detach()

        return run

    others = {f'op {name}': call(with_backend(name), inputs) for name in backends[1:]}
    first = call(with_backend(backends[0]), inputs)
    return {'op': first, **others, 'loop': call(plain_scan, sequences)}


def merge(y: Tensor, size: int) -> Tensor:
    """Sum of the four sequences (1, 4 C, L) at every pixel: (1, H, W, C)."""
    y = y.unflatten(1, (4, -1))
    rows = (y[:, 0] + y[:, 2].flip(2)).unflatten(2, (size, size))
    columns = (y[:, 1] + y[:, 3].flip(2)).unflatten(2, (size, size))
    return (rows + columns.transpose(2, 3)).permute(0, 2, 3, 1)


def mambair_core(net: SS2D, u: Tensor) -> Tensor:
    """:meth:`SS2D.scan` as MambaIR computes it: copies in four orders, projected one by one."""
    size, rank, states = u.shape[1], net.dt_rank, net.d_state
    rows, columns = (t.flatten(2) for t in (u.permute(0, 3, 1, 2), u.permute(0, 3, 2, 1)))
    two = torch.stack([rows, columns], 1)
    xs = torch.cat([two, two.flip(3)], 1)  # 1 4 C L
    selection = torch.einsum('bkdl,kcd->bkcl', xs, net.x_proj)
    dt, Bm, Cm = selection.split([rank, states, states], dim=2)
    dt = torch.einsum('bkrl,kdr->bkdl', dt, net.dt_proj)
    y = plain_scan(
        xs.flatten(1, 2), dt.flatten(1, 2), -net.A_log.flatten(0, 1).exp(), Bm, Cm,
        net.D.flatten(), net.dt_bias.flatten(),
    )  # fmt: skip
    return merge(y, size)


def core_calls(size: int, channels: int, d_state: int, device: str) -> dict[str, Callable]:
    """The core of a VSS block with ``channels`` inner channels, in both ways."""
    torch.manual_seed(0)
    net = SS2D(channels // 2, d_state=d_state).to(device)
    u = F.silu(torch.randn(1, size, size, channels, device=device))

    def without_gradients(function: Callable, *inputs: object) -> Callable:
        def run() -> Tensor:
            with torch.no_grad():
                return function(*inputs)

        return run

    return {'op': without_gradients(net.scan, u), 'loop': without_gradients(mambair_core, net, u)}


def floor(size: int, channels: int, d_state: int, task: str, limits: common.Limits) -> float:
    """Milliseconds for reading all inputs and writing all outputs once, and the arithmetic."""
    per_pixel = 4 * (channels + 4 * channels + 2 * 4 * d_state + channels)  # x, dt, B and C, y
    passes, work = (1, 1) if task == 'forward' else (3, 4)
    flops = work * scan_flops(size * size, channels, d_state)
    return limits.floor_ms(passes * per_pixel * size * size, flops)


def peak_bytes(call: Callable, device: str) -> float:
    if device == 'cuda':
        return common.peak_growth(call, device) * 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == '[memory]']
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    del result
    return peak


def measure(
    size: int, d_state: int, task: str, args: argparse.Namespace, limits: common.Limits
) -> list[dict]:
    """Rows of the table for one problem; ``task`` is one of :data:`TASKS` or 'core forward'."""
    core, channels = task == 'core forward', args.channels
    if core:
        calls = core_calls(size, channels, d_state, args.device)
    else:
        inputs = make_inputs(size, channels, d_state, args.device)
        calls = make_calls(inputs, task, args.backends)
    outputs = {name: call() for name, call in calls.items()}  # also the warm-up
    times = common.alternate(
        calls, args.repeats, device=args.device, clock='cpu', warm_up=args.device == 'cuda'
    )
    elements = size * size * channels * (1 if core else 4)
    rows = []
    for name, call in calls.items():
        expected = outputs[name] if core or name.startswith('op') else merge(outputs[name], size)
        difference = (outputs['op'] - expected).abs().max() / expected.abs().max()
        rows.append({
            'height': size, 'width': size, 'channels': channels, 'd_state': d_state,
            'task': task, 'implementation': name,
            'milliseconds': round(common.median_ms(times[name]), 3),
            'op_times_faster': round(common.median_ratio(times[name], times['op']), 2),
            'bytes_per_element': round(peak_bytes(call, args.device) / elements, 1),
            'op_relative_difference': f'{difference.item():.1e}',
            'floor_ms': '' if core else round(floor(size, channels, d_state, task, limits), 4),
        })  # fmt: skip
    return rows


def plot(rows: list[dict], path: Path, machine: str) -> None:
    """Time over the number of pixels, one panel per task, one line per implementation and N."""
    tasks = list(dict.fromkeys(r['task'] for r in rows))
    figure, panels = common.new_figure(len(tasks))
    names = dict.fromkeys(r['implementation'] for r in rows)
    styles = dict(zip(names, ('o-', 's--', '^:', 'D-.', 'v-'), strict=False))
    for axes, task in zip(panels, tasks, strict=True):
        chosen = [r for r in rows if r['task'] == task]
        for colour, d_state in enumerate(sorted({r['d_state'] for r in chosen})):
            for name, style in styles.items():
                line = [r for r in chosen if (r['d_state'], r['implementation']) == (d_state, name)]
                if line:
                    axes.loglog([r['height'] * r['width'] for r in line],
                                [r['milliseconds'] for r in line], style,
                                color=f'C{colour}', label=f'{name}, N = {d_state}')  # fmt: skip
        axes.set(title=task, xlabel='pixels', ylabel='milliseconds')
        axes.grid(alpha=0.3, which='both')
        axes.legend(fontsize=8)
    common.save_figure(figure, path, machine)


def usable_backends(asked: Sequence[str] | None, device: str) -> list[str]:
    """The backends to measure, the quickest first if none is asked for; ValueError: not usable."""
    notes = describe_backends()
    if device == 'cpu':
        notes |= dict.fromkeys(('mamba', 'triton'), 'not usable: it needs --device cuda')
    for name in asked or ():
        if not notes[name].startswith('usable'):
            raise ValueError(f'{name} is {notes[name]}')
    order = ('mamba', 'triton', 'torch')
    return list(asked or (name for name in order if notes[name].startswith('usable')))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = common.new_parser(__doc__)
    parser.add_argument('--core', action='store_true', help='with projections, against MambaIR')
    parser.add_argument(
        '--sizes', type=int, nargs='+', help='H = W; default 16 32 64, with --core 64'
    )
    parser.add_argument('--channels', type=int, default=96)
    parser.add_argument('--d-states', type=int, nargs='+', default=[1, 16])
    parser.add_argument('--tasks', nargs='+', choices=TASKS, help='default: both')
    parser.add_argument('--repeats', type=int, default=5)
    common.add_device_option(parser)
    parser.add_argument(
        '--backends', nargs='+', choices=('mamba', 'triton', 'torch'),
        help='of the op, in turn with the loops; default: all usable on the device',
    )  # fmt: skip
    parser.add_argument('--out', type=Path, default=Path('results/scan'), help='without suffix')
    args = parser.parse_args(argv)
    if args.core and args.tasks:
        parser.error('--core measures the forward pass only')
    if args.core and len(args.backends or ()) > 1:
        parser.error('--core measures one backend: name one, or run the script once for each')
    if args.core and args.channels % 2:
        parser.error('--core needs an even number of --channels')
    try:
        args.backends = usable_backends(args.backends, args.device)
    except ValueError as error:
        parser.error(f'--backends: {error}')
    args.sizes = args.sizes or ([64] if args.core else [16, 32, 64])
    args.tasks = ['core forward'] if args.core else args.tasks or list(TASKS)
    return args


def main(argv: list[str] | None = None) -> None:
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # the profiler's own messages
    args = parse_arguments(argv)
    machine = common.prepare_machine(args.device, 1)
    print(machine)
    for name, note in describe_backends().items():
        print(f'backend {name}: {note}')
    limits = common.measure_limits(args.device)
    set_scan_backend(args.backends[0])
    found = (
        row
        for d_state in args.d_states for size in args.sizes for task in args.tasks
        for row in measure(size, d_state, task, args, limits)
    )  # fmt: skip
    rows = common.write_rows(found, args.out, machine)
    set_scan_backend(None)
    plot(rows, args.out, machine)


if __name__ == '__main__':
    main()
