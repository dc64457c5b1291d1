"""A degradation embedding beside the network, which steers it with one vector per image.

    d = E(lq, label),   output = net_g(lq, degradation=d)

``DegradationConditioning`` goes before a model in the list of bases. It owns ``net_e`` (the E of
the option ``network_e``), and is the same for every embedding: one that is trained jointly becomes
the parameter group 'embedding' of the model's optimiser, with clipping, averaging and
DistributedDataParallel of its own; any other is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from copy import deepcopy
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.utils import get_root_logger
from torch import Tensor, nn

from unfoldldm_basicsr.models.conditioning_options import (
    NO_EMBEDDING,
    check_conditioning,
    check_tested_embedding,
    class_order,
    class_order_fault,
)
from unfoldldm_basicsr.models.degradation_override import DegradationOverride
from unfoldldm_basicsr.training.checkpoint_writer import network_state
from unfoldldm_basicsr.training.ema import update_ema
from unfoldldm_basicsr.training.model_options import Problems
from unfoldldm_basicsr.training.optimisation import Groups
from unfoldldm_basicsr.weights.checkpoint import (
    DEGRADATION_KEY,
    CheckpointError,
    read_checkpoint,
)
from unfoldldm_basicsr.weights.conditioning import DegradationRecord, degradation_meta, read_record
from unfoldldm_basicsr.weights.loading import load_weights

GROUP = 'embedding'


class DegradationConditioning:
    """Mixin for models whose network takes ``degradation``, a vector (B, E) per image.

    ``net_e`` starts from ``path.pretrain_network_e``, else from the embedding in the file that the
    network itself starts from, else anew. It is saved as ``net_e_*.pth`` for resuming and, with
    the order of the degradations, in ``net_g_*.pth``, which therefore restores images alone.

    Attributes:
        embedding_may_train: False in a model (or phase) that keeps every embedding frozen.
    """

    network_inputs = ('degradation',)
    embedding_may_train = True

    def __init__(self, opt: dict[str, Any]):
        problems = check_conditioning(opt)
        if problems:
            raise ValueError(' '.join(f'{key}: {message}' for key, message in problems))
        self.degradation_names = class_order(opt)
        self.override: DegradationOverride | None = None
        self._stand_in: dict[str, Tensor] | None = None
        super().__init__(opt)
        choice = self.val_opt.get('degradation_override')
        if choice:
            needs_label = getattr(self.get_bare_model(self.net_e), 'needs_label', False)
            self.override = DegradationOverride(choice, self.degradation_names, needs_label)
            self.metric_prefix += self.override.metric_prefix
            self.validation_note += self.override.note

    @classmethod
    def check_options(cls, opt: Mapping[str, Any]) -> Problems:
        problems = super().check_options(opt) + check_conditioning(opt)
        return problems + check_tested_embedding(opt)

    @classmethod
    def trained_groups(cls, networks: Mapping[str, nn.Module]) -> Groups:
        """The network's groups, and the embedding's where it is trained jointly."""
        groups, net = super().trained_groups(networks), networks.get('network_e')
        if net is None or not (cls.embedding_may_train and getattr(net, 'trained_jointly', True)):
            return groups
        trained = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
        return {**groups, GROUP: trained} if trained else groups

    # ---- the embedding ------------------------------------------------------------------------

    def init_companions(self) -> None:
        super().init_companions()
        net = build_network(self.opt['network_e'])
        expected = self.get_bare_model(self.net_g).embed_dim
        if net.embed_dim != expected:
            raise ValueError(
                f'network_e gives vectors of {net.embed_dim} numbers, but network_g takes '
                f'{expected}: set network_g.embed_dim: {net.embed_dim}.'
            )
        bare = self.get_bare_model(self.net_g)
        groups = self.trained_groups({'network_g': bare, 'network_e': net})
        self.embedding_trained = self.is_train and GROUP in groups
        self._load_initial_embedding(net)
        if self.embedding_trained:
            self.groups = {**self.groups, GROUP: groups[GROUP]}
            self.net_e = self.model_to_device(net).train()
        else:
            self.net_e = net.requires_grad_(False).to(self.device).eval()
            self._equalise_ranks()
        get_root_logger().info(
            f'Degradation vectors: {type(net).__name__}, {net.embed_dim} numbers, '
            f'{"trained jointly" if self.embedding_trained else "frozen"}; degradations: '
            f'{", ".join(self.degradation_names) or "not named"}.'
        )

    def _equalise_ranks(self) -> None:
        """Random vectors differ from rank to rank; the wrapper of a trained network sees to it."""
        if self.opt['dist']:
            for tensor in self.net_e.state_dict().values():
                torch.distributed.broadcast(tensor, 0)

    def _load_initial_embedding(self, net: nn.Module) -> None:
        path = self.opt['path']
        kind = 'params' if self.embedding_trained else 'params_ema'
        source, record = path.get('pretrain_network_e'), self._stored_record(kind)
        if record is not None:
            self._check_record(net, record)
        if source:
            key = path.get('param_key_e')
            load_weights(net, source, key or kind, fallback=not key, label='e')
            if record is not None and not _equal(net.state_dict(), record.state_dict):
                get_root_logger().warning(
                    f'path.pretrain_network_e: {source} holds other degradation vectors than those '
                    'that the network of path.pretrain_network_g was trained with.'
                )
        elif record is not None:
            net.load_state_dict(record.state_dict)
        elif not self.is_train:
            raise ValueError(f'path.pretrain_network_g: {self._start_file()}: {NO_EMBEDDING}')
        elif hasattr(net, 'save_backbone'):
            get_root_logger().warning(
                f'path.pretrain_network_e is empty: the adapters of {type(net).__name__} keep '
                'their random initial values for the whole training. Tune them first with '
                'model_type: DegradationCLIPModel and name its net_g_latest.pth.'
            )

    def _start_file(self) -> str | None:
        """The file that the network starts from, if any."""
        path = self.opt['path']
        return path.get('pretrain_network_g') or path.get('pretrain_network_phase1')

    def _stored_record(self, kind: str) -> DegradationRecord | None:
        """The embedding in the file that the network starts from, averaged if the network's is."""
        file, param_key = self._start_file(), kind
        if not file:
            return None
        if not self.is_train:
            param_key = self.opt['path'].get('param_key_g') or kind
        elif not self.opt['path'].get('pretrain_network_g'):
            param_key = 'params_ema'  # what a second phase takes of the first
        return read_record(read_checkpoint(file, param_key, fallback=True))

    def _check_record(self, net: nn.Module, record: DegradationRecord) -> None:
        file, kind = self._start_file(), type(net).__name__
        if record.arch['type'] != kind:
            raise CheckpointError(
                f'{file}: was trained with network_e.type: {record.arch["type"]}, not {kind}.'
            )
        needs_label = getattr(net, 'needs_label', False)
        fault = class_order_fault(record.classes, self.degradation_names, needs_label)
        if fault:
            raise CheckpointError(f'{file}: {fault}')

    # ---- vectors ------------------------------------------------------------------------------

    def network_arguments(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **super().network_arguments(batch),
            'degradation': self.degradation_vectors(batch),
        }

    def degradation_vectors(self, batch: Mapping[str, Any]) -> Tensor:
        """(B, E) vectors of a batch, in fp32; without gradients by the averaged embedding."""
        if self.validating and self._stand_in is not None:
            batch = self._stand_in
        inputs = batch['lq'], batch.get('degradation')
        with torch.autocast(self.device.type, enabled=False):
            if torch.is_grad_enabled() and self.embedding_trained:
                return self.net_e(*inputs)
            net = getattr(self, 'net_e_ema', None) or self.get_bare_model(self.net_e)
            was_training = net.training
            with torch.no_grad():
                vectors = net.eval()(*inputs)
            net.train(was_training)
        return vectors

    def prepare_item(self, dataloader, index: int, data: Mapping[str, Any]) -> None:
        super().prepare_item(dataloader, index, data)
        self._stand_in = None
        if self.override is not None:
            stand_in = self.override.stand_in(dataloader.dataset, index, data)
            self._stand_in = {key: value.to(self.device) for key, value in stand_in.items()}

    # ---- training -----------------------------------------------------------------------------

    def _build_ema(self) -> nn.Module:
        if self.embedding_trained:
            bare = self.get_bare_model(self.net_e)
            self.net_e_ema = deepcopy(bare).eval().requires_grad_(False)
            source, record = self.opt['path'].get('pretrain_network_e'), None
            if source:
                load_weights(self.net_e_ema, source, None, label='e')
            else:
                record = self._stored_record('params_ema')
            if record is not None:
                self.net_e_ema.load_state_dict(record.state_dict)
        return super()._build_ema()

    def model_ema(self, decay: float = 0.999) -> None:
        super().model_ema(decay)
        if self.embedding_trained:
            update_ema(self.net_e_ema, self.get_bare_model(self.net_e), decay)

    def default_grad_clip_norm(self) -> float | dict[str, float]:
        limits = super().default_grad_clip_norm()
        if isinstance(limits, Mapping) and self.embedding_trained:
            return {**limits, GROUP: limits['restoration']}
        return limits

    def _gradient_sync(self, last: bool) -> AbstractContextManager:
        stack = ExitStack()
        stack.enter_context(super()._gradient_sync(last))
        if self.embedding_trained and self.opt['dist'] and not last:
            stack.enter_context(self.net_e.no_sync())
        return stack

    # ---- checkpoints --------------------------------------------------------------------------

    def save_network(self, net, net_label, current_iter, param_key='params') -> None:
        super().save_network(net, net_label, current_iter, param_key)
        if net_label == 'net_g':
            nets = list(self._embeddings().values())
            super().save_network(nets, 'net_e', current_iter, list(self._embeddings()))

    def checkpoint_extras(self, net_label: str) -> dict[str, Any]:
        extras = super().checkpoint_extras(net_label)
        if net_label == 'net_g':
            states = {key: network_state(net) for key, net in self._embeddings().items()}
            extras[DEGRADATION_KEY] = degradation_meta(
                self.degradation_names, self.opt['network_e'], **states
            )
        return extras

    def _embeddings(self) -> dict[str, nn.Module]:
        nets = {'params': self.get_bare_model(self.net_e)}
        if hasattr(self, 'net_e_ema'):
            nets['params_ema'] = self.net_e_ema
        return nets


def _equal(own: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts have the same values where both have a key."""
    return all(torch.equal(own[key].cpu(), stored[key].cpu()) for key in own.keys() & stored.keys())
