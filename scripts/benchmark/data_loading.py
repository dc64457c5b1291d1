"""Measures training pairs per second: BasicSR's PairedImageDataset against this package's.

    python scripts/benchmark/data_loading.py --workers 0 2 --repeats 3

Makes pairs of 1280x720 PNG in a temporary folder (seeded content with the spectrum of photos, edges
and sensor noise; the sizes of the files are printed), and the databases from them:

    basicsr folder    the PNG files
    basicsr lmdb      as BasicSR's make_lmdb_from_imgs writes it
    basicsr lmdb bmp  this package's BMP database, read by BasicSR's own dataset
    folder, lmdb png, lmdb bmp                   this package's dataset
    lmdb png sub-images, lmdb bmp sub-images     the same from overlapping squares

All go through BasicSR's build_dataset and build_dataloader with a crop, flips and turns, in turn,
round by round. Timed (wall) is an epoch from its first batch to its last, with a warm file cache;
every round has new workers. Ratios are medians over the rounds.

Files are compared as well: processor time to load PNG, JPEG and BMP of 8 bits, small and large, by
the first version of this package (``Path.read_bytes`` and OpenCV), by OpenCV with the quickest way
to read a file, and by this package, in turn; ratios are medians.

Before that it is checked that our modes give bit-identical batches for one seed (those on whole
images, and those on sub-images), and that whole images equal those of BasicSR.
"""

import argparse
import contextlib
import io
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import common
import cv2
import numpy as np
import torch

from unfoldldm_basicsr.data.images import read_picture
from unfoldldm_basicsr.data.sources import close_lmdbs
from unfoldldm_basicsr.preparing.lmdb_writer import SubImages, write_lmdb

WHOLE = ('folder', 'lmdb png', 'lmdb bmp')
PIECES = ('lmdb png sub-images', 'lmdb bmp sub-images')
THEIRS = ('basicsr folder', 'basicsr lmdb', 'basicsr lmdb bmp')
MODES = (*THEIRS, *WHOLE, *PIECES)


