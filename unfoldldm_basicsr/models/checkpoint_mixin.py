"""The part of :class:`RestorationModel` that saves and resumes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from basicsr.utils.dist_util import master_only

from ..inference.checkpoint import ARCH_KEY, network_meta
from . import checkpoint_writer as writer
from .rng import rng_state, set_rng_state


class CheckpointMixin:
    """Weights and training state in BasicSR's format, written atomically and resumed exactly."""

    def save(self, epoch: int, current_iter: int) -> None:
        """Writes the weights and then the training state, which marks the checkpoint complete.

        Raises:
            OSError: it cannot be written; older checkpoints are untouched.
            ValueError: the weights are not finite; nothing is written.
        """
        if epoch >= 0:  # -1 is the end of the training
            self._last_epoch = epoch
        super().save(epoch, current_iter)
        keep = (self.opt.get('logger') or {}).get('keep_checkpoints')
        if keep and current_iter != -1 and self.opt['rank'] == 0:
            path = self.opt['path']
            writer.remove_old_checkpoints(path['models'], path['training_states'], keep)

    @master_only
    def save_network(self, net, net_label, current_iter, param_key='params') -> None:
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        content: dict[str, Any] = {
            key: writer.network_state(self.get_bare_model(each))
            for key, each in zip(keys, nets, strict=True)
        }
        content[ARCH_KEY] = network_meta(self.opt['network_g'])
        label = 'latest' if current_iter == -1 else current_iter
        writer.save_atomic(content, Path(self.opt['path']['models']) / f'{net_label}_{label}.pth')

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Writes optimiser, schedule, random generators of all ranks and the best metrics."""
        if current_iter == -1:
            return
        generators: list[Any] = [rng_state()]
        if self.opt['dist']:
            own, generators = generators[0], [None] * self.opt['world_size']
            torch.distributed.all_gather_object(generators, own)
        if self.opt['rank'] != 0:
            return
        state = {
            'epoch': epoch,
            'iter': current_iter,
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
            'schedulers': [scheduler.state_dict() for scheduler in self.schedulers],
            'rng': generators,
            'best_metric_results': getattr(self, 'best_metric_results', {}),
            'nonfinite_total': self.guard.total,
            'train_options': self._resumable_options(),
        }
        folder = Path(self.opt['path']['training_states'])
        writer.save_atomic(state, folder / f'{current_iter}.state')

    def _resumable_options(self) -> dict[str, Any]:
        return {key: writer.plain(self.train_opt.get(key)) for key in ('optim_g', 'scheduler')}

    def resume_training(self, resume_state: Mapping[str, Any]) -> None:
        """Continues from a state; one written by plain BasicSR works too.

        Raises:
            ValueError: the state belongs to another network or optimiser.
        """
        optimizers, loaded = self.optimizers, resume_state['optimizers']
        for optimizer, state in zip(optimizers, loaded, strict=True):
            try:
                optimizer.load_state_dict(state)
            except ValueError as error:
                raise ValueError(
                    f'path.resume_state does not fit this option file: {error}. The state was made '
                    'with another network_g or optim_g.'
                ) from error
        for scheduler, state in zip(self.schedulers, resume_state['schedulers'], strict=True):
            scheduler.load_state_dict(state)
        self._last_epoch = resume_state['epoch']
        self.best_metric_results = resume_state.get('best_metric_results', {})
        self.guard.total = resume_state.get('nonfinite_total', 0)
        writer.report_changed_options(
            resume_state.get('train_options', {}), self._resumable_options()
        )
        generators = resume_state.get('rng', [])
        if self.opt['rank'] < len(generators):
            set_rng_state(generators[self.opt['rank']])
        self._remove_leftovers()

    @master_only
    def _remove_leftovers(self) -> None:
        for key in ('models', 'training_states'):
            writer.remove_leftovers(self.opt['path'][key])
