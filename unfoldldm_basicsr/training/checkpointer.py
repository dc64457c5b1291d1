"""Writes checkpoints: files appear under their names complete and on disk, or not at all."""

import hashlib
import json
import os
import random
import re
import signal
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.utils import get_root_logger
from torch import Tensor, nn

from unfoldldm_basicsr.common.errors import RunFailure, on_rank_0, together, writing
from unfoldldm_basicsr.common.files import TEMPORARY_SUFFIX, write_bytes_atomic
from unfoldldm_basicsr.options.run import Run
from unfoldldm_basicsr.training.interruption import stop_request
from unfoldldm_basicsr.training.progress import progress
from unfoldldm_basicsr.weights.checkpoint import file_bytes, is_broken
from unfoldldm_basicsr.weights.training_state import Sums, iterations_of, manifest_path, weights_of


def network_state(net: nn.Module) -> dict[str, Tensor]:
    """State dict of a bare network on the CPU; RunFailure where it is not finite."""
    state = {}
    for key, value in net.state_dict().items():
        if is_broken(value):
            raise RunFailure(
                f'{key} of {type(net).__name__} holds values that are not finite: the weights are '
                'not written and the last checkpoint is untouched. Resume from it with a lower '
                'optim_g.lr or with use_grad_clip.'
            )
        state[key] = value.detach().cpu()
    return state


def save_atomic(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """``torch.save``, complete or not at all; ``size`` in bytes and ``sha256`` of the file.

    Raises OutputWriteError: the file could not be written (disk full, no permission).
    """
    # In memory first: torch's writer would turn an error of the disk into one of its own.
    data = file_bytes(path, content)
    with writing(path):
        write_bytes_atomic(path, data)
    return {'size': len(data), 'sha256': hashlib.sha256(data).hexdigest()}


def rng_state() -> dict[str, Any]:
    """State of the global generators, which code outside of a step draws from.

    In plain python types and tensors (``weights_only`` safe).
    """
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    return {
        'python': random.getstate(),
        'numpy': [kind, keys.tolist(), int(position), int(has_gauss), float(gauss)],
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Puts back what :func:`rng_state` returned, also after it went through a file."""
    random.setstate(state['python'])
    np.random.set_state(tuple(state['numpy']))  # noqa: NPY002
    torch.set_rng_state(state['torch'].cpu())
    if state['cuda'] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


class Checkpointer:
    """Saves the run; rank 0 writes, and what goes wrong there ends all ranks.

    Args:
        weights: content of the file of each network, by its name ``net_g``.
        state: training state without ``epoch``, ``iter`` and ``rng``.
    """

    def __init__(
        self,
        run: Run,
        weights: Callable[[], Mapping[str, Any]],
        state: Callable[[], Mapping[str, Any]],
    ):
        self.opt, self.weights, self.state = run.opt, weights, state
        self.keep = run.logger.keep_checkpoints
        self.models, self.states = (Path(run.opt['path'][k]) for k in ('models', 'training_states'))
        self.manifest: dict[str, Any] | None = None  # of the newest checkpoint of this process
        if run.opt['rank'] == 0:
            for folder in (self.models, self.states):
                for leftover in folder.glob(f'.*{TEMPORARY_SUFFIX}'):  # of a killed run
                    leftover.unlink(missing_ok=True)

    def save(self, epoch: int, iteration: int) -> None:
        """Writes the weights, the training state, and the list that completes the checkpoint.

        ``iteration``: number of finished iterations; -1 for ``net_*_latest.pth`` alone.

        Raises:
            OutputWriteError: it cannot be written; older checkpoints are untouched.
            RunFailure: the weights are not finite; nothing is written.
        """
        if iteration == -1:
            on_rank_0(self.opt, lambda: self._save(self._weight_files('latest')))
            return
        facts = {'epoch': epoch, 'iter': iteration, 'rng': together(self.opt, rng_state)}
        on_rank_0(self.opt, lambda: self._write(facts | self.state()))

    def save_and_stop(self, iteration: int) -> None:
        """Saves a run that a signal asked to end, and ends it with SystemExit."""
        self.save((iteration - 1) // (progress.steps_per_epoch or iteration), iteration)
        get_root_logger().warning(
            f'Stopped by a signal at iteration {iteration}; the run is saved. '
            'Continue with the same command and --auto_resume.'
        )
        raise SystemExit(128 + (stop_request.signum or signal.SIGTERM))

    def note_validation(
        self, dataset: str, iteration: int, best: Mapping[str, Any], keep: Iterable[str] = ()
    ) -> None:
        """Records the validation of a data set that followed a checkpoint, with the best so far.

        The weights are kept as ``net_*_best_LABEL.pth`` for each label in ``keep``.
        """

        def note() -> None:
            for label in keep:
                self._save(self._weight_files('best_' + re.sub(r'[^\w.-]', '_', label)))
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
        iteration, path = state['iter'], self.states / f'{state["iter"]}.state'
        weights = self._weight_files(iteration)
        new = [file for file in (*weights, path) if not file.exists()]
        try:
            sums = self._save(weights)
            sums |= self._save({path: {**state, 'weights': dict(sums)}})
            again = self.manifest is not None and self.manifest['iter'] == iteration
            # by a signal in a validation: the sets before it are done
            done = self.manifest.get('validated', []) if again else []
            self.manifest = {'iter': iteration, 'files': sums, 'validated': done}
            self._write_manifest(state['best_metric_results'])
        except Exception:  # the disk may be full: what was begun is of no use and takes room
            for file in new:
                file.unlink(missing_ok=True)
            raise
        if self.keep:
            self._remove_old(iteration)

    def _weight_files(self, label: str | int) -> dict[Path, Any]:
        return {self.models / f'{name}_{label}.pth': c for name, c in self.weights().items()}

    def _save(self, files: Mapping[Path, Any]) -> Sums:
        sums = {path: save_atomic(content, path) for path, content in files.items()}
        return {os.path.relpath(p, self.states).replace(os.sep, '/'): s for p, s in sums.items()}

    def _write_manifest(self, best: Mapping[str, Any]) -> None:
        self.manifest['best_metric_results'] = best
        path = manifest_path(self.states / f'{self.manifest["iter"]}.state')
        with writing(path):
            write_bytes_atomic(path, json.dumps(self.manifest, indent=1).encode())

    def _remove_old(self, written: int) -> None:
        """Keeps the newest checkpoints up to ``written``.

        States above it belong to another continuation of the run, and files without an iteration
        in their name (``net_g_latest.pth``) to nobody: both stay.
        """
        for iteration in [i for i in iterations_of(self.states) if i <= written][: -self.keep]:
            state = self.states / f'{iteration}.state'
            for path in (state, manifest_path(state), *weights_of(self.models, iteration)):
                path.unlink(missing_ok=True)
