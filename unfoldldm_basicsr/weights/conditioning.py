"""The degradation vector that a network is steered by, from the same file as its weights.

A file of such a network (VLU-Net) holds one key more than others::

    'degradation': {'classes': ['noise15', ...],       # names in the order of their indices
                    'embedding': {'type': 'CLIPDegradationEmbedding', 'kwargs': {...},
                                  'params': state_dict, 'params_ema': state_dict}}

A CLIP backbone that came from a tag or a file (``kwargs['pretrained']``) is not in it and is had
again from there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfoldldm_basicsr.common.contract import contract_of
from unfoldldm_basicsr.common.suggest import nearest
from unfoldldm_basicsr.weights import checkpoint as files
from unfoldldm_basicsr.weights.networks import build_network

AUTO = 'auto'


def degradation_meta(
    classes: Sequence[str], network_opt: Mapping[str, Any], **states: Mapping[str, Tensor]
) -> dict[str, Any]:
    """What to store under :data:`DEGRADATION_KEY`: options of the embedding, and its ``params``
    and perhaps ``params_ema``.
    """
    meta = files.network_meta(network_opt)
    del meta['version']
    return {'classes': [str(name) for name in classes], 'embedding': {**meta, **states}}


def read_record(checkpoint: files.Checkpoint) -> files.Checkpoint | None:
    """The embedding of a checkpoint with the names of its degradations, None if its network needs
    none; CheckpointError if damaged.
    """
    content, path = checkpoint.degradation, checkpoint.path
    if content is None:
        return None
    content = content if isinstance(content, Mapping) else {}
    embedding, classes = content.get('embedding'), content.get('classes')
    named = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
    held = isinstance(embedding, Mapping) and files.is_state_dict(embedding.get('params'))
    if not named or not held:
        raise files.CheckpointError(
            f"{path}: what it holds under '{files.DEGRADATION_KEY}' is not"
            f" {{'classes': [names], 'embedding': {{'type', 'kwargs', 'params'}}}}."
        )
    state_dict = embedding['params']
    if checkpoint.param_key == 'params_ema' and files.is_state_dict(embedding.get('params_ema')):
        state_dict = embedding['params_ema']
    files.check_finite(path, state_dict)
    meta = files.checked_meta(path, embedding)
    key = files.DEGRADATION_KEY
    return files.Checkpoint(path, key, dict(state_dict), meta, classes=tuple(classes))


class Conditioning(nn.Module):
    """Degradation vectors for images.

    Args:
        embedding: a degradation embedding: ``embedding(lq, label) -> (B, E)``.
        classes: names of the degradations in the order of their indices.
        degradation: 'auto' where the embedding looks at the image; else a name or an index, kept as
            ``label``. ValueError for a choice that this embedding does not have.
    """

    def __init__(
        self, embedding: nn.Module, classes: Sequence[str], degradation: str | int = AUTO
    ) -> None:
        super().__init__()
        self.embedding, self.classes = embedding, tuple(classes)
        self.label = _label(embedding, self.classes, str(degradation))

    @torch.no_grad()
    def forward(self, lq: Tensor) -> Tensor:
        """Vectors (B, E) of whole images (B, 3, H, W), RGB in [0, 1], on the embedding's device."""
        label = None
        if self.label is not None:
            label = torch.full((len(lq),), self.label, device=lq.device)
        return self.embedding(lq, label)


def _label(embedding: nn.Module, names: tuple[str, ...], degradation: str) -> int | None:
    kind = type(embedding).__name__
    if not contract_of(embedding).needs_label:
        if degradation == AUTO:
            return None
        raise ValueError(
            f'--degradation {degradation}: these weights ({kind}) tell the degradation from the'
            f" image; leave the option out or at 'auto'."
        )
    indices = {name: index for index, name in enumerate(names)}
    choices = {str(index): index for index in indices.values()} | indices
    if degradation not in choices:
        known = ', '.join(f'{name} ({index})' for name, index in indices.items())
        raise ValueError(
            f'--degradation {degradation}: these weights ({kind}) must be told the degradation, one'
            f' of: {known}.{"" if degradation == AUTO else nearest(degradation, names)}'
        )
    return choices[degradation]


def build_conditioning(
    checkpoint: files.Checkpoint,
    *,
    degradation: str | int = AUTO,
    clip_weights: str | Path | None = None,
) -> Conditioning:
    """The degradation vectors that belong to a checkpoint of a conditioned network.

    A CLIP backbone that is not in the file comes from ``clip_weights`` (tag or file).

    Raises:
        CheckpointError: nothing says where the vectors come from, the embedding is unknown, its
            weights do not fit, or its CLIP backbone cannot be had.
        ValueError: see :class:`Conditioning`.
    """
    record = read_record(checkpoint)
    if record is None:
        raise files.CheckpointError(
            f'{checkpoint.path}: the network needs a degradation vector, but the file has no'
            f" '{files.DEGRADATION_KEY}' that says where it comes from. Files of training runs"
            f' have it, and those of unfoldldm convert where the source does. Else a test file'
            f' names it in path.pretrain_network_e; in Python, pass degradation=vector to restore.'
        )
    if clip_weights is not None:
        kind, kwargs = record.arch['type'], record.arch['kwargs']
        if kwargs.get('pretrained') is None:
            raise files.CheckpointError(
                f'{record.path}: holds all that its degradation vectors need ({kind});'
                f' leave out --clip-weights.'
            )
        kwargs = {**kwargs, 'pretrained': str(clip_weights)}
        record = replace(record, arch={**record.arch, 'kwargs': kwargs})
    try:
        embedding, _ = build_network(record)
    except files.CheckpointError:
        raise
    except (FileNotFoundError, ValueError) as error:
        raise files.CheckpointError(
            f'{record.path}: its degradation vectors come from CLIP weights that are not in the'
            f' file. {error} Weights on this disk are given with --clip-weights FILE.'
        ) from error
    return Conditioning(embedding, record.classes, degradation)
