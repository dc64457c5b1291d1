"""``unfoldldm restore``: restores photos, or folders of them, with trained weights."""

import argparse
import dataclasses
import errno
import logging
import math
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from unfoldldm_basicsr.common.contract import check_inputs
from unfoldldm_basicsr.common.files import check_writable
from unfoldldm_basicsr.data.images import (
    EXTENSIONS,
    LOSSLESS,
    read_picture,
    size_in_header,
    write_picture,
)
from unfoldldm_basicsr.data.listing import find_images, left_out
from unfoldldm_basicsr.restoring.restorer import Restorer
from unfoldldm_basicsr.restoring.tiling import TileError
from unfoldldm_basicsr.weights.packaged import packaged_file

_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_OF_ONE_IMAGE = (OSError, ValueError, RuntimeError, MemoryError)


class Job(NamedTuple):
    """One image to restore, and the file of its result."""

    source: Path
    output: Path


def run_restore(args: argparse.Namespace) -> int:
    """Restores everything that can be restored; 1 if images failed, which are named at the end.

    FileNotFoundError, FileExistsError and ValueError come before anything is restored; OSError
    where the disk is full, after what was restored until then is reported.
    """
    if args.tile is None and (args.tile_overlap is not None or not args.global_statistics):
        raise ValueError('--tile-overlap and --no-global-statistics are for --tile.')
    if args.weights is None:
        args.weights = packaged_file(args.pretrained)  # told before what exists
    jobs = plan_jobs(args)
    made = [job for job in jobs if os.path.isfile(job.output)]
    if args.skip_existing:
        # where a photo comes in several formats, its name may have been that of another until the
        # last of them came
        photos = {job: os.path.normcase(job.source.with_suffix('')) for job in jobs}
        missing = {photos[job] for job in jobs if job not in made}
        left = [job for job in jobs if photos[job] in missing]
        again = len({*made} & {*left})
        more = f' {again} that may be of other photos are made anew.' if again else ''
        print(f'{len(jobs) - len(left)} of {len(jobs)} results exist already.{more}')
        jobs = left
    elif made and not args.overwrite:
        raise FileExistsError(
            f'{len(made)} of {len(jobs)} results exist already, first {made[0].output};'
            f' choose another --output or --suffix, or pass --overwrite or --skip-existing.'
        )
    tiles = {'tile': args.tile, 'global_statistics': args.global_statistics}
    if args.tile_overlap is not None:
        tiles['tile_overlap'] = args.tile_overlap
    restorer = restorer_of(args, **tiles)
    check_inputs(restorer.net, () if restorer.conditioning is None else ('degradation',))
    sizes = [(job.source, size_in_header(job.source) or (0, 0)) for job in jobs]
    largest, size = max(sizes, key=lambda pair: math.prod(pair[1]), default=('', (0, 0)))
    try:  # before an hour of others
        restorer.check_memory(*size)
    except TileError as error:
        raise ValueError(f'{largest}: {error}') from error
    for note in restorer.notes:
        print(f'Note: {note}')
    for job in jobs[:1]:  # before it is restored
        check_writable(job.output.parent)

    failures, restored, start = [], 0, time.perf_counter()
    log = logging.getLogger('basicsr')
    try:
        with logging_redirect_tqdm([log]), tqdm(jobs, desc='restore', unit='image') as progress:
            for job in progress:
                progress.set_postfix_str(job.source.name)
                try:
                    restore_one(restorer, job, progress, keep_metadata=args.keep_metadata)
                    restored += 1
                except (KeyboardInterrupt, *_OF_ONE_IMAGE) as error:
                    problem = str(error) or type(error).__name__
                    if isinstance(error, OSError):
                        problem = f'{job.output}: cannot be written: {error.strerror or problem}'
                    # after a full disk the next image would meet it too
                    full = getattr(error, 'errno', None) in _DISK_IS_FULL
                    if full or isinstance(error, KeyboardInterrupt):
                        rest = f'The images from {job.source.name} on are not restored;'
                        progress.write(f'{rest} --skip-existing goes on.')
                        if full:
                            raise OSError(problem) from error
                        raise
                    named = str(job.source) in problem
                    failures.append(problem if named else f'{job.source}: {problem}')
    finally:
        how = f'on {restorer.device} with {Path(args.weights).name}'
        took = f'{time.perf_counter() - start:.1f} s'
        print(f'Restored {restored} of {len(jobs)} images in {took} {how}: {args.output}')
        for failure in failures:
            print(f'failed: {failure}')
    return 1 if failures else 0


