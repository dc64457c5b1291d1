"""What an option file needs of the machine: files, weights, LMDBs, GPUs, and data that open."""

import copy
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from basicsr.utils.logger import initialized_logger
from basicsr.utils.registry import DATASET_REGISTRY, METRIC_REGISTRY
from torch.utils.data import Dataset

from unfoldldm_basicsr.common.declaration import OptionError, Problem, Problems
from unfoldldm_basicsr.common.errors import ResumeError
from unfoldldm_basicsr.common.registration import registered, whose
from unfoldldm_basicsr.compat.imports import is_installed
from unfoldldm_basicsr.data.loading import ItemReader, TrainingItems, preserved_rng
from unfoldldm_basicsr.data.pixels import ImageError
from unfoldldm_basicsr.data.sources import AS_LMDB, close_lmdbs, read_lmdb_index, stored_keys
from unfoldldm_basicsr.metrics.perceptual import lacking
from unfoldldm_basicsr.options.defaults import places_of
from unfoldldm_basicsr.options.rules import uses_wandb
from unfoldldm_basicsr.options.run import Report, Run, reads_itself, section_values
from unfoldldm_basicsr.weights.checkpoint import MAY_LACK, read_checkpoint
from unfoldldm_basicsr.weights.loading import misfit, phase1_misfit
from unfoldldm_basicsr.weights.training_state import Checkpoint


@contextmanager
def basicsr_logger_untouched() -> Iterator[None]:
    """Inside, nothing sets BasicSR's logger up: the first one decides about its log file."""
    logger, known = logging.getLogger('basicsr'), dict(initialized_logger)
    level = logger.level
    initialized_logger['basicsr'] = True
    logger.setLevel(logging.ERROR)  # what is built here only to be checked has nothing to say
    try:
        yield
    finally:
        initialized_logger.clear()
        initialized_logger.update(known)
        logger.setLevel(level)


# ---- weights ------------------------------------------------------------------------------------


def not_read(run: Run) -> frozenset[str]:
    """Places whose files a run has no use for: a test for discriminators, a resumed one for what
    its checkpoint replaces. Of another machine: all that name files, which may lie there.
    """
    if not run.here:
        named = section_values(run.opt, 'path').items()
        return frozenset(f'path.{key}' for key, value in named if value)
    resuming = bool(run.path.resume_state) if run.resuming is None else run.resuming
    if not run.is_train or not resuming:
        return frozenset(() if run.is_train else ['path.pretrain_network_d'])
    ignored = run.path.ignore_resume_networks or ()
    loaded = [key for key in run.network_sections if key not in ignored]
    loaded += ['network_phase1'] if 'network_g' in loaded else []
    named = ['path.resume_state'] if run.resuming else []  # its own come first
    return frozenset([*named, *(f'path.pretrain_{key}' for key in loaded)])


def weights_are_there_and_fit(run: Run) -> Problems:
    """What a model of somebody else starts from is its own matter: a folder, the name of a hub."""
    skipped, loads = not_read(run), getattr(run.model, 'load_network', None)
    theirs = whose(run.model) == 'theirs' or whose(loads) == 'theirs'
    for key, value in section_values(run.opt, 'path').items():
        place, fault = f'path.{key}', None
        if not isinstance(value, str) or place in skipped:
            continue
        if key.startswith('pretrain_network_') and not theirs:
            fault = _weights_fault(run, key.removeprefix('pretrain_network_'), Path(value))
        elif key == 'resume_state' and value:
            try:
                Checkpoint.read(Path(value))
            except ResumeError as error:
                fault = f'{error}. Name an older state, or ~ to start anew.'
        if fault:
            yield Problem(place, fault)


def _weights_fault(run: Run, label: str, file: Path) -> str | None:
    if file == Path():
        return 'is empty: name a file, or write ~ for none.'
    paths, stock = section_values(run.opt, 'path'), not hasattr(run.model, 'sections')
    key, strict = paths.get(f'param_key_{label}'), bool(paths.get(f'strict_load_{label}', True))
    key = key if isinstance(key, str) else None
    chosen = key or ('params' if stock else None)
    try:
        checkpoint = read_checkpoint(file, chosen, fallback=key in MAY_LACK)
    except (ValueError, OSError) as error:
        train = ' Train the embedding first, with an option file of DegradationCLIPModel.'
        return f'{error}{train if label == "e" and not file.exists() else ""}'
    if label == 'phase1':
        net = run.networks.get('network_g')
        return net and phase1_misfit(net, checkpoint, run.network_sections['network_g'])
    net = run.networks.get(f'network_{label}')
    return net and misfit(net, checkpoint, strict=strict, allow_missing=run.is_train, label=label)


# ---- GPUs ---------------------------------------------------------------------------------------


def gpus_are_there(run: Run) -> Problems:
    wanted, present, launcher = run.top.num_gpu, torch.cuda.device_count(), run.launcher
    if not isinstance(wanted, int) or (present and launcher not in (None, 'none')):
        return
    single = getattr(run.model, 'one_gpu_per_process', False)
    if wanted > present:
        message = f'{wanted} asked for, but torch sees {present} here. '
        remedy = "Write 'auto' for what there is, or 0 for the CPU."
        kind = 'warning' if present and not (single and run.is_train) else 'fault'
        yield Problem('num_gpu', message + remedy, kind)
    elif launcher == 'none' and run.is_train and wanted > 1 and single:
        message = (
            f'is {wanted}, but one process was started, which uses one GPU. Start with torchrun '
            f'--nproc_per_node={wanted} ... --launcher pytorch, or set num_gpu: 1.'
        )
        yield Problem('num_gpu', message)


# ---- data ---------------------------------------------------------------------------------------


