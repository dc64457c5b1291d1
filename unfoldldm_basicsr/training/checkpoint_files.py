"""Files of a checkpoint, and whether they are what was written.

``training_states/N.state.json`` lists every file of checkpoint N with its size and SHA-256. It is
written last, so it also says that the checkpoint is complete. Checkpoints of plain BasicSR have no
such list; of their files the check sums inside (they are ZIP archives) are compared.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unfoldldm_basicsr.common.errors import first_line

_READ_ERRORS = (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError)
_STATE_KEYS = ('epoch', 'iter', 'optimizers', 'schedulers')
_BLOCK = 1 << 20


def manifest_path(state_path: Path) -> Path:
    """``5.state`` -> ``5.state.json``."""
    return state_path.with_name(f'{state_path.name}.json')


def iterations_of(states: Path) -> list[int]:
    """Iterations of the training states in a folder, the oldest first."""
    return sorted(int(p.stem) for p in states.glob('*.state') if p.stem.isdecimal())


def weights_of(models: Path, iteration: int) -> list[Path]:
    """Weight files that belong to a checkpoint."""
    name = re.compile(rf'net_[a-z]+_{iteration}\.pth')
    return [p for p in models.glob(f'net_*_{iteration}.pth') if name.fullmatch(p.name)]


def read_manifest(state_path: Path) -> tuple[dict[str, Any] | None, str]:
    """The list that belongs to a state (None without one), and what is wrong with it."""
    path = manifest_path(state_path)
    try:
        manifest = json.loads(path.read_bytes())
        files = {str(name): (f['size'], f['sha256']) for name, f in manifest['files'].items()}
    except FileNotFoundError:
        return None, ''
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f'has a damaged list of check sums {path.name} ({first_line(error)})'
    for name, (size, sha256) in files.items():
        fault = _fault_of_file(state_path.parent / name, size, sha256)
        if fault:
            return manifest, fault
    return manifest, ''


def read_state(path: Path) -> tuple[dict | None, str]:
    """The state in ``path``, or None and what is wrong with its checkpoint.

    Loads tensors to the CPU. The list of check sums is its entry ``manifest``; the best metrics
    are taken from there, where they include the validation of the same iteration.
    """
    if not path.is_file():
        return None, 'does not exist'
    manifest, fault = read_manifest(path)
    if fault:
        return None, fault
    if manifest is None:
        fault = _fault_of_archive(path)
        if fault:
            return None, f'cannot be read ({fault})'
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except _READ_ERRORS as error:
        return None, f'cannot be read ({first_line(error)})'
    missing = [k for k in _STATE_KEYS if not isinstance(state, dict) or k not in state]
    if missing:
        return None, f'is not a training state (no {", ".join(missing)})'
    state['manifest'] = manifest
    if manifest is not None and 'best_metric_results' in manifest:
        state['best_metric_results'] = manifest['best_metric_results']
    return state, ''


def fault_of_networks(opt: Mapping[str, Any], iteration: int) -> str:
    """What is wrong with the network files that belong to a state, '' if nothing."""
    ignored = opt['path'].get('ignore_resume_networks') or ()
    for key in opt:
        if not key.startswith('network_') or key in ignored:
            continue
        path = Path(opt['path']['models']) / f'net_{key.removeprefix("network_")}_{iteration}.pth'
        if not path.is_file():
            return f'has no weights {path.name} beside it'
        fault = _fault_of_archive(path)
        try:
            # Memory-mapped: reads the directory of the file, which a truncation destroys.
            torch.load(path, map_location='cpu', weights_only=True, mmap=True)
        except _READ_ERRORS as error:
            fault = first_line(error)
        if fault:
            return f'has weights {path.name} that cannot be read ({fault})'
    return ''


def _fault_of_file(path: Path, size: int, sha256: str) -> str:
    try:
        found = path.stat().st_size
        if found != size:
            return f'is incomplete: {path.name} has {found} bytes of {size}'
        digest = hashlib.sha256()
        with open(path, 'rb') as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except FileNotFoundError:
        return f'is incomplete: {path.name} is missing'
    except OSError as error:
        return f'cannot be read: {path.name}: {first_line(error)}'
    if digest.hexdigest() != sha256:
        return f'is damaged: {path.name} is not what was written (SHA-256 differs)'
    return ''


def _fault_of_archive(path: Path) -> str:
    """Compares the check sums inside a file of ``torch.save``; its own reader does not."""
    try:
        if not zipfile.is_zipfile(path):
            return ''  # of an old torch, or no archive at all: for the reader to say
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        return first_line(error)
    return f'check sum of {damaged} differs' if damaged else ''
