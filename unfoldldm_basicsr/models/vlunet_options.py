"""Options of the models that a degradation vector steers, and what must fit together in them."""

import inspect
from collections.abc import Mapping
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY

from unfoldldm_basicsr.common.contract import contract_of, image_channels
from unfoldldm_basicsr.common.declaration import Problem, Problems
from unfoldldm_basicsr.common.registration import KNOWN, registered, whose
from unfoldldm_basicsr.common.sections import BasicPath
from unfoldldm_basicsr.common.suggest import did_you_mean
from unfoldldm_basicsr.options.run import Run
from unfoldldm_basicsr.training.options import TopOptions, ValOptions

WRONG = 'wrong'  # val.degradation_override: the next one
EMBEDDINGS = (
    'CLIPDegradationEmbedding', 'LabelDegradationEmbedding', 'LearnedDegradationEmbedding',
)  # fmt: skip


class ConditionedTop(TopOptions):
    """The top level of an option file."""

    network_e: dict[str, Any]
    """CLIPDegradationEmbedding, LabelDegradationEmbedding or LearnedDegradationEmbedding."""


class ConditionedPath(BasicPath):
    """``path``."""

    pretrain_network_e: str | None = None
    """Weights of network_e: net_g_*.pth of DegradationCLIPModel or net_e_*.pth."""
    param_key_e: str | None = None
    """Which weights of that file: params or params_ema."""


class ConditionedVal(ValOptions):
    """``val``."""

    degradation_override: str | None = None
    """Restore with the vector of another degradation: its name, or 'wrong' for the next one."""


def class_order(run: Run) -> list[str]:
    """``degradation_names`` of the data, the training set's first; empty where none has any."""
    sets = sorted(run.sets(), key=lambda item: item[0] != 'datasets.train')
    orders = (section.get('degradation_names') for _, section in sets)
    return [str(name) for name in next((o for o in orders if isinstance(o, list)), ())]


def embedding_fits(run: Run) -> Problems:
    """``network_e`` and what belongs to it."""
    section, names = run.top.network_e, class_order(run)
    cls = registered(ARCH_REGISTRY, section.get('type'))
    forward = getattr(cls, 'forward', None)
    if forward is None or 'label' not in inspect.signature(forward).parameters:
        hint = did_you_mean(section.get('type'), EMBEDDINGS)
        message = f"'{section.get('type')}' is no degradation embedding.{hint}"
        yield Problem('network_e.type', message)
        return
    if section.get('tune_adapters'):
        yield Problem(
            'network_e.tune_adapters',
            'the embedding is frozen here: tune the adapters with model_type: '
            'DegradationCLIPModel and name its weights in path.pretrain_network_e.',
        )
    count = section.get('num_degradations')
    if names and count is not None and count != len(names):
        message = f'is {count}, but degradation_names lists {len(names)}: {", ".join(names)}.'
        yield Problem('network_e.num_degradations', message)
    if run.is_train and run.train.mixing_augs is not None and run.train.mixing_augs.mixup:
        message = 'would blend images of different degradations; remove it.'
        yield Problem('train.mixing_augs.mixup', message)
    if run.is_train and run.train.use_cuda_graphs:
        message = 'is not possible with network_e, which looks at the names in every batch.'
        yield Problem('train.use_cuda_graphs', message)
    yield from same_order(run, needed=contract_of(cls).needs_label)
    choice = run.val.degradation_override
    if choice is not None and len(names) < 2:
        message = 'needs data with at least two degradation_names.'
        yield Problem('val.degradation_override', message)
    elif choice is not None and choice not in (WRONG, *names):
        message = f"'{choice}' is no degradation.{did_you_mean(choice, (WRONG, *names))}"
        yield Problem('val.degradation_override', message)


def networks_fit_together(run: Run) -> Problems:
    """``network_e`` must give the vectors that ``network_g`` takes."""
    net, embedding = run.networks.get('network_g'), run.networks.get('network_e')
    if net is None or embedding is None:
        return
    given, taken = contract_of(embedding).embed_dim, contract_of(net).embed_dim
    if None not in (given, taken) and given != taken:
        message = f'is {taken}, but network_e gives vectors of {given} numbers: set it to {given}.'
        yield Problem('network_g.embed_dim', message)
    wanted, own = (
        image_channels(type(network), section)
        for network, section in ((net, run.top.network_g), (embedding, run.top.network_e))
    )
    ours = all(whose(type(network)) in KNOWN for network in (net, embedding))
    looks = 'in_channels' in inspect.signature(type(embedding)).parameters
    if ours and looks and own != wanted:
        message = f'is {own}, but network_g takes images of {wanted} channels: set it to {wanted}.'
        yield Problem('network_e.in_channels', message)


def same_order(run: Run, *, needed: bool) -> Problems:
    """The order of the degradations must be the same in all data; ``needed``: must be there."""
    names = class_order(run)
    for path, section in run.sets():
        place, own = f'{path}.degradation_names', section.get('degradation_names')
        if own is None and needed:
            message = 'is missing: the vectors of a label embedding follow this order of names.'
            yield Problem(place, message)
        elif isinstance(own, list) and own != names:
            message = f'{own} differs from {names} of the other data: indices would mix up.'
            yield Problem(place, message)
        elif isinstance(own, list) and path == 'datasets.train':
            parts = section['sets'] if isinstance(section.get('sets'), list) else [section]
            shown = [part.get('degradation_name') for part in parts if isinstance(part, Mapping)]
            unseen = [name for name in names if name not in shown]
            if shown and all(name in names for name in shown) and unseen:
                message = f'no image shows {", ".join(unseen)}: nothing will be learned about it.'
                yield Problem(place, message, 'warning')
