"""Measures how the cost of a forward pass grows with image size, batch, stages and state size.

    python scripts/benchmark/scaling.py --network unfoldldm-tiny
    python scripts/benchmark/scaling.py --axes size --sizes 64 256 1024 --network restormer

Axes: ``size`` (the whole image at once), ``size-tiled`` (in tiles of ``--tile`` pixels, where the
image is larger), ``batch``, ``stages`` and ``d_state`` (UnfoldLDM only); the last three at
``--base-size``. Every point has a process of its own: the median of its runs (wall time, on a GPU
CUDA events) and the peak memory of the first.

``exponent`` is the slope of log time over log pixels (or batch, stages, states) from the point
before; at small sizes fixed costs hide the growth, so the last one tells. Above 1.1 growth counts
as super-linear. ``macs_exponent`` is the same for the counted operations and free of noise. One
source of growth is known: UnfoldLDM's decomposed gradient step multiplies the image with dense
H x H and W x W factors, which costs H W (H + W); tiles bound it.
"""

import argparse
import math
from collections.abc import Iterator

import common
import torch
from network_set import NAMES, build, make_inputs, network_options

from unfoldldm_basicsr import archs
from unfoldldm_basicsr.common.cost import build_on_meta, network_cost
from unfoldldm_basicsr.restoring.tiling import restore_in_tiles, tile_spans

AXES = ('size', 'size-tiled', 'batch', 'stages', 'd_state')
UNFOLDING_AXES = {'stages': 'num_stages', 'd_state': 'mgda_d_state'}
SUPER_LINEAR = 1.1
OVERLAP = 32


def plan(args: argparse.Namespace) -> list[dict]:
    points = []
    for axis in args.axes:
        values = args.sizes if axis.startswith('size') else getattr(args, axis)
        for value in values:
            tiled = axis == 'size-tiled'
            if tiled and value <= args.tile:
                continue
            changes = {UNFOLDING_AXES[axis]: value} if axis in UNFOLDING_AXES else {}
            points.append({
                'axis': axis, 'value': value,
                'size': value if axis.startswith('size') else args.base_size,
                'batch': value if axis == 'batch' else 1,
                'tile': args.tile if tiled else None,
                'options': network_options(args.network, **changes),
            })  # fmt: skip
    return points


def run_point(
    point: dict, repeats: int, budget: float, device: str, threads: int
) -> tuple[list[float], float]:
    """Seconds of the runs, and the peak of the first in MiB (NaN where nothing tells it)."""
    common.prepare_machine(device, threads)
    net = build(point['options'], device).eval()

    def forward(batch: int, size: int, tile: int | None) -> None:
        image, *others = make_inputs(net, (batch, 3, size, size), device)
        with torch.no_grad():
            if tile is None:
                net(image, *others)
            else:
                restore_in_tiles(
                    net, lambda part: net(part, *others), image, tile=tile, overlap=OVERLAP,
                    global_statistics=False,
                )  # fmt: skip

    def call() -> None:
        forward(point['batch'], point['size'], point['tile'])

    forward(1, 32, None)
    if device == 'cuda':
        call()  # cuDNN tries its algorithms
    times: list[float] = []
    peak = common.peak_growth(lambda: times.append(common.seconds_of(call, device, 'wall')), device)
    if repeats > 1 and times[0] < budget:
        limited = {'device': device, 'warm_up': False, 'budget': budget}
        times += common.alternate({'call': call}, repeats - 1, **limited)['call']
    return times, peak