def data_are_there(run: Run) -> Problems:
    for path, section in run.sets():
        backend = section.get('io_backend')
        # A class of somebody else may read any file, or none; damaged LMDBs of BasicSR kill it too.
        theirs = reads_itself(registered(DATASET_REGISTRY, section.get('type')))
        for place, part, key in places_of(section):
            if not theirs or Path(part[key], 'meta_info.txt').is_file():
                database = theirs or part.get('io_backend', backend) == {'type': 'lmdb'}
                if fault := _data_fault(key, part[key], database):
                    yield Problem(f'{path}.{place}', fault)


def _data_fault(key: str, value: str, is_lmdb: bool) -> str | None:
    place, is_list = Path(value), key.startswith('meta_info')
    if not (place.is_file() if is_list else place.is_dir()):
        rest = '' if place.is_absolute() else f' Relative paths start at {Path.cwd()}.'
        return f'no such {"file" if is_list else "folder"}: {value}.{rest}'
    if not (place / 'data.mdb').is_file():
        return None
    return _lmdb_fault(str(place)) if is_lmdb else f'{value} {AS_LMDB}'


def _lmdb_fault(folder: str) -> str | None:
    """The list of an LMDB against what it holds; a truncated file is never touched."""
    try:
        listed = read_lmdb_index(folder).keys()
        lacking = listed - stored_keys(folder)
    except (ValueError, OSError) as error:
        return str(error)
    finally:
        close_lmdbs()
    if not lacking:  # others that are not listed are left out: a way to choose images
        return None
    return (
        f"{folder} lacks {len(lacking)} of {len(listed)} listed images, the first is '"
        f"{min(lacking)}': data.mdb and meta_info.txt do not belong together. Make it again "
        'with unfoldldm prepare.'
    )


@basicsr_logger_untouched()
def open_datasets(report: Report) -> list[tuple[dict[str, Any], Dataset]]:
    """Builds the data sets as BasicSR will, and reads one item of each.

    Gives section and data set, as good as new.
    """
    built, run = [], report.run
    for path, section in run.sets() if run.here else ():
        cls = registered(DATASET_REGISTRY, section.get('type'))
        if cls is None or report.at(path) or report.at('scale'):
            continue
        try:
            dataset = cls(copy.deepcopy(dict(section)))
            images = len(dataset)
            if images:
                with preserved_rng():
                    _read_one(dataset, section)
        except OptionError as error:
            for key, *rest in error.problems:
                report.add(f'{path}.{key}'.strip('.'), *rest)
            continue
        except Exception as error:  # noqa: BLE001  (of a class of anybody)
            if isinstance(error.__cause__, OSError | ImageError):  # of a file, not of a value
                report.add(path, f'{error}')
                continue
            key = error.args[0] if isinstance(error, KeyError) and error.args else None
            kind = '' if isinstance(error, (ValueError, OSError)) else f'{type(error).__name__}: '
            empty = [k for k, v in section.items() if v is None and str(k).startswith('dataroot')]
            about = f' (look at {", ".join(empty)}: nothing (~))' if empty else ''
            message = f'{cls.__name__} does not work with these values: {kind}{error}{about}'
            if not empty and isinstance(key, str) and key not in section:
                message = f'{cls.__name__} reads {key}, which is missing: write {path}.{key}.'
            report.add(path, message)
            continue
        if images == 0:
            report.add(path, 'holds no images. Look at its dataroot keys.')
        elif section.get('phase') == 'train':
            batch = section['batch_size_per_gpu'] * run.replicas
            ratio = section.get('dataset_enlarge_ratio', 1)
            samples = math.ceil(images * ratio / run.processes)
            if samples < batch:
                report.add(
                    f'{path}.batch_size_per_gpu',
                    f'{images} images give each process {samples} samples per epoch, less than one '
                    f'batch of {batch}, so no step would be made. Lower it, or multiply '
                    f'dataset_enlarge_ratio by {math.ceil(batch / max(samples, 1))}.',
                )
        built.append((copy.deepcopy(dict(section)), dataset))
    return built


def _copied(value: Any, made: dict[int, Any]) -> Any:
    """Sections and lists of any depth anew, two names of one for the same copy (``made``, by its
    id); what else they hold stays the same object.
    """
    if not isinstance(value, dict | list):
        return value
    if id(value) not in made:
        made[id(value)] = new = copy.copy(value)
        for key in range(len(value)) if isinstance(value, list) else [*value]:
            new[key] = _copied(value[key], made)
    return made[id(value)]


def _read_one(dataset: Dataset, section: Mapping[str, Any]) -> None:
    """Reads an item, of a mixture one of each set, and leaves the data set as it was.

    BasicSR's data sets open files, take their options apart and turn lists around.
    """
    known = vars(dataset)
    before = dict(known)
    made: dict[int, Any] = {}
    known |= {key: _copied(value, made) for key, value in before.items()}
    try:
        for index in getattr(dataset, 'first_items', (0,)):
            if section.get('phase') == 'train':
                TrainingItems(dataset, section)[index]
            else:
                ItemReader(dataset, section).read(index)
    finally:
        known.clear()
        known.update(before)


def packages_are_there(run: Run) -> Problems:
    """Else a metric ends the training at its first validation."""
    for name, metric in (run.val.metrics or {}).items():
        kind = metric.get('type') if isinstance(metric, Mapping) else None
        if whose(registered(METRIC_REGISTRY, kind)) == 'ours' and (text := lacking(kind)):
            yield Problem(f'val.metrics.{name}', text)
    if uses_wandb(run) and not is_installed('wandb'):
        yield Problem('logger.wandb', 'needs the package wandb: pip install wandb.')


RULES = (packages_are_there, weights_are_there_and_fit, gpus_are_there, data_are_there)
