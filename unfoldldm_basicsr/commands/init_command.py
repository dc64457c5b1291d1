"""``unfoldldm init``: from a folder of images to option files that fit them and this machine."""

import argparse
import logging
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from basicsr.models import build_model

from unfoldldm_basicsr.common.cost import free_memory
from unfoldldm_basicsr.common.files import check_writable, refuse_existing, write_bytes_atomic
from unfoldldm_basicsr.data.listing import read_entry
from unfoldldm_basicsr.data.sources import open_source
from unfoldldm_basicsr.options.defaults import fill_defaults
from unfoldldm_basicsr.options.preflight import examine
from unfoldldm_basicsr.preparing.new_training import NewTraining, held_back
from unfoldldm_basicsr.training.step import peak_memory

LARGE = 4_000_000  # pixels; decoding them takes longer than a step of a small network
SHARE = 0.8  # of the memory; the rest is for loaders and validation
ENOUGH = 20  # seconds of trial steps
STEPS_SHARE = 0.9  # of the time; the rest is for validation
FEWEST_STEPS = 100  # with which --hours is a training at all
SIDES = (128, 96, 64, 48, 32)  # of patches, in pixels; CPUs get at most 48


class Trial(NamedTuple):
    """What a training step takes."""

    gib: float
    seconds: float


def run_init(args: argparse.Namespace) -> int:
    """Writes the files and prints what to do next."""
    on_cpu, limit = memory_of(args.memory)
    elsewhere = not on_cpu and not torch.cuda.is_available()
    if args.hours is not None and elsewhere:
        raise ValueError(
            f'--hours: steps are timed, but --memory {args.memory} means a GPU, and none is here.'
        )
    if args.hours is not None and not 0 < args.hours < 10_000:
        raise ValueError(f'--hours {args.hours}: must be above 0 and below 10,000.')
    take_prepared_set(args)
    largest, lists, listed = plan(args, on_cpu=on_cpu)
    files = {args.output / largest.file(phase): phase for phase in largest.phases}
    for path, phase in files.items():
        options = yaml.safe_load(largest.text(args.output, phase))
        for section in options['datasets'].values() if lists else ():
            section['meta_info_file'] = listed  # no new one yet, nor weights of Phase I
        found = examine(options, str(path), True, here=phase != 2).refused
        lines = [*dict.fromkeys(found.values())]
        if any(place.endswith('dataroot_lq') for place in found):
            lines.append('Pairs of other names: unfoldldm prepare folder --gt ... --lq ...')
        if lines:
            raise ValueError('\n'.join(lines))
    for path in (*files, *lists):
        refuse_existing(Path(args.clean), path, overwrite=args.overwrite)
    check_writable(args.output)  # before minutes of trial steps
    print(f'{largest.network} on {largest.images} images; trying training steps ...', flush=True)
    training, trial = fitted(largest, limit, measure)
    seconds: dict[int | None, float] = {}
    if trial is not None and not elsewhere:
        *others, last = training.phases
        trials = {**{phase: measure(training, phase) for phase in others}, last: trial}
        share = training.part / training.batch
        if None not in trials.values():
            seconds = {phase: t.seconds / share for phase, t in trials.items()}
    training = lasting(training, seconds, args.hours)
    for path, names in lists.items():
        write_bytes_atomic(path, ('\n'.join(names) + '\n').encode('utf-8', 'surrogateescape'))
    for path, phase in files.items():
        write_bytes_atomic(path, training.text(args.output, phase).encode())
    parts = f' computed {training.part} at a time' * (training.part < training.batch)
    takes = 'foretold to fit; a step is too large to try here. Next:'
    if trial is not None:
        takes = f'a step takes {trial.gib:.1f} of {limit:.1f} GiB. Next, beside validation:'
    print(f'patches of {training.patch}, batches of {training.batch}{parts}: {takes}')
    for path, phase in files.items():
        count = training.iterations_of(phase)
        long = timedelta(seconds=round(count * seconds.get(phase, 0)))
        took = f' of {seconds[phase]:.2g} s: {long}' if phase in seconds else ''
        command = f'python -m unfoldldm_basicsr.train -opt {quote(str(path))} --auto_resume'
        print(f'  {command}  # {count} steps{took}')
    source = None if args.clean.rstrip('/').endswith('.lmdb') else open_source(args.clean, 'disk')
    if source and max(math.prod(source.shape(n) or (0,)) for n in source.names[:8]) > LARGE:
        cut = 'unfoldldm prepare folder -i IMAGES -o images.lmdb --crop-size 512 --payload bmp'
        print(f'  (large images are decoded for every patch: faster after {cut})')
    weights = f'experiments/{training.experiment(training.phases[-1])}/models/net_g_latest.pth'
    output, weights = quote(f'restored_{args.name}'), quote(weights)
    print(f'  unfoldldm restore -i PHOTOS -o {output} -w {weights} --tile 512')
    return 0


