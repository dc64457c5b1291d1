"""Fine-tuning of CLIP's adapters: which degradation does an image have?

    L = CE(A_image(CLIP_image(lq)) . A_text(CLIP_text(texts))^T, degradation)

arXiv 2503.16930, section 3, and the released notebook. CLIP itself is frozen; the image embedding
is the vector that steers VLU-Net.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from unfoldldm_basicsr.common.errors import writing
from unfoldldm_basicsr.common.registration import register
from unfoldldm_basicsr.models.conditioning_options import class_order, class_order_fault
from unfoldldm_basicsr.pictures.confusion import (
    confusion_matrix,
    confusion_picture,
    write_confusion_csv,
)
from unfoldldm_basicsr.pictures.drawing import save_picture
from unfoldldm_basicsr.training.model_options import Problems, is_training, section_of
from unfoldldm_basicsr.training.optimisation import Groups
from unfoldldm_basicsr.training.restoration_model import Losses, RestorationModel
from unfoldldm_basicsr.training.validation import ImageResult
from unfoldldm_basicsr.weights.checkpoint import (
    DEGRADATION_KEY,
    CheckpointError,
    read_checkpoint,
)
from unfoldldm_basicsr.weights.conditioning import degradation_meta, read_record

_WITHOUT_EFFECT = {
    'train': {
        'pixel_opt': 'the loss is the cross-entropy of the degradations',
        'perceptual_opt': 'the loss is the cross-entropy of the degradations',
        'mixing_augs': 'a blend of two degradations has no class',
    },
    'val': {
        'metrics': 'the accuracy is always measured',
        'save_img': 'no image is restored; the confusion matrix is always written',
        'tile': 'the whole image is classified',
    },
}


def check_classification(opt: Mapping[str, Any]) -> Problems:
    """Problems of the network, the classes and their texts, as (key path, message)."""
    network, names = section_of(opt, 'network_g'), class_order(opt)
    problems: Problems = []
    kind = dict(iter(ARCH_REGISTRY)).get(network.get('type'))
    if kind is not None and 'return_logits' not in inspect.signature(kind.forward).parameters:
        message = f'{network["type"]} compares no images with texts; CLIPDegradationEmbedding does.'
        return [('network_g.type', message)]
    if is_training(opt) and network.get('tune_adapters') is not True:
        problems.append(('network_g.tune_adapters', 'must be true: only the adapters are trained.'))
    problems += _check_classes(opt, names) + _check_texts(network, names)
    for section, reasons in _WITHOUT_EFFECT.items():
        for key, reason in reasons.items():
            if section_of(opt, section).get(key):
                problems.append((f'{section}.{key}', f'has no effect here ({reason}); remove it.'))
    return problems


def _check_classes(opt: Mapping[str, Any], names: list[str]) -> Problems:
    problems: Problems = []
    for phase, dataset in section_of(opt, 'datasets').items():
        place = f'datasets.{phase}.degradation_names'
        own = dataset.get('degradation_names') if isinstance(dataset, Mapping) else None
        if not isinstance(own, list):
            problems.append((place, 'is missing: the classes in the order of their indices.'))
        elif own != names:
            message = f'{own} differs from {names} of the other data: indices would mix up.'
            problems.append((place, message))
        elif len(own) < 2:
            problems.append((place, f'names {len(own)} class; there is nothing to tell apart.'))
    return problems


def _check_texts(network: Mapping[str, Any], names: list[str]) -> Problems:
    texts = network.get('class_texts')
    if not isinstance(texts, list | tuple):
        message = 'is missing: one text per degradation, in the order of degradation_names.'
    elif names and len(texts) != len(names):
        message = (
            f'has {len(texts)} texts for {len(names)} degradations: write one for each of '
            f'{", ".join(names)}, in this order (datasets: degradation_names).'
        )
    elif len(set(texts)) < len(texts):
        message = 'holds a text twice: two degradations with one text cannot be told apart.'
    else:
        return []
    return [('network_g.class_texts', message)]


@register(MODEL_REGISTRY)
class DegradationCLIPModel(RestorationModel):
    """Tunes the adapters of CLIPDegradationEmbedding by telling degradations apart.

    Any data set with ``degradation_names`` will do; of its items only ``lq`` and the degradation
    are used. ``network_g.class_texts`` holds one text per degradation, in the same order.
    Validation reports the accuracy in all and per degradation, and writes the confusion matrix as
    picture and CSV: ``visualization/DATASET/confusion_ITERATION.*`` of a training,
    ``visualization/DATASET/confusion_SUFFIX.*`` of a test. The weights, ``net_g_*.pth``, are what
    VLUNetModel takes as ``path.pretrain_network_e``.
    """

    def __init__(self, opt: dict[str, Any]):
        problems = check_classification(opt)
        if problems:
            raise ValueError(' '.join(f'{key}: {message}' for key, message in problems))
        self.degradation_names = class_order(opt)
        super().__init__(opt)

    @classmethod
    def check_options(cls, opt: Mapping[str, Any]) -> Problems:
        base = [(key, text) for key, text in super().check_options(opt) if key != 'train.pixel_opt']
        return base + check_classification(opt)

    @classmethod
    def trained_groups(cls, networks: Mapping[str, nn.Module]) -> Groups:
        return {'adapters': super().trained_groups(networks)['restoration']}

    def init_companions(self) -> None:
        super().init_companions()
        texts = self.opt['network_g']['class_texts']
        pairs = [
            f'\n\t{index} {name}: {text!r}'
            for index, (name, text) in enumerate(zip(self.degradation_names, texts, strict=True))
        ]
        get_root_logger().info(f'Degradations and their texts:{"".join(pairs)}')

    def load_initial_weights(self, net: nn.Module) -> None:
        super().load_initial_weights(net)
        file = self.opt['path'].get('pretrain_network_g')
        record = read_record(read_checkpoint(file)) if file else None
        if record is None:
            return
        fault = class_order_fault(record.classes, self.degradation_names, needs_label=True)
        if fault:
            raise CheckpointError(f'path.pretrain_network_g: {file}: {fault}')
        then, now = record.arch['kwargs']['class_texts'], self.opt['network_g']['class_texts']
        if list(then) != list(now):
            get_root_logger().warning(
                f'network_g.class_texts: {file} was trained with {list(then)}, not {list(now)}.'
            )

    def init_losses(self) -> None:
        """Nothing to build: cross-entropy has no options."""

    def compute_losses(self, batch: Mapping[str, Any], current_iter: int) -> tuple[Losses, Losses]:
        with self.autocast():
            logits = self.net_g(batch['lq'], return_logits=True).logits
        labels = batch['degradation']
        accuracy = (logits.argmax(1) == labels).float().mean()
        return {'l_clip': F.cross_entropy(logits, labels)}, {'accuracy': accuracy}

    # ---- validation ---------------------------------------------------------------------------

    def _restore(self, net: nn.Module) -> Tensor:
        """The scores (B, N) of the degradations stand in for a restored image."""
        self.trace = None
        return net(self.lq, return_logits=True).logits

    def measure(self, result: ImageResult) -> None:
        """Notes which degradation the image was taken for, and whether that is right."""
        if not torch.isfinite(self.output).all():
            get_root_logger().error(f'Validation: the scores of {result.name} are not finite.')
            result.metrics['accuracy'] = math.nan
            return
        result.predicted = self.degradation_names[int(self.output[0].argmax())]
        result.metrics['accuracy'] = float(result.predicted == result.degradation)

    def _log_validation(self, dataset_name: str, results, current_iter, tb_logger) -> None:
        super()._log_validation(dataset_name, results, current_iter, tb_logger)
        names = self.degradation_names
        pairs = [
            (names.index(r.degradation), names.index(r.predicted)) for r in results if r.predicted
        ]
        counts = confusion_matrix(pairs, len(names))
        label = current_iter if self.is_train else self.val_opt.get('suffix') or self.opt['name']
        folder = Path(self.opt['path']['visualization']) / dataset_name
        file = folder / f'confusion_{label}.csv'
        with writing(file):
            write_confusion_csv(counts, names, file)
        right, items = int(counts.trace()), int(counts.sum())
        title = f'{right} of {items} right ({100 * right / max(1, items):.1f} %)'
        when = f'iteration {label}' if self.is_train else str(label)
        picture = confusion_picture(
            counts, names, title, f'{dataset_name}, {when}; cells: images, share of row'
        )
        file = folder / f'confusion_{label}.png'
        with writing(file):
            save_picture(file, picture)
        get_root_logger().info(f'Confusion matrix: {file}')

    # ---- checkpoints --------------------------------------------------------------------------

    def checkpoint_extras(self, net_label: str) -> dict[str, Any]:
        """The record that conditioned networks keep of their embedding, here of itself."""
        extras = super().checkpoint_extras(net_label)
        states = {'params': self.get_bare_model(self.net_g).state_dict()}
        if hasattr(self, 'net_g_ema'):
            states['params_ema'] = self.net_g_ema.state_dict()
        network = {**self.opt['network_g'], 'tune_adapters': False}
        extras[DEGRADATION_KEY] = degradation_meta(self.degradation_names, network, **states)
        return extras
