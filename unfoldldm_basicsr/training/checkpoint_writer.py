"""Checkpoints appear under their name complete and on disk, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from unfoldldm_basicsr.common.errors import (
    CheckpointWriteError,
    RunFailure,
    first_line,
    os_error_behind,
)
from unfoldldm_basicsr.common.files import TEMPORARY_SUFFIX, atomic_file, write_bytes_atomic
from unfoldldm_basicsr.training.checkpoint_files import iterations_of, manifest_path, weights_of

# What torch's writer says when less was written than it gave.
_TORCH_WRITER = re.compile('PytorchStreamWriter|unexpected pos', re.IGNORECASE)


class _HashedFile:
    """A file open for writing that knows the size and the SHA-256 of what was written to it."""

    def __init__(self, file: BinaryIO):
        self._file, self._digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        self.size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def sum(self) -> dict[str, int | str]:
        return {'size': self.size, 'sha256': self._digest.hexdigest()}


def save_atomic(content: Any, path: str | os.PathLike) -> dict[str, int | str]:
    """``torch.save`` through a temporary file that is flushed to disk and then renamed.

    A reader, or a run that is killed at any moment, sees the old file or the new one, never a part.

    Returns:
        ``size`` in bytes and ``sha256`` of the file.

    Raises:
        CheckpointWriteError: the file could not be written (disk full, no permission);
            every older checkpoint is still there. Whatever goes wrong, the temporary file is
            removed; an error that is not of the disk is raised as it is.
    """
    path = Path(path)
    try:
        with atomic_file(path) as file:
            hashed = _HashedFile(file)
            torch.save(content, hashed)
        _sync_folder(path.parent)
    except Exception as error:
        if os_error_behind(error) or _TORCH_WRITER.search(str(error)):
            raise write_error(path, error) from error
        raise
    return hashed.sum()


def write_error(path: str | os.PathLike, error: Exception) -> CheckpointWriteError:
    """The error of a checkpoint file that could not be written."""
    cause = os_error_behind(error)
    reason = (cause.strerror if cause is not None else None) or first_line(error)
    return CheckpointWriteError(
        f'cannot write {path}: {reason}. The training stops so that nothing is lost silently; '
        'older checkpoints are untouched. Free space on that disk (or point the experiment '
        'to another) and run the same command with --auto_resume.'
    )


def write_manifest(state_path: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the list that completes a checkpoint, see :mod:`.checkpoint_files`.

    Raises:
        CheckpointWriteError: it cannot be written.
    """
    path = manifest_path(state_path)
    try:
        write_bytes_atomic(path, json.dumps(manifest, indent=1).encode())
        _sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable, where the system allows to open a folder."""
    if os.name != 'posix':
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Removes temporary files that a killed run left in a checkpoint folder."""
    for path in Path(folder).glob(f'.*{TEMPORARY_SUFFIX}'):
        path.unlink(missing_ok=True)


def remove_old_checkpoints(
    models: str | os.PathLike, states: str | os.PathLike, keep: int, written: int
) -> list[int]:
    """Keeps the newest ``keep`` training states and their weights, and removes the older ones.

    Files without an iteration in their name (``net_g_latest.pth``) are never touched, nor are
    states above ``written``, which belong to another continuation of the run.

    Args:
        models: folder of the weights.
        states: folder of the training states.
        keep: how many, at least 1.
        written: iteration of the checkpoint just written, the newest of this run.

    Returns:
        The iterations that were removed.
    """
    removed = [i for i in iterations_of(Path(states)) if i <= written][:-keep]
    for iteration in removed:
        state = Path(states) / f'{iteration}.state'
        for path in (state, manifest_path(state), *weights_of(Path(models), iteration)):
            path.unlink(missing_ok=True)
    return removed


class NonFiniteWeightsError(RunFailure, ValueError):
    """Weights that must not be written."""

    on_all_ranks = True


def network_state(net: nn.Module) -> dict[str, Tensor]:
    """State dict of a bare network on the CPU.

    Raises:
        NonFiniteWeightsError: a value is not finite; such weights are never written.
    """
    state = {}
    for key, value in net.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise NonFiniteWeightsError(
                f'{key} of {type(net).__name__} holds values that are not finite: the weights are '
                'not written and the last checkpoint is untouched. Resume from it with a lower '
                'optim_g.lr or with use_grad_clip.'
            )
        state[key] = value.detach().cpu()
    return state


def plain(value: Any) -> Any:
    """Option values as plain dicts and lists, which ``weights_only=True`` loads."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