def make_picture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Picture in [0, 255]: noise of all scales that falls like 1/f, and shapes with sharp edges."""
    picture = np.full((height, width, 3), 110.0, np.float32)
    cells = 2
    while cells < width // 4:
        shape = (max(2, cells * height // width), cells, 3)
        coarse = rng.standard_normal(shape).astype(np.float32)
        picture += (
            90 / cells**0.7 * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        )
        cells *= 2
    for _ in range(40):
        corners = (
            rng.integers(0, (width, height), (4, 2)) // 3 + rng.integers(0, (width, height), 2) // 2
        )
        cv2.fillConvexPoly(picture, corners.astype(np.int32), rng.uniform(20, 230, 3).tolist())
    return np.clip(picture, 0, 255)


def make_pairs(folder: Path, count: int, width: int, height: int) -> None:
    """Writes gt and lq PNG files, both with sensor noise, as large as those of natural photos."""
    rng = np.random.default_rng(0)
    for side in ('gt', 'lq'):
        (folder / side).mkdir()
    for index in range(count):
        clean = make_picture(rng, width, height)
        for side, sigma in (('gt', 2.5), ('lq', 4.5)):
            noise = sigma * rng.standard_normal(clean.shape, dtype=np.float32)
            picture = np.clip(np.rint(clean + noise), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / side / f'{index:04d}.png'), picture)


def decode_with_opencv(payload: bytes) -> np.ndarray:
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR
    return cv2.imdecode(np.frombuffer(payload, np.uint8), flags)[..., ::-1]


def read_quickly(path: Path) -> bytes:
    with open(path, 'rb', buffering=0) as file:
        return file.read()


READERS = {
    'before': lambda path: decode_with_opencv(path.read_bytes()),  # as the first version had it
    'opencv': lambda path: decode_with_opencv(read_quickly(path)),
    'ours': lambda path: read_picture(path).opaque,
}


def compare_decoders(folder: Path, args: argparse.Namespace) -> list[dict]:
    """A row for each format and size: processor time of each reader, how much faster ours is."""
    rows, rounds = [], 20 * args.repeats
    for width, height in (*((side, side) for side in (64, 128, 256, 512)), args.picture):
        picture = make_picture(np.random.default_rng(0), width, height).astype(np.uint8)
        for ending in ('png', 'jpg', 'bmp'):
            path = folder / f'{width}.{ending}'
            cv2.imwrite(str(path), picture)
            first, *others = (read(path) for read in READERS.values())
            assert all(np.array_equal(first, other) for other in others), ending
            count = max(1, 500_000 // (width * height))
            calls = {
                name: lambda read=read, path=path, count=count: [read(path) for _ in range(count)]
                for name, read in READERS.items()
            }
            times = common.alternate(calls, rounds, clock='cpu')
            row = {'format': ending, 'width': width, 'height': height, 'rounds': rounds}
            for name, own in times.items():
                row[f'{name}_ms'] = f'{common.median_ms(own) / count:.4f}'
            for name in ('before', 'opencv'):
                row[f'over_{name}'] = f'{common.median_ratio(times[name], times["ours"]):.2f}'
            common.print_row(row)
            rows.append(row)
    return rows


def make_databases(folder: Path, crop_size: int) -> None:
    """All databases next to the folders ``gt`` and ``lq``."""
    from basicsr.utils.lmdb_util import make_lmdb_from_imgs  # only after this package

    for side in ('gt', 'lq'):
        names = sorted(p.name for p in (folder / side).iterdir())
        keys = [Path(name).stem for name in names]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            stock = folder / f'stock_{side}.lmdb'
            make_lmdb_from_imgs(str(folder / side), str(stock), names, keys)
        squares = SubImages(crop_size, crop_size // 2)
        for payload in ('png', 'bmp'):
            write_lmdb(folder / side, folder / f'{payload}_{side}.lmdb', payload=payload)
            write_lmdb(
                folder / side, folder / f'{payload}_pieces_{side}.lmdb', payload=payload,
                sub_images=squares,
            )  # fmt: skip
        # LMDB allows one open environment per file and process: BasicSR gets its own copy.
        shutil.copytree(folder / f'bmp_{side}.lmdb', folder / f'copy_{side}.lmdb')


def dataset_options(mode: str, folder: Path, args: argparse.Namespace, workers: int) -> dict:
    """The dataset's part of an option file."""
    roots = {
        'basicsr folder': '{}', 'basicsr lmdb': 'stock_{}.lmdb', 'basicsr lmdb bmp': 'copy_{}.lmdb',
        'folder': '{}', 'lmdb png': 'png_{}.lmdb', 'lmdb bmp': 'bmp_{}.lmdb',
        'lmdb png sub-images': 'png_pieces_{}.lmdb', 'lmdb bmp sub-images': 'bmp_pieces_{}.lmdb',
    }  # fmt: skip
    stock = mode in THEIRS
    return {
        'name': mode, 'phase': 'train', 'scale': 1,
        'type': 'PairedImageDataset' if stock else 'PairedDegradationDataset',
        'dataroot_gt': str(folder / roots[mode].format('gt')),
        'dataroot_lq': str(folder / roots[mode].format('lq')),
        'io_backend': {'type': 'disk' if mode.endswith('folder') else 'lmdb'},
        'gt_size': args.gt_size, 'use_hflip': True, 'use_rot': True,
        'num_worker_per_gpu': workers, 'batch_size_per_gpu': args.batch,
    }  # fmt: skip


def make_loader(mode: str, folder: Path, args: argparse.Namespace, workers: int):
    """BasicSR's loader for one mode; an epoch has ``--batches`` batches."""
    from basicsr.data import build_dataloader, build_dataset
    from basicsr.data.data_sampler import EnlargedSampler

    options = dataset_options(mode, folder, args, workers)
    dataset = build_dataset(options)
    sampler = EnlargedSampler(dataset, 1, 0, args.batches * args.batch / len(dataset))
    return build_dataloader(dataset, options, num_gpu=0, sampler=sampler, seed=0)


def epoch_seconds(loader) -> float:
    """Wall time from the first batch of a new epoch to its last."""
    batches = iter(loader)
    next(batches)
    begin = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - begin


def check_batches(folder: Path, args: argparse.Namespace, workers: int) -> None:
    """Our modes must give the same bits for the same seed."""
    for group in (WHOLE, PIECES):
        first = None
        for mode in group:
            loader = make_loader(mode, folder, args, workers)
            torch.manual_seed(0)
            batches = [(b['lq'], b['gt']) for _, b in zip(range(2), loader, strict=False)]
            if first is None:
                first = batches
            for one, other in zip(first, batches, strict=True):
                equal = all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
                assert equal, f'{mode} gives other batches than {group[0]} for the same seed'
    print(f'identical batches for one seed: {", ".join(WHOLE)}; {", ".join(PIECES)}')


