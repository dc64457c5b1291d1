"""Validation: images restored and measured on all ranks, and what is said about them.

Every rank restores the images ``rank, rank + world_size, ...``; the values of the single images
are gathered and averaged in the order of the data set, so the mean on any number of ranks is the
mean on one, to the last bit. Images are taken from the data set by index, one at a time (BasicSR's
loaders do the same), which draws nothing from the global random generators.
"""

from collections.abc import Callable, Mapping
from math import inf, log10, nan
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from basicsr.utils import get_root_logger, tensor2img
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from unfoldldm_basicsr.common.errors import DataFault, together, writing
from unfoldldm_basicsr.common.files import write_bytes_atomic
from unfoldldm_basicsr.data.loading import ItemReader, preserved_rng
from unfoldldm_basicsr.metrics.calculate import calculate_metric
from unfoldldm_basicsr.options.declared import needs_truth
from unfoldldm_basicsr.training import validation_report as tables
from unfoldldm_basicsr.training.batches import Batch, to_device
from unfoldldm_basicsr.training.interruption import stop_request
from unfoldldm_basicsr.training.networks import Restored
from unfoldldm_basicsr.training.validation_report import SavedImages, image_name

PANEL_HEIGHT = 256  # pixels; larger images are reduced


class Evaluator:
    """Restores, measures and reports validation sets; knows nothing of the model behind.

    Args:
        extras: (data set, index, batch) -> further entries of the batch of an item.
        measure: (restored, batch, result) -> adds to the result; :meth:`measure_image` by default.
        prefix: put before the name of every metric, in the log and in TensorBoard.
        note: said with every validation.

    Attributes:
        best: best value of every metric of every data set, as BasicSR keeps them.
        panels: the first ``logger.tb_images`` images of a validation, until they are written.
    """

    def __init__(
        self,
        opt: Mapping[str, Any],
        device: torch.device,
        restore: Callable[[Batch], Restored],
        *,
        extras: Callable[[Dataset, int, Batch], Batch] = lambda *_: {},
        measure: Callable[[Restored, Batch, tables.ImageResult], None] | None = None,
        prefix: str = '',
        note: str = '',
    ):
        self.opt, self.device, self.restore, self.extras = opt, device, restore, extras
        self.measure = measure or self.measure_image
        self.prefix, self.note = prefix, note
        self.val, logger = opt.get('val') or {}, opt.get('logger') or {}
        shows = opt.get('is_train') and opt.get('rank', 0) == 0 and logger.get('use_tb_logger')
        self.panels: dict[str, Tensor] = {}
        self.panel_count = logger.get('tb_images', 2) if shows else 0
        self.metrics = self.val.get('metrics') or {}
        self.best: dict[str, dict[str, dict[str, Any]]] = {}

    def evaluate(
        self, dataloader: DataLoader, label: str, save_img: bool
    ) -> list[tables.ImageResult]:
        """Restores and measures a data set; every rank returns the results of all images in order.

        ``label`` is the iteration or the name of the experiment, for the names of saved images.
        When a signal asks a training to stop, some images are left out.

        Raises:
            DataFault: an image cannot be read, or takes longer than the ``timeout`` of its section.
            OutputWriteError: a restored image cannot be written.
            RunFailure: the same on several ranks, met by any of them.
        """
        parts = together(self.opt, lambda: self._evaluate_share(dataloader, label, save_img))
        results = [result for part in parts for result in part]
        return sorted(results, key=lambda result: result.index)

    def _evaluate_share(
        self, loader: DataLoader, label: str, save_img: bool
    ) -> list[tables.ImageResult]:
        dataset, rank = loader.dataset, self.opt['rank']
        options = getattr(dataset, 'opt', {})
        indices = range(rank, len(dataset), self.opt['world_size'])
        bar = tqdm(indices, unit='image', disable=rank != 0 or not self.val.get('pbar', False))
        reader = ItemReader(dataset, {'phase': 'val', **options})
        files = SavedImages(self.opt, dataset, label) if save_img else None
        results = []
        with preserved_rng():
            for index in bar:
                if self.opt.get('is_train') and stop_request.signum:
                    break
                batch = loader.collate_fn([reader.read(index)])
                batch = to_device(batch | self.extras(dataset, index, batch), self.device)
                restored = self.restore(batch)
                name = image_name(batch['lq_path'][0], options)
                degradation = batch.get('degradation_name', [None])[0]
                result = tables.ImageResult(index, name, degradation)
                bar.set_description(f'Test {name}')
                self.measure(restored, batch, result)
                if len(self.panels) < self.panel_count and restored.output.ndim == 4:  # no scores
                    self.panels[name] = panel(batch, restored)
                if files is not None:
                    path = files.path(index, name, degradation)
                    with writing(path):
                        picture = cv2.imencode('.png', _image(restored.output))[1]
                        write_bytes_atomic(path, picture.tobytes())
                results.append(result)
        return results

    def measure_image(self, restored: Restored, batch: Batch, result: tables.ImageResult) -> None:
        gt, finite = batch.get('gt'), bool(torch.isfinite(restored.output).all())
        if not finite:
            get_root_logger().error(f'Validation: the output for {result.name} is not finite.')
        rounded = self.val.get('use_image', True)
        with_truth = gt is not None and any(needs_truth(o['type']) for o in self.metrics.values())
        if with_truth and gt.shape[-2:] != restored.output.shape[-2:]:
            files = ', '.join(batch[key][0] for key in ('lq_path', 'gt_path') if key in batch)
            result_is, truth_is = (f'{it.shape[-1]}x{it.shape[-2]}' for it in (restored.output, gt))
            raise DataFault(
                f'{files}: the result is {result_is} (width x height), the truth {truth_is}: no '
                'metric compares them. Crop or remove this pair.'
            )
        tensors = {'img': restored.output} if gt is None else {'img': restored.output, 'img2': gt}
        as_array = _image if rounded else _unrounded
        images = {key: as_array(image) for key, image in tensors.items() if self.metrics}
        for name, options in self.metrics.items():
            if gt is None and needs_truth(options['type']):
                continue
            value = float(calculate_metric(images, options, rounded=rounded)) if finite else nan
            result.metrics[self.prefix + name] = value
        if restored.trace is not None and gt is not None:
            for stage in restored.trace.stages:
                images = stage.x_hat, stage.x_tilde, stage.x
                result.stages.append(tuple(_float_psnr(image[: len(gt)], gt) for image in images))

    def update_best(self, dataset: str, means: Mapping[str, float], iteration: int) -> list[str]:
        """Takes the means of a validation; returns the metrics that are the best so far.

        An undefined value compares as neither higher nor lower, so it is never the best.
        """
        records, improved = self.best.setdefault(dataset, {}), []
        for name, value in means.items():
            better = self.metrics.get(name.removeprefix(self.prefix), {}).get('better', 'higher')
            worst = -inf if better == 'higher' else inf
            record = records.setdefault(name, {'better': better, 'val': worst, 'iter': -1})
            if value >= record['val'] if better == 'higher' else value <= record['val']:
                record.update(val=value, iter=iteration)
                improved.append(name)
        return improved

    def report(
        self, dataset: str, results: list[tables.ImageResult], iteration: int | str, tb_logger: Any
    ) -> None:
        """Writes the means of a validation to the log, CSV files and TensorBoard."""
        for sentence in tables.unusual_values(results):
            get_root_logger().warning(sentence)
        lines, scalars = [f'Validation {dataset}{self.note}'], tables.averages(results)
        for name, value in scalars.items():
            line = f'\t # {name}: {value:.4f}'
            if dataset in self.best:
                best = self.best[dataset][name]
                line += f'\tBest: {best["val"]:.4f} @ {best["iter"]} iter'
            lines.append(line)
        rows, folder = tables.degradation_rows(results), Path(self.opt['path']['log'])
        lines += [f'\t   {line}' for line in tables.table_lines(rows)]
        for degradation, (_, means) in rows.items():
            scalars |= {f'{degradation}/{name}': value for name, value in means.items()}
        tables.write_validation_csv(results, folder / f'validation_{dataset}.csv', str(iteration))
        path = folder / f'stage_psnr_{dataset}.csv'
        for k, means in enumerate(tables.write_stage_psnr(results, path, str(iteration)), start=1):
            hat, tilde, x = means
            lines.append(f'\t   stage {k}\tx_hat {hat:.2f} dB, x_tilde {tilde:.2f}, x {x:.2f}')
            scalars[f'stage_{k}/{self.prefix}psnr'] = x
        if not scalars:
            lines.append('\t no metrics: val.metrics is empty or the images have no ground truth')
        get_root_logger().info('\n'.join(lines))
        if tb_logger is not None:
            for name, value in scalars.items():
                tb_logger.add_scalar(f'metrics/{dataset}/{name}', value, iteration)
            for name, picture in self.panels.items():
                tag = f'images/{dataset}/{name}'.encode(errors='backslashreplace').decode()
                tb_logger.add_image(tag, picture, iteration)
        self.panels.clear()


