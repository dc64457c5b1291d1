"""The part of :class:`RestorationModel` that saves and resumes."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only

from unfoldldm_basicsr.common.ranks import on_rank_0
from unfoldldm_basicsr.training import checkpoint_writer as writer
from unfoldldm_basicsr.training.interruption import stop_request
from unfoldldm_basicsr.training.progress import progress
from unfoldldm_basicsr.training.resumed_schedule import resume_schedule, schedule_options
from unfoldldm_basicsr.training.rng import rng_state, set_rng_state
from unfoldldm_basicsr.training.run_options import option_digest, run_options
from unfoldldm_basicsr.training.saved_images import validation_sets
from unfoldldm_basicsr.weights.checkpoint import ARCH_KEY, network_meta


class CheckpointMixin:
    """Weights and training state in BasicSR's format, written atomically and resumed exactly."""

    kept_warmup_iter: int | None = None  # of a resumed state, instead of the option file's
    _schedule: dict[str, Any] | None = None  # settings in force, see resumed_schedule
    _manifest: dict[str, Any] | None = None  # of the newest checkpoint of this process
    _generators: list[Any]
    _written: dict[Path, tuple[bool, dict[str, Any]]]  # path -> (was there before, check sums)

    # ---- saving -------------------------------------------------------------------------------

    def save(self, epoch: int, current_iter: int) -> None:
        """Writes the weights, the training state, and the list that completes the checkpoint.

        Rank 0 writes; what goes wrong there ends all ranks.

        Args:
            epoch: epoch of the trainer; -1 at the end of the training.
            current_iter: number of finished iterations; -1 for ``net_g_latest.pth`` alone.

        Raises:
            CheckpointWriteError: it cannot be written; older checkpoints are untouched.
            NonFiniteWeightsError: the weights are not finite; nothing is written.
        """
        self._generators = self._all_rng_states() if current_iter != -1 else []
        on_rank_0(self.opt, lambda: self._write_checkpoint(epoch, current_iter))

    def _write_checkpoint(self, epoch: int, current_iter: int) -> None:
        self._written = {}
        try:
            super().save(epoch, current_iter)
            if current_iter != -1:
                self._complete_checkpoint(current_iter)
        except Exception:  # the disk may be full: what was begun is of no use and takes room
            for path, (was_there, _) in self._written.items():
                if not was_there:
                    path.unlink(missing_ok=True)
            raise
        keep = (self.opt.get('logger') or {}).get('keep_checkpoints')
        if keep and current_iter != -1:
            path = self.opt['path']
            writer.remove_old_checkpoints(
                path['models'], path['training_states'], keep, current_iter
            )

    def checkpoint_extras(self, net_label: str) -> dict[str, Any]:
        """Further entries of a weight file beside the weights: plain values and tensors."""
        return {}

    @master_only
    def save_network(self, net, net_label, current_iter, param_key='params') -> None:
        """Writes ``NET_LABEL_ITER.pth`` in BasicSR's format; -1 stands for ``latest``."""
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        content: dict[str, Any] = {
            key: writer.network_state(self.get_bare_model(each))
            for key, each in zip(keys, nets, strict=True)
        }
        content[ARCH_KEY] = network_meta(self.opt[net_label.replace('net_', 'network_')])
        content |= self.checkpoint_extras(net_label)
        label = 'latest' if current_iter == -1 else current_iter
        self._write(content, Path(self.opt['path']['models']) / f'{net_label}_{label}.pth')

    @master_only
    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Writes everything but the weights that the run needs to go on with the same bits.

        Gradients are accumulated inside one iteration, so between two there are none to keep.
        """
        if current_iter == -1:
            return
        state = {
            'epoch': epoch,
            'iter': current_iter,
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
            'schedulers': [scheduler.state_dict() for scheduler in self.schedulers],
            'rng': self._generators,
            'best_metric_results': getattr(self, 'best_metric_results', {}),
            'nonfinite': {'total': self.guard.total, 'in_a_row': self.guard.in_a_row},
            'train_options': self._schedule or schedule_options(self.train_opt),
            **self._identity(),
        }
        self._write(state, Path(self.opt['path']['training_states']) / f'{current_iter}.state')

    def _identity(self) -> dict[str, Any]:
        """Options and data of the run."""
        options = writer.plain(run_options(self.opt))
        return {
            'options': options,
            'option_digest': option_digest(options),
            'data': progress.data,
        }

    def _write(self, content: Any, path: Path) -> None:
        was_there = path.exists()
        self._written[path] = was_there, writer.save_atomic(content, path)

    def _complete_checkpoint(self, current_iter: int) -> None:
        states, identity = Path(self.opt['path']['training_states']), self._identity()
        files = {
            os.path.relpath(path, states).replace(os.sep, '/'): sums
            for path, (_, sums) in self._written.items()
        }
        self._manifest = {
            'iter': current_iter,
            'files': files,
            'option_digest': identity['option_digest'],
            'data': identity['data'],
        }
        self._add_validation(None)

    def _add_validation(self, dataset_name: str | None) -> None:
        """(Re)writes the list of the newest checkpoint with what validation has found by now."""
        validated = self._manifest.setdefault('validated', [])
        if dataset_name is not None and dataset_name not in validated:
            validated.append(dataset_name)
        self._manifest['best_metric_results'] = getattr(self, 'best_metric_results', {})
        states = Path(self.opt['path']['training_states'])
        writer.write_manifest(states / f'{self._manifest["iter"]}.state', self._manifest)

    def note_validation(self, dataset_name: str, current_iter: int) -> None:
        """Keeps weights that are the best so far; records the validation with its checkpoint."""
        found = self.best_metric_results[dataset_name]
        best = [name for name, record in found.items() if record['iter'] == current_iter]
        keep = bool((self.opt.get('logger') or {}).get('keep_best')) and best

        def write() -> None:
            self._written = {}
            for name in best if keep else ():
                self._save_best(dataset_name, name)
            if self._manifest is not None and self._manifest['iter'] == current_iter:
                self._add_validation(dataset_name)

        on_rank_0(self.opt, write)

    def _save_best(self, dataset_name: str, metric: str) -> None:
        name = metric if len(validation_sets(self.opt)) < 2 else f'{dataset_name}_{metric}'
        label = 'best_' + re.sub(r'[^\w.-]', '_', name)
        if hasattr(self, 'net_g_ema'):
            nets, keys = [self.net_g, self.net_g_ema], ['params', 'params_ema']
            self.save_network(nets, 'net_g', label, param_key=keys)
        else:
            self.save_network(self.net_g, 'net_g', label)

    def save_and_stop(self, current_iter: int) -> None:
        """Ends a run that a signal asked to end.

        Raises:
            SystemExit: always, after the run was saved.
        """
        epoch = (current_iter - 1) // (progress.steps_per_epoch or current_iter)
        self.save(epoch, current_iter)
        get_root_logger().warning(
            f'Stopped by a signal at iteration {current_iter}; the run is saved. '
            'Continue with the same command and --auto_resume.'
        )
        raise SystemExit(128 + (stop_request.signum or signal.SIGTERM))

    # ---- ranks --------------------------------------------------------------------------------

    def _all_rng_states(self) -> list[Any]:
        if not self.opt['dist']:
            return [rng_state()]
        states = [None] * self.opt['world_size']
        torch.distributed.all_gather_object(states, rng_state())
        return states

    # ---- resuming -----------------------------------------------------------------------------

    def resume_training(self, resume_state: Mapping[str, Any]) -> None:
        """Continues from a state; one written by plain BasicSR works too.

        A validation that the interruption cut off is made up for.

        Raises:
            ResumeError: the state belongs to another network or optimiser.
        """
        self.schedulers, self._schedule = resume_schedule(
            self.optimizers, self.schedulers, resume_state, self.train_opt
        )
        self.kept_warmup_iter = self._schedule['warmup_iter']
        self.best_metric_results = resume_state.get('best_metric_results', {})
        nonfinite = resume_state.get('nonfinite', {})
        self.guard.total = nonfinite.get('total', 0)
        self.guard.in_a_row = nonfinite.get('in_a_row', 0)
        generators = resume_state.get('rng', [])
        if self.opt['rank'] < len(generators):
            set_rng_state(generators[self.opt['rank']])
        self._remove_leftovers()
        self._manifest = resume_state.get('manifest')
        self._finish_validation(resume_state)

    def _finish_validation(self, resume_state: Mapping[str, Any]) -> None:
        current_iter, frequency = resume_state['iter'], self.val_opt.get('val_freq')
        if self._manifest is None or not frequency or current_iter % frequency:
            return
        done = self._manifest.get('validated', [])
        for loader in progress.val_loaders:
            if loader.dataset.opt['name'] not in done:
                self.validation(loader, current_iter, None, self.val_opt.get('save_img', False))

    @master_only
    def _remove_leftovers(self) -> None:
        for key in ('models', 'training_states'):
            writer.remove_leftovers(self.opt['path'][key])