def check_pixels(folder: Path, args: argparse.Namespace) -> None:
    """Whole images must equal BasicSR's."""
    from basicsr.data import build_dataset

    keys = ('name', 'type', 'dataroot_gt', 'dataroot_lq', 'io_backend', 'scale')
    stock, ours = (
        build_dataset(
            {k: dataset_options(mode, folder, args, 0)[k] for k in keys} | {'phase': 'val'}
        )
        for mode in ('basicsr folder', 'lmdb bmp')
    )
    item = ours[0]
    theirs = next(i for i in stock if Path(i['gt_path']).stem == item['gt_path'])  # not sorted
    for key in ('lq', 'gt'):
        assert torch.equal(item[key], theirs[key]), f'{key} differs from BasicSR'
    print('whole images: equal to those of BasicSR')


def measure(folder: Path, args: argparse.Namespace) -> list[dict]:
    rows = []
    for workers in args.workers:
        loaders = {mode: make_loader(mode, folder, args, workers) for mode in MODES}
        times: dict[str, list[float]] = {mode: [] for mode in MODES}
        for round_ in range(args.repeats + 1):
            for mode, loader in loaders.items():
                seconds = epoch_seconds(loader)
                if round_:  # the first round warms up
                    times[mode].append(seconds)
        close_lmdbs()
        pairs = (args.batches - 1) * args.batch
        for mode in MODES:
            row = {
                'mode': mode, 'workers': workers, 'gt_size': args.gt_size, 'batch': args.batch,
                'rounds': args.repeats,
                'pairs_per_s': f'{pairs / statistics.median(times[mode]):.1f}',
            }  # fmt: skip
            for other in THEIRS[:2]:
                ratio = common.median_ratio(times[other], times[mode])
                row[f'over_{other.replace(" ", "_")}'] = f'{ratio:.2f}'
            common.print_row(row)
            rows.append(row)
    return rows


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = common.new_parser(__doc__)
    parser.add_argument('--pairs', type=int, default=24, help='pairs of files (24)')
    parser.add_argument(
        '--picture', type=int, nargs=2, default=[1280, 720], metavar=('WIDTH', 'HEIGHT')
    )
    parser.add_argument('--gt-size', type=int, default=256, help='side of the crops (256)')
    parser.add_argument('--sub-images', type=int, default=480, help='side of the squares (480)')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--batches', type=int, default=13, help='per epoch; the first is not timed')
    parser.add_argument('--workers', type=int, nargs='+', default=[0, 2])
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--out', type=Path, default=Path('results/data_loading'))
    args = parser.parse_args(argv)
    if args.batches < 2:
        parser.error('--batches must be at least 2: the first is not timed')
    if args.gt_size > min(*args.picture, args.sub_images):
        parser.error('--gt-size must fit into --picture and --sub-images')
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    machine = common.prepare_machine('cpu', 1)
    print(machine)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        formats = args.out.with_name(f'{args.out.name}_formats')
        common.write_table(compare_decoders(folder, args), formats, machine)
        make_pairs(folder, args.pairs, *args.picture)
        for side in ('gt', 'lq'):
            sizes = [p.stat().st_size for p in (folder / side).iterdir()]
            print(f'{side}: {len(sizes)} PNG of {statistics.mean(sizes) / 1e6:.2f} MB on average')
        make_databases(folder, args.sub_images)
        check_pixels(folder, args)
        check_batches(folder, args, max(args.workers))
        rows = measure(folder, args)
        close_lmdbs()
    print(f'written: {common.write_table(rows, args.out, machine)}')
    figure, panels = common.new_figure(len(args.workers), 1.5 + 0.3 * len(MODES))
    for axes, workers in zip(panels, args.workers, strict=True):
        speed = [float(r['pairs_per_s']) for r in rows if r['workers'] == workers]
        axes.bar_label(axes.barh(MODES, speed), fmt='%.4g', padding=2, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set(title=f'{workers} workers', xlabel='pairs per second')
    common.save_figure(figure, args.out, machine)


if __name__ == '__main__':
    main()
