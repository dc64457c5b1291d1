"""Writes checkpoints: files appear under their names complete and on disk, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from basicsr.utils import get_root_logger
from torch import Tensor, nn

from unfoldldm_basicsr.common.errors import (
    CheckpointWriteError,
    RunFailure,
    first_line,
    os_error_behind,
)
from unfoldldm_basicsr.common.files import TEMPORARY_SUFFIX, atomic_file, write_bytes_atomic
from unfoldldm_basicsr.common.ranks import on_rank_0
from unfoldldm_basicsr.training.interruption import stop_request
from unfoldldm_basicsr.training.progress import progress
from unfoldldm_basicsr.training.randomness import rng_state
from unfoldldm_basicsr.weights.training_state import Sums, iterations_of, manifest_path, weights_of

# What torch's writer says when less was written than it gave.
_TORCH_WRITER = re.compile('PytorchStreamWriter|unexpected pos', re.IGNORECASE)


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

    def sums(self) -> dict[str, Any]:
        return {'size': self.size, 'sha256': self._digest.hexdigest()}


def save_atomic(content: Any, path: str | os.PathLike) -> dict[str, Any]:
    """``torch.save`` through a temporary file that is flushed to disk and then renamed.

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
            raise _write_error(path, error) from error
        raise
    return hashed.sums()


class Checkpointer:
    """Saves the run; BasicSR's hooks come here from a model that knows its weights and its state.

    Rank 0 writes; what goes wrong there ends all ranks.

    Args:
        opt: options of the run: ranks, folders.
        weights: content of the file of each network, by its name ``net_g``.
        state: training state without ``epoch``, ``iter`` and ``rng``.
        keep: how many of the newest checkpoints stay; None: all.
    """

    def __init__(
        self,
        opt: Mapping[str, Any],
        weights: Callable[[], Mapping[str, Any]],
        state: Callable[[], Mapping[str, Any]],
        keep: int | None = None,
    ):
        self.opt, self.weights, self.state, self.keep = opt, weights, state, keep
        self.models = Path(opt['path']['models'])
        self.states = Path(opt['path']['training_states'])
        self.manifest: dict[str, Any] | None = None  # of the newest checkpoint of this process
        if opt['rank'] == 0:
            self._remove_leftovers()

    def save(self, epoch: int, iteration: int) -> None:
        """Writes the weights, the training state, and the list that completes the checkpoint.

        Args:
            epoch: epoch of the trainer.
            iteration: number of finished iterations; -1 for ``net_*_latest.pth`` alone.

        Raises:
            CheckpointWriteError: it cannot be written; older checkpoints are untouched.
            NonFiniteWeightsError: the weights are not finite; nothing is written.
        """
        if iteration == -1:
            on_rank_0(self.opt, lambda: self._write_weights('latest'))
            return
        generators = [rng_state()]
        if self.opt['dist']:
            generators = [None] * self.opt['world_size']
            torch.distributed.all_gather_object(generators, rng_state())
        numbers = {'epoch': epoch, 'iter': iteration}
        on_rank_0(self.opt, lambda: self._write(numbers | self.state() | {'rng': generators}))

    def save_and_stop(self, iteration: int) -> None:
        """Ends a run that a signal asked to end.

        Raises:
            SystemExit: always, after the run was saved.
        """
        self.save((iteration - 1) // (progress.steps_per_epoch or iteration), iteration)
        get_root_logger().warning(
            f'Stopped by a signal at iteration {iteration}; the run is saved. '
            'Continue with the same command and --auto_resume.'
        )
        raise SystemExit(128 + (stop_request.signum or signal.SIGTERM))

    def note_validation(
        self, dataset: str, iteration: int, best: Mapping[str, Any], keep: Iterable[str] = ()
    ) -> None:
        """Records the validation that followed a checkpoint, and keeps weights that are the best.

        Args:
            dataset: its name.
            iteration: at which it was validated.
            best: the best metrics so far.
            keep: labels of ``net_*_best_LABEL.pth`` to write.

        Raises:
            CheckpointWriteError: something cannot be written.
        """

        def note() -> None:
            for label in keep:
                self._write_weights('best_' + re.sub(r'[^\w.-]', '_', label))
            if self.manifest is not None and self.manifest['iter'] == iteration:
                if dataset not in self.manifest.setdefault('validated', []):
                    self.manifest['validated'].append(dataset)
                self._write_manifest(best)

        on_rank_0(self.opt, note)

    def go_on(self, state: Mapping[str, Any]) -> None:
        """The run goes on from a state, of its own or of another folder."""
        own = (self.states / f'{state["iter"]}.state').is_file()
        self.manifest = state.get('manifest') if own else None

    def _write(self, state: Mapping[str, Any]) -> None:
        iteration, weights = state['iter'], self.weights()
        names = [self.models / f'{name}_{iteration}.pth' for name in weights]
        path = self.states / f'{iteration}.state'
        new = [file for file in (*names, path) if not file.exists()]
        try:
            sums = self._write_weights(iteration, weights)
            sums |= self._save({**state, 'weights': dict(sums)}, path)
            self.manifest = {
                'iter': iteration,
                'files': sums,
                'option_digest': state.get('option_digest'),
                'data': state.get('data'),
                'validated': [],
            }
            self._write_manifest(state['best_metric_results'])
        except Exception:  # the disk may be full: what was begun is of no use and takes room
            for file in new:
                file.unlink(missing_ok=True)
            raise
        if self.keep:
            self._remove_old(iteration)

    def _write_weights(self, label: str | int, weights: Mapping[str, Any] | None = None) -> Sums:
        """Writes ``NAME_LABEL.pth`` for each network."""
        sums: Sums = {}
        for name, content in (weights or self.weights()).items():
            sums |= self._save(content, self.models / f'{name}_{label}.pth')
        return sums

    def _save(self, content: Any, path: Path) -> Sums:
        return {os.path.relpath(path, self.states).replace(os.sep, '/'): save_atomic(content, path)}

    def _write_manifest(self, best: Mapping[str, Any]) -> None:
        self.manifest['best_metric_results'] = best
        path = manifest_path(self.states / f'{self.manifest["iter"]}.state')
        try:
            write_bytes_atomic(path, json.dumps(self.manifest, indent=1).encode())
            _sync_folder(path.parent)
        except OSError as error:
            raise _write_error(path, error) from error

    def _remove_leftovers(self) -> None:
        """Removes temporary files that a killed run left behind."""
        for folder in (self.models, self.states):
            for path in folder.glob(f'.*{TEMPORARY_SUFFIX}'):
                path.unlink(missing_ok=True)

    def _remove_old(self, written: int) -> None:
        """Keeps the newest checkpoints up to ``written``.

        States above it belong to another continuation of the run, and files without an iteration
        in their name (``net_g_latest.pth``) to nobody: both stay.
        """
        for iteration in [i for i in iterations_of(self.states) if i <= written][: -self.keep]:
            state = self.states / f'{iteration}.state'
            for path in (state, manifest_path(state), *weights_of(self.models, iteration)):
                path.unlink(missing_ok=True)


def _write_error(path: Path, error: Exception) -> CheckpointWriteError:
    cause = os_error_behind(error)
    reason = (cause.strerror if cause is not None else None) or first_line(error)
    return CheckpointWriteError(
        f'cannot write {path}: {reason}. The training stops so that nothing is lost silently; '
        'older checkpoints are untouched. Free space on that disk (or point the experiment '
        'to another) and run the same command with --auto_resume.'
    )


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable, where the system allows to open a folder."""
    if os.name != 'posix':
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
