"""``unfoldldm restore``: restores a file or a folder with trained weights."""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from unfoldldm_basicsr.commands.weights_options import add_weights_options, restorer_of
from unfoldldm_basicsr.data.images import (
    EXTENSIONS,
    LOSSLESS,
    Picture,
    read_picture,
    write_picture,
)
from unfoldldm_basicsr.restoring.restorer import Restorer

NAME = 'restore'
HELP = 'restore photos with trained weights'


class Job(NamedTuple):
    """One image to restore and the files that come of it."""

    source: Path
    target: Path
    trace: Path | None

    @property
    def outputs(self) -> tuple[Path, ...]:
        """Files that the job writes."""
        return (self.target,) if self.trace is None else (self.target, self.trace)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options of the command."""
    parser.add_argument('-i', '--input', required=True, help='image, or folder with images')
    parser.add_argument('-o', '--output', required=True, help='folder for the results')
    add_weights_options(parser)
    parser.add_argument(
        '--tile', type=int, help='restore in tiles of this many pixels (default: in one piece)'
    )
    parser.add_argument(
        '--tile-overlap', type=int, default=32, help='pixels shared by neighbouring tiles (32)'
    )
    parser.add_argument(
        '--global-statistics', action=argparse.BooleanOptionalAction,
        help='the same statistics of the image for all its tiles, which is closer to the result'
        ' without tiles, or those of each tile (default: the same, where the network has any)',
    )  # fmt: skip
    parser.add_argument('--suffix', default='', help='added to the names of the results')
    parser.add_argument('--recursive', action='store_true', help='also the folders inside')
    parser.add_argument(
        '--save-trace',
        action='store_true',
        help='also a picture of every stage (UnfoldLDM, VLUNetPrior)',
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument('--overwrite', action='store_true', help='replace existing results')
    existing.add_argument(
        '--skip-existing', action='store_true', help='leave out images whose results exist'
    )


def run(args: argparse.Namespace) -> int:
    """Restores everything that can be restored.

    Returns:
        0, or 1 if images failed; they are named at the end.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: nothing was restored; the message says why.
        OSError: a result cannot be written (disk full, no permission); what was restored until then
            is reported before.
    """
    jobs = plan_jobs(
        Path(args.input),
        Path(args.output),
        suffix=args.suffix,
        recursive=args.recursive,
        save_trace=args.save_trace,
    )
    existing = [job for job in jobs if any(path.exists() for path in job.outputs)]
    if args.skip_existing:
        done = {job.source for job in existing}
        jobs = [job for job in jobs if job.source not in done]
    elif existing and not args.overwrite:
        raise FileExistsError(
            f'{len(existing)} of {len(jobs)} results exist already, first {existing[0].target};'
            f' choose another --output or --suffix, or pass --overwrite or --skip-existing.'
        )
    restorer = restorer_of(
        args,
        tile=args.tile,
        tile_overlap=args.tile_overlap,
        global_statistics=args.global_statistics,
    )
    if args.save_trace and not restorer.can_trace:
        hint = ' unfoldldm explain shows what VLU-Net does.' if restorer.conditioning else ''
        raise ValueError(
            f'--save-trace: {type(restorer.net).__name__} has no stages to draw;'
            f' only UnfoldLDM and VLUNetPrior have.{hint}'
        )
    for note in restorer.notes:
        print(f'Note: {note}')

    failures: list[tuple[Path, str]] = []
    restored, unwritten = 0, None
    start = time.perf_counter()
    log = logging.getLogger('basicsr')
    with logging_redirect_tqdm([log]), tqdm(jobs, desc='restore', unit='image') as progress:
        for job in progress:
            progress.set_postfix_str(job.source.name)
            try:
                problem = _restore_one(restorer, job, progress, Path(args.weights).name)
            except OSError as error:  # of writing: the next image would meet it too
                unwritten = error
                break
            if problem is not None:
                failures.append((job.source, problem))
            restored += problem is None
    seconds = time.perf_counter() - start
    print(
        f'Restored {restored} of {len(jobs)} images in {seconds:.1f} s'
        f' on {restorer.device}: {args.output}'
    )
    for source, problem in failures:
        print(f'failed: {problem if str(source) in problem else f"{source}: {problem}"}')
    if unwritten is not None:
        raise OSError(
            f'{job.target}: cannot be written: {unwritten.strerror or unwritten}. The images from '
            f'{job.source.name} on are not restored; --skip-existing goes on with them.'
        ) from unwritten
    return 1 if failures else 0


def plan_jobs(
    source: Path, output: Path, *, suffix: str = '', recursive: bool = False, save_trace=False
) -> list[Job]:
    """Names all results before anything is read, and refuses names that would destroy a file.

    Results keep the name and the sub-folder of their image, and its format if that is lossless;
    everything else becomes PNG.

    Raises:
        FileNotFoundError: no such input, or no images in it.
        FileExistsError: a result would replace an input.
        ValueError: two images would have the same result, or the output is a file.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f'--output {output}: is a file; give a folder.')
    if Path(suffix).name != suffix:
        raise ValueError(f'--suffix {suffix!r}: must not contain a folder.')
    images = find_images(source, recursive=recursive, leave_out=output)
    root = source if source.is_dir() else source.parent
    jobs = []
    for image in images:
        folder = output / image.parent.relative_to(root)
        kind = image.suffix if image.suffix.lower() in LOSSLESS else '.png'
        trace = folder / f'{image.stem}{suffix}_trace.png' if save_trace else None
        jobs.append(Job(image, folder / f'{image.stem}{suffix}{kind}', trace))

    inputs = {_identity(image): image for image in images}
    planned = defaultdict(list)
    for job in jobs:
        for path in job.outputs:
            if _identity(path) in inputs:
                raise FileExistsError(
                    f'{path}: would overwrite the input {inputs[_identity(path)]};'
                    f' choose another --output or a --suffix.'
                )
            planned[os.path.normcase(path.absolute())].append(job.source)
    shared = {path: sources for path, sources in planned.items() if len(sources) > 1}
    for path, sources in shared.items():
        others = f'; {len(shared) - 1} other names are shared too' if len(shared) > 1 else ''
        raise ValueError(
            f'{path}: would be the result of {len(sources)} images'
            f' ({", ".join(str(s) for s in sources)}){others}. Rename one, or restore them one by'
            ' one into different folders.'
        )
    return jobs


