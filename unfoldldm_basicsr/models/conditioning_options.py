"""Options of models whose network is steered by a degradation vector, and their checks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY

from unfoldldm_basicsr.common.suggest import did_you_mean
from unfoldldm_basicsr.training.model_options import (
    OPTIONAL,
    OptionKeys,
    Problems,
    is_training,
    section_of,
)
from unfoldldm_basicsr.weights.checkpoint import CheckpointError, read_checkpoint

WRONG = 'wrong'
NO_EMBEDDING = (
    'holds no degradation embedding, so the test would steer the network with random vectors. Name '
    "the embedding's weights in path.pretrain_network_e."
)

CONDITIONING_OPTION_KEYS: OptionKeys = {
    '': {
        'network_e': (
            (dict,),
            'degradation embedding: CLIP-, Label- or LearnedDegradationEmbedding and its arguments',
        ),
    },
    'path': {
        'pretrain_network_e': (
            (str, OPTIONAL),
            'weights of network_e: net_g_*.pth of DegradationCLIPModel or net_e_*.pth',
        ),
        'param_key_e': ((str, OPTIONAL), 'which weights of that file: params or params_ema'),
    },
    'val': {
        'degradation_override': (
            (str, OPTIONAL),
            "restore with the vector of another degradation: its name, or 'wrong' for the next one",
        ),
    },
}


def embedding_classes() -> dict[str, type]:
    """Registered networks with the interface ``embedding(lq, label) -> (B, embed_dim)``."""
    return {
        name: cls
        for name, cls in ARCH_REGISTRY
        if inspect.isclass(cls)
        and list(inspect.signature(cls.forward).parameters)[2:3] == ['label']
    }


def class_order(opt: Mapping[str, Any]) -> list[str]:
    """``degradation_names`` of the data, the training set's first; empty where none has any."""
    for _, dataset in _datasets(opt):
        if isinstance(dataset.get('degradation_names'), list):
            return [str(name) for name in dataset['degradation_names']]
    return []


def _datasets(opt: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    found = [(str(k), v) for k, v in section_of(opt, 'datasets').items() if isinstance(v, Mapping)]
    return sorted(found, key=lambda pair: pair[0] != 'train')


def check_tested_embedding(opt: Mapping[str, Any]) -> Problems:
    """Whether a test knows the vectors that its network was trained with, as (key path, message).

    Files that are missing or damaged are for other checks to name.
    """
    path = section_of(opt, 'path')
    weights = path.get('pretrain_network_g')
    if is_training(opt) or path.get('pretrain_network_e') or not isinstance(weights, str):
        return []
    file = Path(weights).expanduser()
    try:
        known = not file.is_file() or read_checkpoint(file).degradation is not None
    except CheckpointError:
        known = True
    return [] if known else [('path.pretrain_network_g', f'{weights}: {NO_EMBEDDING}')]


def check_conditioning(opt: Mapping[str, Any]) -> Problems:
    """Problems of ``network_e`` and what belongs to it, as (key path, message)."""
    section = opt.get('network_e')
    if not isinstance(section, Mapping) or 'type' not in section:
        message = 'is missing: type and arguments of the degradation embedding, one of '
        return [('network_e', message + ', '.join(sorted(embedding_classes())) + '.')]
    kind, known = section['type'], embedding_classes()
    if kind not in known:
        hint = did_you_mean(kind, sorted(known))
        return [('network_e.type', f"'{kind}' is no degradation embedding.{hint}")]
    problems: Problems = []
    if section.get('tune_adapters'):
        problems.append(
            (
                'network_e.tune_adapters',
                'the embedding is frozen here: tune the adapters with model_type: '
                'DegradationCLIPModel and name its weights in path.pretrain_network_e.',
            )
        )
    names = class_order(opt)
    problems += _check_order(opt, names, getattr(known[kind], 'needs_label', False))
    count = section.get('num_degradations')
    if names and count is not None and count != len(names):
        problems.append(
            (
                'network_e.num_degradations',
                f'is {count}, but degradation_names lists {len(names)}: {", ".join(names)}.',
            )
        )
    if section_of(section_of(opt, 'train'), 'mixing_augs').get('mixup'):
        problems.append(
            ('train.mixing_augs.mixup', 'would blend images of different degradations; remove it.')
        )
    return problems + _check_override(opt, names)


def _check_order(opt: Mapping[str, Any], names: Sequence[str], needed: bool) -> Problems:
    problems = []
    for phase, dataset in _datasets(opt):
        place, own = f'datasets.{phase}.degradation_names', dataset.get('degradation_names')
        if own is None and needed:
            problems.append(
                (place, 'is missing: the vectors of a label embedding follow this order of names.')
            )
        elif isinstance(own, list) and own != names:
            problems.append(
                (
                    place,
                    f'{own} differs from {list(names)} of the other data: indices would mix up.',
                )
            )
    return problems


def _check_override(opt: Mapping[str, Any], names: Sequence[str]) -> Problems:
    choice = section_of(opt, 'val').get('degradation_override')
    if choice is None:
        return []
    if len(names) < 2:
        message = 'needs data with at least two degradation_names.'
    elif choice not in (WRONG, *names):
        message = f"'{choice}' is no degradation.{did_you_mean(choice, (WRONG, *names))}"
    else:
        return []
    return [('val.degradation_override', message)]


def class_order_fault(
    stored: Sequence[str], current: Sequence[str], needs_label: bool
) -> str | None:
    """Why weights trained with one order of degradations do not go with another.

    Label embeddings need the same list. The others may gain or lose degradations, as the vector
    comes from the image, but what both lists name must stand in the same order.

    Args:
        stored: order of the weights; empty where it is unknown.
        current: order of the data; empty where they have none.
        needs_label: whether the embedding goes by the index.

    Returns:
        A sentence, or None if they agree.
    """
    if not stored or not current or list(stored) == list(current):
        return None
    then, now = ([n for n in a if n in b] for a, b in ((stored, current), (current, stored)))
    if not needs_label and then == now:
        return None
    return (
        f'the weights were trained with degradation_names: [{", ".join(stored)}], the data have '
        f'[{", ".join(current)}]; write the same names in the same order.'
    )
