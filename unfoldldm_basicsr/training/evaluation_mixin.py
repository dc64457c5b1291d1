"""The part of :class:`RestorationModel` that restores, validates and reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from basicsr.utils import get_root_logger
from torch import Tensor, nn

from unfoldldm_basicsr.common.ranks import on_rank_0
from unfoldldm_basicsr.restoring.tiling import (
    NoStatisticsError,
    check_tile,
    tiled_forward,
    with_image_statistics,
)
from unfoldldm_basicsr.training.interruption import stop_request
from unfoldldm_basicsr.training.resources import VALIDATION_ADVICE, memory_advice
from unfoldldm_basicsr.training.validation import (
    ImageResult,
    averages,
    evaluate,
    measure_image,
    write_stage_psnr,
)
from unfoldldm_basicsr.training.validation_report import (
    degradation_rows,
    table_lines,
    write_validation_csv,
)


class EvaluationMixin:
    """Restoring one batch, and validating a data set on all ranks."""

    metric_prefix = ''  # put before the name of every metric, in the log and in TensorBoard
    validation_note = ''  # said with every validation
    tiling_noted = False

    def inference_arguments(self) -> dict[str, Any]:
        """Keyword arguments of the network in :meth:`test` that it does not get in training."""
        return {}

    def prepare_item(self, dataloader, index: int, data: Mapping[str, Any]) -> None:
        """Called before a validation item is fed; for models that need more than the item."""

    def measure(self, result: ImageResult) -> None:
        """Adds to ``result`` what :meth:`test` found for the item that was fed last."""
        measure_image(self, result)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, :meth:`feed_data` leaves batches as they are."""
        self.validating = True
        try:
            yield
        finally:
            self.validating = False

    @torch.no_grad()
    def test(self) -> None:
        """Restores ``self.lq`` in fp32 with the averaged weights where there are any.

        The bare network is used: one rank alone must not call a wrapped one.
        """
        net = getattr(self, 'net_g_ema', None) or self.get_bare_model(self.net_g)
        was_training = net.training
        net.eval()
        with memory_advice(VALIDATION_ADVICE):
            self.output = self._restore(net)
        net.train(was_training)

    def _restore(self, net: nn.Module) -> Tensor:
        arguments = self.network_arguments(self.batch) | self.inference_arguments()
        self.trace = None
        tile = self.val_opt.get('tile')
        if tile and max(self.lq.shape[-2:]) > tile:
            return self._restore_tiled(net, lambda part: net(part, **arguments))
        if self.val_opt.get('trace'):
            self.trace = net(self.lq, **arguments, return_trace=True)
            return self.trace.output
        return net(self.lq, **arguments)

    def _restore_tiled(self, net: nn.Module, forward: Callable[[Tensor], Tensor]) -> Tensor:
        """As ``unfoldldm restore --tile``: the tiles of an image share its statistics."""
        tile, overlap = self.val_opt['tile'], self.val_opt.get('tile_overlap', 32)
        multiple = getattr(net, 'size_multiple', 1)
        if getattr(net, 'tiling_changes_result', False):
            side, _ = check_tile(tile, overlap, multiple)
            try:
                forward = with_image_statistics(forward, self.lq, tile=side, size_multiple=multiple)
            except NoStatisticsError as error:
                if not self.tiling_noted:
                    get_root_logger().warning(f'val.tile changes the results: {error}')
                self.tiling_noted = True
        return tiled_forward(forward, self.lq, tile=tile, overlap=overlap, size_multiple=multiple)

    def dist_validation(self, dataloader, current_iter, tb_logger, save_img: bool) -> None:
        if self.is_train:  # BasicSR counts one iteration more at the end of every further epoch
            current_iter = min(current_iter, int(self.train_opt['total_iter']))
        results = evaluate(self, dataloader, str(current_iter), save_img)
        if self.is_train and self._asked_to_stop():
            self.save_and_stop(current_iter)  # resuming makes up for this validation
        name = dataloader.dataset.opt['name']
        self.metric_results = averages(results)
        if self.is_train:
            self._update_best(name, current_iter)
        on_rank_0(self.opt, lambda: self._log_validation(name, results, current_iter, tb_logger))
        if self.is_train:
            self.note_validation(name, current_iter)

    nondist_validation = dist_validation

    def _asked_to_stop(self) -> bool:
        """Whether a signal asks this rank or another to stop."""
        asked = torch.tensor(float(bool(stop_request.signum)), device=self.device)
        if self.opt['dist']:
            torch.distributed.all_reduce(asked)
        return asked.item() > 0

    def _update_best(self, dataset_name: str, current_iter: int) -> None:
        self.__dict__.setdefault('best_metric_results', {})
        best = self.best_metric_results.setdefault(dataset_name, {})
        for name, value in self.metric_results.items():
            metrics = self.val_opt.get('metrics') or {}
            options = metrics.get(name.removeprefix(self.metric_prefix), {})
            better = options.get('better', 'higher')
            worst = -math.inf if better == 'higher' else math.inf
            best.setdefault(name, {'better': better, 'val': worst, 'iter': -1})
            # An undefined value compares as neither higher nor lower, so it is never the best.
            self._update_best_metric_result(dataset_name, name, value, current_iter)

    def _log_validation(self, dataset_name: str, results, current_iter, tb_logger) -> None:
        lines = [f'Validation {dataset_name}{self.validation_note}']
        scalars = {}
        for name, value in self.metric_results.items():
            line = f'\t # {name}: {value:.4f}'
            if self.is_train:
                best = self.best_metric_results[dataset_name][name]
                line += f'\tBest: {best["val"]:.4f} @ {best["iter"]} iter'
            lines.append(line)
            scalars[name] = value
        rows, folder = degradation_rows(results), Path(self.opt['path']['log'])
        lines += [f'\t   {line}' for line in table_lines(rows)]
        for degradation, (_, means) in rows.items():
            scalars |= {f'{degradation}/{name}': value for name, value in means.items()}
        path = folder / f'validation_{dataset_name}.csv'
        write_validation_csv(results, rows, path, str(current_iter))
        if self.val_opt.get('trace'):
            path = folder / f'stage_psnr_{dataset_name}.csv'
            stages = write_stage_psnr(results, path, str(current_iter))
            for k, (hat, tilde, x) in enumerate(stages, start=1):
                lines.append(f'\t   stage {k}\tx_hat {hat:.2f} dB, x_tilde {tilde:.2f}, x {x:.2f}')
                scalars[f'stage_{k}/{self.metric_prefix}psnr'] = x
        if not scalars:
            lines.append('\t no metrics: val.metrics is empty or the images have no ground truth')
        get_root_logger().info('\n'.join(lines))
        if tb_logger is not None:
            for name, value in scalars.items():
                tb_logger.add_scalar(f'metrics/{dataset_name}/{name}', value, current_iter)
