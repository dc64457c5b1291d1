"""Fine-tuning of CLIP's adapters: which degradation does an image have?

    L = CE(A_image(CLIP_image(lq)) . A_text(CLIP_text(texts))^T, degradation)

arXiv 2503.16930, section 3, and the released notebook. CLIP itself is frozen; the image embedding
is the vector that steers VLU-Net.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn
from torch.nn import functional as F

from unfoldldm_basicsr.common.declaration import Problem, Problems
from unfoldldm_basicsr.common.errors import writing
from unfoldldm_basicsr.models.vlunet_model import class_order_fault
from unfoldldm_basicsr.models.vlunet_options import class_order, same_order
from unfoldldm_basicsr.options.run import Run, section_values
from unfoldldm_basicsr.training.batches import Batch
from unfoldldm_basicsr.training.evaluation import Evaluator
from unfoldldm_basicsr.training.networks import Restored
from unfoldldm_basicsr.training.optimisation import Groups
from unfoldldm_basicsr.training.options import RULES, forward_inputs, something_is_trained
from unfoldldm_basicsr.training.restoration_model import RestorationModel
from unfoldldm_basicsr.training.step import Losses
from unfoldldm_basicsr.training.validation_report import ImageResult
from unfoldldm_basicsr.weights.checkpoint import DEGRADATION_KEY, CheckpointError, read_checkpoint
from unfoldldm_basicsr.weights.conditioning import degradation_meta, read_record

# ---- what must fit together ---------------------------------------------------------------------


def network_tells_apart(run: Run) -> Problems:
    """A network that compares images with one text per degradation."""
    network, inputs = run.network_sections['network_g'], forward_inputs(run)
    if inputs and 'return_logits' not in inputs:
        message = f'{network["type"]} compares no images with texts; '
        yield Problem('network_g.type', f'{message}CLIPDegradationEmbedding does.')
        return
    if run.is_train and network.get('tune_adapters') is not True:
        message = 'must be true: only the adapters are trained.'
        yield Problem('network_g.tune_adapters', message)
    texts, names = network.get('class_texts'), class_order(run)
    if not isinstance(texts, list | tuple):
        message = 'is missing: one text per degradation, in the order of degradation_names.'
        yield Problem('network_g.class_texts', message)
    elif names and len(texts) != len(names):
        listed = f'{", ".join(names)}, in this order (datasets: degradation_names).'
        message = f'has {len(texts)} texts for {len(names)} degradations: write one for each of '
        yield Problem('network_g.class_texts', f'{message}{listed}')


def nothing_is_restored(run: Run) -> Problems:
    """Options of restoring models that a classifier cannot follow."""
    if run.is_train and run.train.mixing_augs is not None:
        yield Problem('train.mixing_augs', 'a blend of two degradations has no class; remove it.')
    if run.val.save_img:
        message = 'no image is restored; the confusion matrix is always written. Remove it.'
        yield Problem('val.save_img', message)
    for name in ('train.pixel_opt', 'train.perceptual_opt', 'val.metrics', 'val.tile'):
        section, _, key = name.partition('.')
        if section_values(run.opt, section).get(key):
            message = 'nothing comes of it: images are told apart, not restored. Remove it.'
            yield Problem(name, message, 'warning')


@MODEL_REGISTRY.register()
class DegradationCLIPModel(RestorationModel):
    """Tunes the adapters of CLIPDegradationEmbedding by telling degradations apart.

    Any data set with ``degradation_names`` will do; of its items only ``lq`` and the degradation
    are used. ``network_g.class_texts`` holds one text per degradation, in the same order.
    Validation reports the accuracy in all and per degradation, and writes the confusion matrix as
    picture and CSV: ``visualization/DATASET/confusion_ITERATION.*`` of a training,
    ``visualization/DATASET/confusion_SUFFIX.*`` of a test. The weights, ``net_g_*.pth``, are what
    VLUNetModel takes as ``path.pretrain_network_e``.
    """

    rules = (
        *(rule for rule in RULES if rule is not something_is_trained),
        network_tells_apart,
        partial(same_order, needed=True),
        nothing_is_restored,
    )

    @classmethod
    def trained_groups(cls, networks: dict[str, nn.Module]) -> Groups:
        return {'adapters': super().trained_groups(networks)['restoration']}

    def load_initial_weights(self, net: nn.Module) -> None:
        self.degradation_names = names = class_order(self.run)
        super().load_initial_weights(net)
        file, texts = self.run.path.pretrain_network_g, self.opt['network_g']['class_texts']
        pairs = enumerate(zip(names, texts, strict=True))
        lines = ''.join(f'\n\t{index} {name}: {text!r}' for index, (name, text) in pairs)
        get_root_logger().info(f'Degradations and their texts:{lines}')
        record = read_record(read_checkpoint(file)) if file else None
        fault = record and class_order_fault(record.classes, names, needs_label=True)
        if fault:
            raise CheckpointError(f'path.pretrain_network_g: {file}: {fault}')

    def init_losses(self) -> None:
        """Nothing to build: cross-entropy has no options."""

    def compute_losses(self, batch: Batch, current_iter: int) -> tuple[Losses, Losses]:
        with self.autocast():
            logits = self.net_g(batch['lq'], return_logits=True).logits
        labels = batch['degradation']
        accuracy = (logits.argmax(1) == labels).float().mean()
        return {'l_clip': F.cross_entropy(logits, labels)}, {'accuracy': accuracy}

    def build_evaluator(self, **settings: Any) -> Evaluator:
        return super().build_evaluator(measure=self.measure, **settings)

    def restore_with(self, net: nn.Module, batch: Batch) -> Restored:
        """The scores (B, N) of the degradations stand in for a restored image."""
        return Restored(net(batch['lq'], return_logits=True).logits)

    def measure(self, restored: Restored, batch: Batch, result: ImageResult) -> None:
        """Notes which degradation the image was taken for, and whether that is right."""
        scores = restored.output[0]
        if not torch.isfinite(scores).all():
            get_root_logger().error(f'Validation: the scores of {result.name} are not finite.')
            result.metrics['accuracy'] = math.nan
            return
        result.predicted = self.degradation_names[int(scores.argmax())]
        result.metrics['accuracy'] = float(result.predicted == result.degradation)

    def report(
        self, dataset: str, results: list[ImageResult], current_iter: int | str, tb_logger: Any
    ) -> None:
        from unfoldldm_basicsr.pictures import confusion, drawing  # which load matplotlib

        super().report(dataset, results, current_iter, tb_logger)
        names = self.degradation_names
        counts = np.zeros((len(names), len(names)), np.int64)
        for result in results:
            if result.predicted:
                counts[names.index(result.degradation), names.index(result.predicted)] += 1
        label = current_iter if self.is_train else self.run.val.suffix or self.opt['name']
        folder = Path(self.opt['path']['visualization']) / dataset
        right, items = int(counts.trace()), int(counts.sum())
        title = f'{right} of {items} right ({100 * right / max(1, items):.1f} %)'
        when = f'iteration {label}' if self.is_train else str(label)
        about = f'{dataset}, {when}; cells: images, share of row'
        file = folder / f'confusion_{label}.csv'
        with writing(file):
            confusion.write_confusion_csv(counts, names, file)
        file = file.with_suffix('.png')
        with writing(file):
            drawing.save_picture(file, confusion.confusion_picture(counts, names, title, about))
        get_root_logger().info(f'Confusion matrix: {file}')

    def checkpoint_extras(self) -> dict[str, Any]:
        """The record that conditioned networks keep of their embedding, here of itself."""
        network = {**self.opt['network_g'], 'tune_adapters': False}
        meta = degradation_meta(self.degradation_names, network, **self.network.states())
        return {DEGRADATION_KEY: meta}