def _image(batch: Tensor):
    """(1, c, H, W) in [0, 1] -> uint8 HWC, BGR."""
    return tensor2img([batch.detach().cpu()])


def _unrounded(batch: Tensor) -> np.ndarray:
    """The same as floats in 0..255, neither rounded nor clipped."""
    return batch[0].detach().cpu().double().numpy()[::-1].transpose(1, 2, 0) * 255


def _float_psnr(image: Tensor, gt: Tensor) -> float:
    """PSNR in dB of RGB in [0, 1], clamped, not rounded to 8 bits, no border cut."""
    mse = (image.clamp(0, 1).double() - gt.double()).square().mean().item()
    return inf if mse == 0 else -10 * log10(mse)


def panel(batch: Batch, restored: Restored) -> Tensor:
    """Input, stages where they are traced, output and truth as one image (3, h, w) in [0, 1]."""
    stages = () if restored.trace is None else restored.trace.stages[:-1]
    images = [batch['lq'], *(stage.x for stage in stages), restored.output]
    images += [batch['gt']] if 'gt' in batch else []
    height, width = images[0].shape[-2:]
    size = PANEL_HEIGHT, max(1, round(width * PANEL_HEIGHT / height))
    parts = []
    for image in images:  # of several views the first
        part = image[:1, :3] if image.shape[1] >= 3 else image[:1, :1].expand(-1, 3, -1, -1)
        part = part[..., :height, :width].detach().float().cpu().clamp(0, 1)
        parts.append(F.interpolate(part, size, mode='area') if height > PANEL_HEIGHT else part)
    return torch.cat(parts, -1)[0]