def count_macs(point: dict) -> int:
    """Multiply-accumulates of a point: of the whole image, or of every tile with its overlap."""
    options, size, tile = point['options'], point['size'], point['tile']
    if tile is None:
        return point['batch'] * network_cost(options, size).macs
    arguments = {key: value for key, value in options.items() if key != 'type'}
    multiple = build_on_meta(getattr(archs, options['type']), arguments).size_multiple
    tiles = len(tile_spans(size, tile, OVERLAP, multiple)) ** 2
    return point['batch'] * tiles * network_cost(options, tile // multiple * multiple).macs


def measure(point: dict, args: argparse.Namespace) -> dict:
    """Row of one point; without time and memory where there is not enough memory."""
    row = {
        'network': args.network, 'axis': point['axis'], 'value': point['value'],
        'size': point['size'], 'batch': point['batch'], 'GMACs': f'{count_macs(point) / 1e9:.3f}',
    }  # fmt: skip
    settings = (args.repeats, args.budget, args.device, args.threads)
    try:
        if args.no_memory:
            times, peak = run_point(point, *settings)[0], None
        else:
            times, peak = common.in_own_process(run_point, point, *settings)
    except (RuntimeError, MemoryError) as error:
        if not common.ran_out_of_memory(error):
            raise
        print(f'{point["axis"]} {point["value"]}: {common.first_line(error)}')
        return row
    return {
        **row,
        'runs': len(times),
        'ms': f'{common.median_ms(times):.1f}',
        'peak_MiB': common.mib(peak),
    }


def exponent(row: dict, before: dict | None, key: str) -> str:
    """Slope of log ``key`` over log value (pixels for sizes) from the point before."""
    if before is None or not row.get(key) or not before.get(key):
        return ''
    power = 2 if row['axis'].startswith('size') else 1
    growth = power * math.log(row['value'] / before['value'])
    return f'{math.log(float(row[key]) / float(before[key])) / growth:.2f}'


def measure_all(args: argparse.Namespace) -> Iterator[dict]:
    before: dict | None = None
    for point in plan(args):
        row = measure(point, args)
        if before is not None and before['axis'] != row['axis']:
            before = None
        row['exponent'] = exponent(row, before, 'ms')
        row['macs_exponent'] = exponent(row, before, 'GMACs')
        yield row
        before = row


def summary(axis: str, rows: list[dict]) -> str:
    """One sentence on the growth along an axis, by its last step."""
    last = rows[-1]
    if not last.get('exponent'):
        return f'{axis}: not enough points.'
    against = 'pixels' if axis.startswith('size') else axis
    text = f'{axis}: from {rows[-2]["value"]} to {last["value"]} time grows as {against}'
    text += f'^{last["exponent"]}, operations as {against}^{last["macs_exponent"]}'
    faster = float(last['exponent']) > SUPER_LINEAR
    return f'{text}.{" SUPER-LINEAR." if faster else ""}'


def plot(rows: list[dict], args: argparse.Namespace, machine: str) -> None:
    axes_names = list(dict.fromkeys(r['axis'] for r in rows if r.get('ms')))
    titles = list(dict.fromkeys(a.removesuffix('-tiled') for a in axes_names))
    figure, panels = common.new_figure(len(titles))
    for axes, title in zip(panels, titles, strict=True):
        for axis in (a for a in axes_names if a.removesuffix('-tiled') == title):
            line = [r for r in rows if r['axis'] == axis and r.get('ms')]
            power = 2 if title == 'size' else 1
            xs, ys = [r['value'] ** power for r in line], [float(r['ms']) for r in line]
            axes.loglog(xs, ys, 'o-', label=axis)
            if axis == title:
                linear = [ys[-1] * x / xs[-1] for x in xs]
                axes.loglog(xs, linear, 'k:', label='linear', linewidth=1)
        axes.set(xlabel='pixels' if title == 'size' else title, ylabel='milliseconds')
        axes.grid(alpha=0.3, which='both')
        axes.legend(fontsize=8)
    common.save_figure(figure, args.out, f'{args.network}, {machine}')


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = common.new_parser(__doc__)
    parser.add_argument('--network', choices=NAMES, metavar='NAME', default='unfoldldm-tiny')
    parser.add_argument('--axes', nargs='+', choices=AXES, help='default: all that apply')
    parser.add_argument(
        '--sizes', type=int, nargs='+', default=[64, 128, 256, 512, 1024, 2048], help='H = W'
    )
    parser.add_argument('--tile', type=int, default=512)
    parser.add_argument('--base-size', type=int, default=128, help='for the other axes (128)')
    parser.add_argument('--batch', type=int, nargs='+', default=[1, 2, 4, 8])
    parser.add_argument('--stages', type=int, nargs='+', default=[1, 2, 3, 6])
    parser.add_argument('--d-state', type=int, nargs='+', default=[1, 4, 16, 32])
    common.add_run_options(parser, repeats=3, out='results/scaling')
    parser.set_defaults(budget=20.0)
    args = parser.parse_args(argv)
    unfolding = network_options(args.network)['type'] == 'UnfoldLDM'
    if args.axes is None:
        args.axes = [a for a in AXES if unfolding or a not in UNFOLDING_AXES]
    elif not unfolding and set(args.axes) & set(UNFOLDING_AXES):
        parser.error(f'{args.network} has no stages and states to vary')
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    machine = common.prepare_machine(args.device, args.threads)
    print(machine)
    rows = common.write_rows(measure_all(args), args.out, machine)
    plot(rows, args, machine)
    for axis in dict.fromkeys(r['axis'] for r in rows):
        print(summary(axis, [r for r in rows if r['axis'] == axis]))


if __name__ == '__main__':
    main()
