"""Measures restoring a large image in tiles: peak memory, time, and what tiles change.

    python scripts/benchmark/restore_tiled.py
    python scripts/benchmark/restore_tiled.py --weights net_g.pth --tasks difference

``memory``: a process of its own restores an image of ``--large`` pixels with tiles; reported is the
peak of the whole process (libraries included), which shall stay below 3 GB, and the time.

``difference``: the result with tiles minus the one without, on ``--small`` pixels with tiles of
``--small-tile``, with every tile's own statistics and with statistics fixed for all tiles
(``--global-statistics``). In levels of 255: root mean square, largest, and ``seam``: the largest
change from a row or column to the next of the difference's mean along a tile's side. Texture that
came out otherwise averages out there, a seam would stay. A picture shows both results and their
differences. Without ``--weights`` the network is untrained with random weights: right for memory
and time, while differences are meaningful for trained weights only.
"""

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path

import common
import numpy as np
import torch
from data_loading import make_picture
from network_set import NAMES, build, network_options

from unfoldldm_basicsr.comparing.measuring import forget_peak, process_memory
from unfoldldm_basicsr.pictures.drawing import comparison_grid, save_picture
from unfoldldm_basicsr.restoring.restorer import Restorer

TASKS = ('memory', 'difference')
PROMISED_MB = 3000
AMPLIFIED = 16


def make_restorer(source: str, device: str, tile: int | None, **settings: object) -> Restorer:
    """Of a weight file, or of a network of the set with random weights."""
    weights = source if Path(source).is_file() else build(network_options(source))
    return Restorer(weights, device=device, tile=tile, **settings)


def noisy_picture(width: int, height: int) -> np.ndarray:
    """uint8 picture with Gaussian noise whose sigma grows from 0 to 50 levels to the right."""
    rng = np.random.default_rng(0)
    sigma = np.linspace(0, 50, width, dtype=np.float32)[:, None]
    noise = sigma * rng.standard_normal((height, width, 3), dtype=np.float32)
    return np.clip(make_picture(rng, width, height) + noise, 0, 255).astype(np.uint8)


def restore_large(
    source: str, width: int, height: int, tile: int, device: str, threads: int, fixed: bool
) -> tuple[float, float]:
    """Peak of this process (on a GPU: of its allocator) in MB, and seconds."""
    common.prepare_machine(device, threads)
    image = noisy_picture(width, height)
    forget_peak()
    restorer = make_restorer(source, device, tile, global_statistics=fixed)
    seconds = common.seconds_of(lambda: restorer.restore(image), device, 'wall')
    if device == 'cuda':
        return torch.cuda.max_memory_allocated() / 1e6, seconds
    return process_memory('VmHWM') * 2**20 / 1e6, seconds


def measure_memory(source: str, args: argparse.Namespace) -> Iterator[dict]:
    for fixed in args.statistics:
        settings = (*args.large, args.tile, args.device, args.threads, fixed == 'fixed')
        peak, seconds = common.in_own_process(restore_large, source, *settings)
        yield {
            'task': 'memory', 'network': source, 'width': args.large[0], 'height': args.large[1],
            'tile': args.tile, 'statistics': fixed, 'seconds': f'{seconds:.1f}',
            'peak_MB': f'{peak:.0f}',
        }  # fmt: skip
        verdict = 'kept' if peak < PROMISED_MB else 'MISSED'
        print(f'promised below {PROMISED_MB} MB: {verdict}')


def seam(difference: torch.Tensor, side: int) -> float:
    """Largest change between neighbouring means of (1, C, H, W) along ``side`` pixels."""
    largest = 0.0
    for along, across in ((-1, -2), (-2, -1)):
        for strip in difference.split(side, dim=along):
            if strip.shape[along] == side:  # a rest has too few pixels for a mean
                means = strip.mean(dim=(1, along), keepdim=True)
                largest = max(largest, means.diff(dim=across).abs().max().item())
    return largest


def draw_difference(results: dict[str, torch.Tensor], path: Path) -> Path:
    """Results (1, 3, H, W), the first without tiles, and below what tiles change, amplified."""
    images = [result[0].permute(1, 2, 0).numpy() for result in results.values()]
    changes = [0.5 + AMPLIFIED * (image - images[0]) for image in images]
    captions = [[''] * len(images), [f'{AMPLIFIED} x difference'] * len(images)]
    save_picture(path, comparison_grid([images, changes], [*results], captions, cell_width=480))
    return path


def measure_difference(source: str, args: argparse.Namespace) -> Iterator[dict]:
    image = torch.from_numpy(noisy_picture(*args.small)).permute(2, 0, 1)[None] / 255
    whole = make_restorer(source, args.device, None).restore_tensor(image).cpu()
    results = {'without tiles': whole}
    for fixed in ('own', 'fixed'):
        restorer = make_restorer(
            source, args.device, args.small_tile, global_statistics=fixed == 'fixed'
        )
        result = restorer.restore_tensor(image).cpu()
        results[f'tiles of {args.small_tile}, {fixed} statistics'] = result
        difference = 255 * (result - whole)
        yield {
            'task': 'difference', 'network': Path(source).name, 'width': args.small[0],
            'height': args.small[1], 'tile': args.small_tile, 'statistics': fixed,
            'rms': f'{difference.square().mean().sqrt().item():.4f}',
            'max': f'{difference.abs().max().item():.3f}',
            'seam': f'{seam(difference, args.small_tile):.3f}',
        }  # fmt: skip
    picture = args.out.with_name(f'{args.out.name}_pictures.png')
    print(f'written: {draw_difference(results, picture)}')


def measure(source: str, args: argparse.Namespace) -> Iterator[dict]:
    if 'memory' in args.tasks:
        yield from measure_memory(source, args)
    if 'difference' in args.tasks:
        yield from measure_difference(source, args)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = common.new_parser(__doc__)
    parser.add_argument('--network', choices=NAMES, metavar='NAME', default='unfoldldm-tiny')
    parser.add_argument('--weights', help='trained weights instead of random ones')
    parser.add_argument('--tasks', nargs='+', choices=TASKS, default=list(TASKS))
    size = {'type': int, 'nargs': 2, 'metavar': ('WIDTH', 'HEIGHT')}
    parser.add_argument('--large', default=[4096, 2160], **size)
    parser.add_argument('--tile', type=int, default=512)
    parser.add_argument('--small', default=[768, 512], **size)
    parser.add_argument('--small-tile', type=int, default=256)
    parser.add_argument(
        '--statistics', nargs='+', choices=('own', 'fixed'), default=['own'],
        help='for the task memory (own); fixed takes up to nine more tiles of time',
    )  # fmt: skip
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    common.add_device_option(parser)
    parser.add_argument('--out', type=Path, default=Path('results/restore_tiled'))
    args = parser.parse_args(argv)
    if args.weights and not Path(args.weights).is_file():
        parser.error(f'--weights {args.weights}: no such file')
    if 'memory' in args.tasks and not Path('/proc/self/status').exists():
        parser.error('the task memory needs Linux')
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    machine = common.prepare_machine(args.device, args.threads)
    logging.getLogger('basicsr').setLevel(logging.ERROR)  # that tiles change results is measured
    print(machine)
    common.write_rows(measure(args.weights or args.network, args), args.out, machine)


if __name__ == '__main__':
    main()