def memory_of(given: str | None) -> tuple[bool, float]:
    """Whether to train on the CPU, and the GiB that a training step may take."""
    here = torch.cuda.is_available()
    if given in (None, 'cpu'):
        on_cpu = given == 'cpu' or not here
        free = free_memory(torch.device('cpu' if on_cpu else 'cuda'))
        return on_cpu, SHARE * (free or 8 * 2**30) / 2**30
    try:
        gib = float(given)
    except ValueError:
        gib = 0
    if not 0 < gib < 10_000:
        raise ValueError(f"--memory {given}: give GiB, for example 24, or 'cpu'.")
    return False, SHARE * gib


def plan(
    args: argparse.Namespace, *, on_cpu: bool
) -> tuple[NewTraining, dict[Path, list[str]], str | None]:
    """The training with the largest sizes, lists of images to train and to validate on, and the
    list of pairs that the set came with.
    """
    if args.degraded and args.task:
        raise ValueError('--task degrades clean images; with --degraded the pairs are the task.')
    if bool(args.degraded and args.val) != bool(args.val_degraded):
        raise ValueError('--val and --val-degraded belong together where there is --degraded.')
    task = None if args.degraded else args.task or 'blind'
    for clean, degraded in ((args.clean, args.degraded), (args.val, args.val_degraded)):
        if degraded and Path(degraded).resolve() == Path(clean).resolve():
            raise ValueError(f'{degraded}: is the folder of the clean images, too.')
    train, names = images_in(args.clean, args.degraded)
    lists, listed, chosen = {}, train.get('meta_info_file'), {}
    if args.val:
        val, kept = images_in(args.val, args.val_degraded)
        seen = {*places_of(val, kept)}
        left = [n for n, at in zip(names, places_of(train, names), strict=True) if at not in seen]
        if not left:
            raise ValueError(f'--val {args.val}: holds all images of {args.clean}.')
        if len(left) < len(names):
            print(f'{len(names) - len(left)} images of --val are left out of the training.')
            names, chosen = left, {'train': (train, left)}
    else:
        val = dict(train)
        names, kept = held_back(names, args.clean)
        chosen = {'train': (train, names), 'val': (val, kept)}
    photos = [*images_of(val, kept[:20])]  # a broken one says so here
    photos += images_of(train, names[:: max(1, len(names) // 10)])
    grey = task is not None and {photo.ndim for photo in photos} == {2}
    for part, (section, images) in chosen.items():
        path = args.output / f'{args.name}_{part}.txt'
        section['meta_info_file'] = str(path)
        lists[path] = images
    if grey:
        print('Grey photos: their noise is the same in all channels (gray_prob).')
    network = args.network or ('unfoldldm-tiny' if on_cpu else 'unfoldldm-small')
    training = NewTraining(
        args.name, network, train, val, task, len(names), patch=48 if on_cpu else SIDES[0],
        grey=grey, num_gpu=0 if on_cpu else 'auto',
    )  # fmt: skip
    return training, lists, listed


def take_prepared_set(args: argparse.Namespace) -> None:
    """Takes the LMDBs of a set of ``unfoldldm prepare``, by its folder or its name in datasets."""
    own, prepared = Path(args.clean), Path('datasets') / args.clean
    if own.exists() and own != prepared and (prepared / 'train_gt.lmdb').is_dir():
        print(f'{own} is taken; the prepared set is {prepared}.')
    place = own if own.exists() else prepared
    parts = sorted(part.name for part in place.glob('*_gt.lmdb'))
    if not parts:
        return
    if not (place / 'train_gt.lmdb').is_dir():
        raise ValueError(
            f'{place}: is a prepared set without train_gt.lmdb, it has {", ".join(parts)}: '
            'prepare its training part, or give one of these LMDBs.'
        )
    if args.degraded:
        raise ValueError(
            f'--degraded: {place} is a prepared set, which has its own or none. Leave it '
            f'out, or give {place / "train_gt.lmdb"} as the clean images.'
        )
    part = 'val' if (place / 'val_gt.lmdb').is_dir() else 'test'
    names = ('train_gt', 'train_lq', f'{part}_gt', f'{part}_lq')
    found = (place / f'{name}.lmdb' for name in names)
    args.clean, args.degraded, *tests = (str(f) if f.is_dir() else None for f in found)
    if not args.val and tests[0]:
        args.val, args.val_degraded = tests


def images_in(clean: str, degraded: str | None) -> tuple[dict[str, Any], list[str]]:
    """Keys of a data set, and the names of its images (pairs, where a prepared set lists them)."""
    clean, degraded = (place and str(Path(place)) for place in (clean, degraded))  # no / at end
    kind = 'lmdb' if clean.endswith('.lmdb') else 'disk'
    section = {'type': 'SyntheticDegradationDataset', 'dataroot_gt': clean}
    if degraded:
        section = {**section, 'type': 'PairedDegradationDataset', 'dataroot_lq': degraded}
    section |= {'io_backend': {'type': kind}}
    listed = Path(clean.removesuffix('_gt.lmdb') + '.txt')
    if degraded and clean.endswith('_gt.lmdb') and listed.is_file():
        return {**section, 'meta_info_file': str(listed)}, listed.read_text('utf-8').splitlines()
    return section, open_source(clean, kind).names


def clean_names(section: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Names of clean images, where the set has a list of pairs of its entries."""
    return [read_entry(n)[0] if 'meta_info_file' in section else n for n in names]


def places_of(section: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The files, or LMDB and keys, of clean images."""
    root = section['dataroot_gt']
    return [os.path.realpath(Path(root, name)) for name in clean_names(section, names)]


def images_of(section: Mapping[str, Any], names: Iterable[str]) -> Iterator[np.ndarray]:
    """Clean images of a set. Raises ValueError: one cannot be read."""
    kind, wanted = section['io_backend']['type'], clean_names(section, names)
    source = open_source(section['dataroot_gt'], kind, wanted)
    return map(source.read, source.names)


def fitted(
    training: NewTraining, limit: float, measure: Callable[[NewTraining], Trial | None]
) -> tuple[NewTraining, Trial | None]:
    """The training with the largest sizes that fit into ``limit`` GiB, and the step that confirmed
    it.

    A batch keeps its size: where it does not fit, it is computed in parts (``accum_iter``), and
    where one patch does not, patches are smaller. Memory grows with the pixels, so two small steps
    foretell the rest; a step of the sizes chosen then confirms them, where this machine can make
    it. ValueError: nothing fits.
    """
    small = max(training.patch // 2, SIDES[-1])
    one, two = (measure(replace(training, patch=small, part=part)) for part in (1, 2))
    if one is not None and two is not None:
        per_pixel = max(two.gib - one.gib, 0) / small**2
        on_cpu = training.num_gpu == 0 or not torch.cuda.is_available()
        free = (free_memory(torch.device('cpu' if on_cpu else 'cuda')) or 2**43) / 2**30
        for side in (side for side in SIDES if side <= training.patch):
            part = training.batch
            while part:
                gib = one.gib + per_pixel * (part * side**2 - small**2)
                sized = replace(training, patch=side, part=part)
                if gib <= limit and gib > SHARE * free:
                    return sized, None
                trial = measure(sized) if gib <= limit else None
                if trial is not None and trial.gib <= limit:
                    return sized, trial
                part //= 2
    raise ValueError(
        f'{training.network}: no training step fits into {limit:.1f} GiB. Take a smaller --network.'
    )


def measure(training: NewTraining, phase: int | None = None) -> Trial | None:
    """Trial steps (of the last phase) in a process of their own; None where memory is too small."""
    phase = phase or training.phases[-1]
    size = f'{training.part} patches of {training.patch}'
    print(f'Trying a step of {training.file(phase)} on {size} ...', flush=True)
    options = yaml.safe_load(training.text(Path(), phase))
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, context, logging.disable, (logging.WARNING,)) as pool:
        try:
            return pool.submit(trial_step, options, training.part).result()
        except BrokenProcessPool:  # ended by the system
            return None


def trial_step(options: dict[str, Any], part: int) -> Trial | None:
    """Makes two to four training steps of an option file, on ``part`` patches of noise."""
    fill_defaults(options, True)
    options['train']['accum_iter'] = 1
    options['path'] |= dict.fromkeys(('log', 'models', 'training_states'), '.')
    if 'diffusion_opt' in options['train']:  # what most of Phase II does, from no weights
        options['train']['prior_warmup_iter'] = 0
        options['path']['pretrain_network_phase1'] = None
    options |= {'is_train': True, 'num_gpu': int(options['num_gpu'] and torch.cuda.is_available())}
    side = options['datasets']['train']['gt_size']
    try:
        model = build_model(options)
        batch = {'lq': torch.rand(part, 3, side, side), 'gt': torch.rand(part, 3, side, side)}
        taken: list[float] = []
        while len(taken) < 2 or (len(taken) < 4 and sum(taken) < ENOUGH):
            start = time.perf_counter()
            model.feed_data(batch)
            model.optimize_parameters(len(taken) + 1)  # waits for the device: it reads the losses
            taken.append(time.perf_counter() - start)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or 'memory' in str(error):
            return None
        raise
    return Trial(peak_memory(model.device)['peak_memory_gib'], statistics.median(taken[1:]))


def lasting(
    training: NewTraining, seconds: Mapping[int | None, float], hours: float | None
) -> NewTraining:
    """The training with as many iterations as fit into ``hours`` of all phases, with validation.

    ``seconds``: phase -> duration of a step. ValueError: too short, or no step could be timed.
    """
    if hours is None:
        return training
    if not seconds:
        raise ValueError(f'--hours {hours}: no step could be timed; leave it out.')
    total = sum(seconds[phase] * training.iterations_of(phase) for phase in training.phases)
    mean = total / training.iterations / STEPS_SHARE
    count = int(round(3600 * hours / mean, -1))
    if count < FEWEST_STEPS:
        raise ValueError(
            f'--hours {hours}: {count} steps; {FEWEST_STEPS} at least are '
            f'{FEWEST_STEPS * mean / 3600:.2g} hours. A smaller --network takes less.'
        )
    return replace(training, iterations=count)