def find_images(
    source: Path, *, recursive: bool = False, leave_out: Path | None = None
) -> list[Path]:
    """Image files in alphabetical order.

    Args:
        source: a file, or a folder.
        recursive: also the folders inside.
        leave_out: a folder inside ``source`` whose images do not count: earlier results.

    Raises:
        FileNotFoundError: no such file or folder, or no images in it.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise FileNotFoundError(f'--input {source}: no such file or folder.')
    images = _images(source.rglob('*') if recursive else source.iterdir())
    if leave_out is not None and source.resolve() in leave_out.resolve().parents:
        inside = leave_out.resolve()
        images = [image for image in images if inside not in image.resolve().parents]
    if not images:
        deeper = not recursive and _images(source.rglob('*'))
        raise FileNotFoundError(
            f'--input {source}: no images ({", ".join(EXTENSIONS)}) in this folder.'
            + (f' {len(deeper)} lie in folders inside it: pass --recursive.' if deeper else '')
        )
    return images


def _images(paths: Iterable[Path]) -> list[Path]:
    return sorted(p for p in paths if p.suffix.lower() in EXTENSIONS and p.is_file())


def _identity(path: Path) -> object:
    """The same value for two names of one file: links, case-insensitive disks, ``..``."""
    if path.exists():
        status = path.stat()
        if status.st_ino:
            return status.st_dev, status.st_ino
    return os.path.normcase(path.resolve())


def _restore_one(restorer: Restorer, job: Job, progress: tqdm, weights: str) -> str | None:
    """Restores one image; returns what went wrong with it."""

    def show_tile(done: int, total: int) -> None:
        if total > 1:
            progress.set_postfix_str(f'{job.source.name}, tile {done} of {total}')

    try:
        picture = read_picture(job.source)
        restored = restorer.restore(picture.pixels, on_tile=show_tile)
    except (ValueError, RuntimeError, MemoryError) as error:
        return str(error) or type(error).__name__
    write_picture(job.target, Picture(restored, picture.icc_profile))
    if job.trace is not None:
        from unfoldldm_basicsr.pictures import save_picture, trace_picture

        try:
            trace, cropped = restorer.trace(picture.pixels)
        except (ValueError, RuntimeError, MemoryError) as error:
            return f'restored, but no trace: {error}'
        part = ' (middle of the image, one tile)' if cropped else ''
        note = f'{job.source.name}{part}, {type(restorer.net).__name__}, {weights}'
        save_picture(job.trace, trace_picture(trace, note=note))
    return None
