"""Small vocabulary shared by the tests."""

import contextlib
import copy
import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from tiny_trainings import UNFOLDLDM

from unfoldldm_basicsr.common.cost import build_on_meta
from unfoldldm_basicsr.common.declaration import OptionError
from unfoldldm_basicsr.options.preflight import examine
from unfoldldm_basicsr.options.run import typed
from unfoldldm_basicsr.weights.checkpoint import read_checkpoint
from unfoldldm_basicsr.weights.networks import build_network

ROOT = Path(__file__).resolve().parents[1]
# of trainings and tests; those of comparisons are parts of option files
OPTION_FILES = sorted(f for kind in ('smoke', 'train', 'test')
                      for f in (ROOT / 'options' / kind).rglob('*.yml'))  # fmt: skip


def load_script(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_python(*args: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    """Runs a fresh interpreter that finds this checkout; gives text, and raises nothing."""
    places = os.pathsep.join(map(str, (ROOT, ROOT / 'scripts' / 'faults', ROOT / 'tests')))
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=places, **variables)
    command = [sys.executable, *args]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def write_photos(
    folder: Path, count: int = 3, size: tuple[int, int] = (48, 64), seed: int = 0
) -> list[Path]:
    """Writes ``count`` smooth random colour pictures (height, width) as ``img_0.png`` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    paths = []
    for index in range(count):
        coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
        paths.append(folder / f'img_{index}.png')
        cv2.imwrite(str(paths[-1]), picture)
    return paths


def image_of(shape: tuple[int, ...], dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    """Noise over the whole range of the type."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def load_options(file: Path | str) -> dict:
    """A shipped option file, named below ``options``."""
    return yaml.safe_load((ROOT / 'options' / file).read_text(encoding='utf-8'))


def write_options(path: Path, options: dict) -> Path:
    path.write_text(yaml.safe_dump(options, sort_keys=False), encoding='utf-8')
    return path


def stock_options(folder: Path, total_iter: int = 4, batch: int = 2) -> dict:
    """Options of a tiny x4 training with classes of BasicSR only; its pictures go to ``folder``."""
    write_photos(folder / 'gt', 5, (32, 48))
    write_photos(folder / 'lq', 5, (8, 12))
    data = {
        'type': 'PairedImageDataset', 'io_backend': {'type': 'disk'},
        'dataroot_gt': str(folder / 'gt'), 'dataroot_lq': str(folder / 'lq'),
    }  # fmt: skip
    loading = {'use_hflip': True, 'use_rot': True, 'num_worker_per_gpu': 0}
    train_data = {**loading, 'gt_size': 32, 'batch_size_per_gpu': batch}
    return {
        'name': 'stock', 'model_type': 'SRModel', 'scale': 4, 'num_gpu': 0, 'manual_seed': 0,
        'datasets': {'train': {**data, **train_data}, 'val': {'name': 'held_out', **data}},
        'network_g': {'type': 'MSRResNet', 'num_feat': 4, 'num_block': 1, 'upscale': 4},
        'path': {'pretrain_network_g': None},
        'train': {
            'total_iter': total_iter, 'optim_g': {'type': 'Adam', 'lr': 1e-3},
            'scheduler': {'type': 'MultiStepLR', 'milestones': [2], 'gamma': 0.5},
            'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0},
        },
        'val': {'val_freq': 100, 'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 4}}},
        'logger': {'print_freq': 1, 'save_checkpoint_freq': 2},
    }  # fmt: skip


def tiny_unfoldldm(phase: int | str = 2, **changes) -> dict:
    """``network_g`` of the smallest UnfoldLDM that has every part (two stages)."""
    return {**copy.deepcopy(UNFOLDLDM), 'phase': phase, **changes}


def model_options(folder: Path, network: dict, *, is_train: bool = True, **train) -> dict:
    """Option dict that a model class takes directly; ``train`` changes keys of its section."""
    path = {'log': folder, 'models': folder / 'models', 'training_states': folder / 'states'}
    path['visualization'] = folder / 'visualization'
    for value in path.values():
        value.mkdir(parents=True, exist_ok=True)
    options = {
        'name': 'unit', 'num_gpu': 0, 'is_train': is_train, 'dist': False, 'rank': 0,
        'world_size': 1, 'manual_seed': 3, 'network_g': network, 'logger': {'print_freq': 1},
        'path': {key: str(value) for key, value in path.items()},
        'val': {'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 0}}},
    }  # fmt: skip
    if is_train:
        options['train'] = {
            'total_iter': 100, 'optim_g': {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.0},
            'scheduler': {'type': 'MultiStepLR', 'milestones': [1000]}, 'ema_decay': 0.9,
            'pixel_opt': {'type': 'L1Loss'}, **train,
        }  # fmt: skip
    return options


def plugin_options(folder: Path) -> dict:
    """Options of a tiny Phase I training with classes of this package."""
    write_photos(folder / 'clean', 3, (40, 48))
    data = {
        'type': 'SyntheticDegradationDataset',
        'dataroot_gt': str(folder / 'clean'),
        'degradations': [{'type': 'gaussian_noise', 'sigma': [5, 50]}],
    }
    sizes = {'gt_size': 32, 'batch_size_per_gpu': 2, 'num_worker_per_gpu': 0}
    options = stock_options(folder, total_iter=10)
    del options['manual_seed']
    options['val']['val_freq'] = options['logger']['save_checkpoint_freq'] = 5
    options['train'] |= {
        'ema_decay': 0.99,
        'optim_g': {'type': 'AdamW', 'lr': 1e-3, 'betas': [0.9, 0.99]},
        'scheduler': {
            'type': 'CosineAnnealingRestartCyclicLR', 'periods': [4, 6],
            'restart_weights': [1, 1], 'eta_mins': [1e-4, 1e-6],
        },
        'isda_opt': {'type': 'ISDALoss', 'loss_weight': 0.1},
    }  # fmt: skip
    return options | {
        'name': 'phase1', 'model_type': 'UnfoldLDMPhase1Model', 'scale': 1,
        'datasets': {'train': {**data, **sizes}, 'val': {'name': 'held_out', **data}},
        'network_g': tiny_unfoldldm(1),
    }  # fmt: skip


def network_of(path: Path, *, opt_file: Path | None = None):
    return build_network(read_checkpoint(path), opt_file=opt_file)[0]


class Attack:
    """Pickles to a call that makes a folder."""

    def __init__(self, folder: str | Path = 'proof') -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


DELETE = object()  # for put


def put(options: dict, path: str, value: object) -> dict:
    """A copy of ``options`` with one key path set, its sections made; or removed for DELETE."""
    options = copy.deepcopy(options)
    *sections, key = path.split('.')
    place: Any = options
    for section in sections:
        place = place[int(section)] if isinstance(place, list) else place.setdefault(section, {})
    key = int(key) if isinstance(place, list) else key
    if value is DELETE:
        del place[key]
    else:
        place[key] = value
    return options


def change(file: Path, path: str, value: object) -> Path:
    """Sets one key path in an option file."""
    return write_options(file, put(yaml.safe_load(file.read_text(encoding='utf-8')), path, value))


def for_test(options: dict) -> dict:
    """The option file of a training as that of a test on its validation set."""
    options = {k: v for k, v in options.items() if k not in ('train', 'logger')}
    options['datasets'] = {'test': options['datasets']['val']}
    options['val'] = {k: v for k, v in options['val'].items() if k != 'val_freq'}
    return options


def rule_problems(model: type, options: dict) -> list[str]:
    """Key paths that a model's declarations and rules find fault with, each once."""
    from basicsr.utils.registry import ARCH_REGISTRY

    try:
        run = typed(model, options)
    except OptionError as error:
        return [problem.path for problem in error.problems]
    for name, section in run.network_sections.items():
        arguments = {key: value for key, value in section.items() if key != 'type'}
        with contextlib.suppress(ValueError):  # as in the check, which names it
            run.networks[name] = build_on_meta(ARCH_REGISTRY.get(section['type']), arguments)
    found = (problem for rule in model.rules for problem in rule(run))
    return list(dict.fromkeys(problem.path for problem in found if problem.kind == 'fault'))


def preflight(options: dict, file: str, is_train: bool, **settings) -> list[str]:
    """Every problem of an option dict, one line each."""
    return examine(options, file, is_train, **settings).problems


def problems_at(options: dict, path: str, **settings) -> str:
    """What the preflight says of one key path, '' if nothing."""
    lines = preflight(options, 'x.yml', 'train' in options, **settings)
    assert all(line.startswith('x.yml: ') and '\n' not in line for line in lines)
    start = f'x.yml: {path}: '
    return ' '.join(line.removeprefix(start) for line in lines if line.startswith(start))


def warnings_at(options: dict, path: str, **settings) -> str:
    """What the check has to say about one key path without refusing it, '' if nothing."""
    report = examine(options, 'x.yml', 'train' in options, **settings)
    assert report.problems == []
    return report.warned.get(path, '')
