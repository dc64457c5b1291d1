"""Checkpoints appear under their name complete and on disk, or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from basicsr.utils import get_root_logger
from torch import Tensor, nn

TEMPORARY_SUFFIX = '.tmp'


def save_atomic(content: Any, path: str | os.PathLike) -> None:
    """``torch.save`` through a temporary file that is flushed to disk and then renamed.

    A reader, or a run that is killed at any moment, sees the old file or the new one, never a part.

    Raises:
        OSError: the file could not be written (disk full, no permission, folder gone); the
            temporary file is removed and every older checkpoint is still there.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}')
    try:
        with open(temporary, 'wb') as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise OSError(
            f'cannot write {path}: {error}. The training stops so that nothing is lost silently; '
            'older checkpoints are untouched. Free space on that disk (or point the experiment '
            'to another) and run the same command with --auto_resume.'
        ) from error


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
    models: str | os.PathLike, states: str | os.PathLike, keep: int
) -> list[int]:
    """Keeps the newest ``keep`` training states and their weights, and removes the older ones.

    Files without an iteration in their name (``net_g_latest.pth``) are never touched.

    Returns:
        The iterations that were removed.
    """
    found = sorted(int(path.stem) for path in Path(states).glob('*.state') if path.stem.isdecimal())
    removed = found[:-keep]
    for iteration in removed:
        (Path(states) / f'{iteration}.state').unlink()
        for path in Path(models).glob(f'net_*_{iteration}.pth'):
            if re.fullmatch(rf'net_[a-z]+_{iteration}\.pth', path.name):
                path.unlink()
    return removed


def network_state(net: nn.Module) -> dict[str, Tensor]:
    """State dict of a bare network on the CPU.

    Raises:
        ValueError: a value is not finite; such weights are never written.
    """
    state = {}
    for key, value in net.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(
                f'{key} of {type(net).__name__} holds values that are not finite: the weights are '
                'not written and the last checkpoint is untouched. Resume from it with a lower '
                'optim_g.lr or with use_grad_clip.'
            )
        state[key] = value.detach().cpu()
    return state


def report_changed_options(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Names what a resumed run takes from its state although the option file now says otherwise.

    Optimiser and schedule come back from the state with their settings, as in BasicSR.

    Args:
        stored: ``train`` settings when the state was written.
        current: ``train`` settings of the option file.

    Returns:
        One sentence per difference; each is also logged as a warning.
    """
    messages = []
    for section in stored:
        before, now = _flatten(stored[section], section), _flatten(current.get(section), section)
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                messages.append(
                    f'train.{key} is {now.get(key)} in the option file, but the resumed state '
                    f'was made with {before.get(key)} and keeps it.'
                )
    for message in messages:
        get_root_logger().warning(message)
    return messages


def plain(value: Any) -> Any:
    """Option values as plain dicts and lists, which ``weights_only=True`` loads."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _flatten(value: Any, prefix: str) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {
            name: item
            for key, inner in value.items()
            for name, item in _flatten(inner, f'{prefix}.{key}').items()
        }
    return {prefix: value}
