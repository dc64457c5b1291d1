"""Checkpoints as they lie on the disk: the one reader of a whole one; :mod:`.checkpointer` writes.

Checkpoint N is ``models/net_*_N.pth``, ``training_states/N.state`` and ``N.state.json`` beside it.
The state lists its weights, and the JSON file, written last, lists both, with sizes and SHA-256: a
state and the weights that it lists belong together, wherever they lie. Files appear under their
names complete and on disk, or not at all. Checkpoints of plain BasicSR have no such lists; their
weights are looked for in the folder ``models`` beside that of the state, and of their files the
check sums inside (they are ZIP archives) are compared.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfoldldm_basicsr.common.errors import ResumeError, first_line
from unfoldldm_basicsr.weights.checkpoint import CheckpointError, load_content

Sums = dict[str, dict[str, Any]]  # path relative to the state: {'size', 'sha256'}

_STATE_KEYS = ('epoch', 'iter', 'optimizers', 'schedulers')


def manifest_path(state_path: Path) -> Path:
    return state_path.with_name(f'{state_path.name}.json')


def iterations_of(states: Path) -> list[int]:
    """Iterations of the training states in a folder, the oldest first."""
    return sorted(int(p.stem) for p in states.glob('*.state') if p.stem.isdecimal())


def weights_of(models: Path, iteration: int) -> list[Path]:
    """Weight files in a folder that bear the number of a checkpoint."""
    name = re.compile(rf'net_[a-z]+_{iteration}\.pth')
    return [p for p in models.glob('*.pth') if name.fullmatch(p.name)]


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint.

    Attributes:
        path: of the state.
        state: its content, tensors on the CPU; the best metrics include the validation of the same
            iteration. The entry ``manifest`` is the content of the JSON file, None without one.
        weights: file of each network that was asked for, by its name ``net_g``.
    """

    path: Path
    state: dict[str, Any]
    weights: Mapping[str, Path]

    @classmethod
    def read(cls, path: Path, networks: Iterable[str] = ()) -> 'Checkpoint':
        """Reads a state and sees to it that the weights of ``networks`` are those written with it.

        Raises ResumeError, which names the state, and the file that is missing or damaged.
        """
        if not path.is_file():
            raise ResumeError(f'{path} does not exist')
        manifest = _read_manifest(path)
        if manifest is not None:
            listed = _verified(path, manifest['files'])
        state = _load(path, path)
        missing = [k for k in _STATE_KEYS if not isinstance(state, dict) or k not in state]
        if missing:
            raise ResumeError(f'{path} is not a training state (no {", ".join(missing)})')
        if manifest is not None:
            best = state.get('best_metric_results', {})
            state['best_metric_results'] = manifest.get('best_metric_results', best)
        else:
            listed = _verified(path, state.get('weights') or {})
        state['manifest'] = manifest
        models = path.parent.parent / 'models'  # where a project may not save its teacher
        saved = [n for n in networks if listed or n == 'net_g' or any(models.glob(f'{n}_*.pth'))]
        found = {name: _weights(path, name, state['iter'], listed) for name in saved}
        return cls(path, state, found)


def _read_manifest(state_path: Path) -> dict[str, Any] | None:
    path = manifest_path(state_path)
    try:
        manifest = json.loads(path.read_bytes())
        _ = [sums['sha256'] for sums in manifest['files'].values()]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResumeError(
            f'{state_path} has a damaged list of check sums {path.name} ({first_line(error)})'
        ) from error
    return manifest


def _verified(state_path: Path, files: Sums) -> list[Path]:
    """The listed files, compared with their sums."""
    paths = [Path(os.path.normpath(state_path.parent / place)) for place in files]
    for path, sums in zip(paths, files.values(), strict=True):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ResumeError(f'{state_path} is incomplete: {path}: {error.strerror}') from error
        if hashlib.sha256(content).hexdigest() != sums['sha256']:
            fault = f'is damaged: {path} is not what was written with it (SHA-256 differs)'
            raise ResumeError(f'{state_path} {fault}')
    return paths


def _weights(state_path: Path, name: str, iteration: int, listed: list[Path]) -> Path:
    """The file of one network that belongs to a state."""
    path = state_path.parent.parent / 'models' / f'{name}_{iteration}.pth'
    for file in listed:
        if file.name == path.name:
            return file
    if listed or not path.is_file():
        raise ResumeError(f'{state_path} has no weights {path} that belong to it')
    _load(path, state_path)
    return path


def _load(path: Path, state_path: Path) -> Any:
    try:
        return load_content(path)
    except (CheckpointError, OSError) as error:
        raise ResumeError(f'{state_path} cannot be read ({str(error).rstrip(".")})') from error