def restorer_of(args: argparse.Namespace, **more: Any) -> Restorer:
    """The network of these options; ``more`` are further arguments of :class:`Restorer`."""
    weights = packaged_file(args.pretrained) if args.weights is None else args.weights
    more |= {'device': args.device, 'opt_file': args.opt, 'param_key': args.param_key}
    more |= {'degradation': args.degradation, 'clip_weights': args.clip_weights}
    return Restorer(weights, **more)


def plan_jobs(args: argparse.Namespace) -> list[Job]:
    """Names all results before anything is read, and refuses names that would destroy a file.

    Results keep the name and the sub-folder of their image, and its format if that is lossless;
    everything else becomes PNG. Where two images of a folder would have the same result, that of
    another format keeps its ending as well: ``photo.jpg.png`` beside ``photo.png``.

    With --skip-existing an input that is named as the result of another is one of an earlier run.
    """
    if Path(args.suffix).name != args.suffix:
        raise ValueError(f'--suffix {args.suffix!r}: must not contain a folder.')
    images = [pair for source in args.input for pair in _images(source, args)]
    images = [*dict.fromkeys(images)]  # of a folder that was named twice
    file = _result_file(args.output, len(images) == 1 and args.input[0].is_file())
    if file and args.suffix:
        raise ValueError(
            f'--suffix {args.suffix}: --output {file} names the result; leave one out.'
        )
    jobs = []
    same = Counter(os.path.normcase(folder / image.stem) for image, folder in images)
    for image, folder in images:
        kind = image.suffix if image.suffix.lower() in LOSSLESS else '.png'
        several = same[os.path.normcase(folder / image.stem)] > 1
        stem = (image.name if several and kind != image.suffix else image.stem) + args.suffix
        jobs.append(Job(image, file or args.output / folder / f'{stem}{kind}'))

    if args.skip_existing and args.suffix:
        results = {_place(job.output) for job in jobs}
        earlier = {job for job in jobs if _place(job.source) in results}
        if earlier:
            print(f'{len(earlier)} of the images are results of an earlier run and left out.')
        jobs = [job for job in jobs if job not in earlier]
    inputs, made = {_place(job.source): job.source for job in jobs}, {}
    for job in jobs:
        place = _place(job.output)
        if place in inputs:
            raise FileExistsError(
                f'{job.output}: would overwrite the input {inputs[place]};'
                f' choose another --output{"" if file else " or a --suffix"}.'
            )
        if place in made:
            raise ValueError(
                f'{job.output}: would be the result of {made[place]} and of {job.source}. Rename'
                f' one, or restore them one by one into different folders.'
            )
        made[place] = job.source
    return jobs


def restore_one(restorer: Restorer, job: Job, progress: tqdm, *, keep_metadata: bool) -> None:
    """Restores one image and writes the result."""

    def show_tile(done: int, total: int) -> None:
        if total > 1:
            progress.set_postfix_str(f'{job.source.name}, tile {done} of {total}')

    picture = read_picture(job.source)
    restored = restorer.restore(picture.pixels, on_tile=show_tile)
    kept = {} if keep_metadata else {'exif': None, 'xmp': None}
    write_picture(job.output, dataclasses.replace(picture, pixels=restored, **kept))


def _images(source: Path, args: argparse.Namespace) -> list[tuple[Path, Path]]:
    """Images of an input with the folder of their results inside the output folder."""
    if source.is_file():
        return [(source, Path())]
    if not source.is_dir():
        raise FileNotFoundError(f'--input {source}: no such file or folder.')
    names, others = find_images(source, recursive=args.recursive)
    inside = args.output.resolve()
    if source.resolve() in inside.parents:  # earlier results are no input
        names = [n for n in names if inside not in (source / n).resolve().parents]
    if not names:
        deeper = 0 if args.recursive else len(find_images(source)[0])
        hint = f' {deeper} lie in folders inside it: pass --recursive.' if deeper else ''
        raise FileNotFoundError(
            f'--input {source}: no images ({", ".join(EXTENSIONS)}) in this folder.{hint}'
        )
    if others:
        print(f'{source}: {left_out(others)}')
    return [(source / name, Path(name).parent) for name in names]


def _result_file(output: Path, one: bool) -> Path | None:
    """The output if it names the result of the image, which must then be the only ``one``."""
    if output.is_dir() or output.suffix.lower() not in EXTENSIONS:
        return None
    if not one:
        raise ValueError(f'--output {output}: names one image; give a folder for several.')
    if output.suffix.lower() not in LOSSLESS:
        raise ValueError(
            f'--output {output}: results are stored without loss, as {", ".join(LOSSLESS)}.'
        )
    return output


def _place(path: Path) -> str:
    """The same text for two names of one file: links, case-insensitive systems, ``..``."""
    return os.path.normcase(os.path.realpath(path))
