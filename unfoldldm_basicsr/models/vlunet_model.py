"""VLU-Net: all-in-one restoration steered by a degradation vector (CVPR 2025, arXiv 2503.16930).

    d = E(lq, label),   L = |VLUNet(lq, d) - gt|_1

The same for every embedding E (``network_e``): one that is trained jointly (learned) becomes the
parameter group 'embedding' of the model's optimiser, with clipping, averaging and
DistributedDataParallel of its own; any other (CLIP, label) is frozen.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.data import build_dataset
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn
from torch.utils.data import Dataset

from unfoldldm_basicsr.common.contract import contract_of
from unfoldldm_basicsr.models.vlunet_options import (
    WRONG,
    ConditionedPath,
    ConditionedTop,
    ConditionedVal,
    class_order,
    embedding_fits,
    networks_fit_together,
)
from unfoldldm_basicsr.training.batches import Batch
from unfoldldm_basicsr.training.evaluation import Evaluator
from unfoldldm_basicsr.training.networks import TrainedNetwork
from unfoldldm_basicsr.training.optimisation import Groups
from unfoldldm_basicsr.training.options import RULES, SECTIONS
from unfoldldm_basicsr.training.restoration_model import RestorationModel
from unfoldldm_basicsr.weights import checkpoint as checkpoints
from unfoldldm_basicsr.weights.conditioning import degradation_meta, read_record
from unfoldldm_basicsr.weights.loading import differing_arguments, load_weights, misfit

GROUP = 'embedding'
AS_TUNED = ('class_texts', 'normalize', 'temperature')  # what a vector is compared with


def class_order_fault(
    stored: Sequence[str], current: Sequence[str], needs_label: bool
) -> str | None:
    """Why weights trained with one order of degradations do not go with another.

    Label embeddings need the same list. The others may gain or lose degradations, as the vector
    comes from the image, but what both lists name must stand in the same order.

    ``stored`` is empty where it is unknown, ``current`` where the data have none.
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


def _with_rows_of(
    names: Sequence[str], net: nn.Module, record: checkpoints.Checkpoint
) -> checkpoints.Checkpoint | None:
    """The vectors of a label embedding by name; those of names that are not in the file stay. None
    where it holds anything else than a row for each name.
    """
    state = {key: value.clone() for key, value in net.state_dict().items()}
    for key, own in state.items():
        rows, then = record.state_dict.get(key), len(record.classes)
        if rows is None or own.shape[:1] != (len(names),) or rows.shape != (then, *own.shape[1:]):
            return None
        for index, name in enumerate(names):
            if name in record.classes:
                own[index] = rows[record.classes.index(name)]
    return replace(record, state_dict=state)


@MODEL_REGISTRY.register()
class VLUNetModel(RestorationModel):
    """Trains VLUNet with a CLIP, label or learned degradation embedding (``network_e``).

    The number of prompts ``network_g.de_dim`` is free: prompts are a bank that the vector mixes,
    not a list of classes.

    The embedding starts from ``path.pretrain_network_e``, else from that in the file that the
    network itself starts from, else anew. It is saved as ``net_e_*.pth`` for resuming and, with
    the order of the degradations, in ``net_g_*.pth``, which therefore restores images alone.

    ``val.degradation_override`` validates with the vector of another degradation: that name, or for
    'wrong' the next one in the order of ``names`` (for embeddings of images, the next that the set
    contains, or else another set of the run). A label embedding is told another label. An embedding
    that looks at images is shown an item of the other degradation in its place: the one at the same
    position among its own, which in data over the same photos is the same photo, degraded
    otherwise.
    """

    sections = {**SECTIONS, '': ConditionedTop, 'path': ConditionedPath, 'val': ConditionedVal}
    rules = (*RULES, embedding_fits, networks_fit_together)
    network_inputs = ('degradation',)

    # ---- the embedding ------------------------------------------------------------------------

    @classmethod
    def trained_groups(cls, networks: Mapping[str, nn.Module]) -> Groups:
        groups, embedding = super().trained_groups(networks), networks.get('network_e')
        if embedding is None or not contract_of(embedding).trained_jointly:
            return groups
        trained = [(name, p) for name, p in embedding.named_parameters() if p.requires_grad]
        return {**groups, GROUP: trained} if trained else groups

    def trained_network(self, bare: nn.Module) -> TrainedNetwork:
        self.embedding_options = self.options_as_tuned()
        net = build_network(dict(self.embedding_options))
        self.names = class_order(self.run)
        if self.is_train:
            self.groups = self.trained_groups({'network_g': bare, 'network_e': net})
        trained = self.is_train and GROUP in self.groups
        self.load_embedding(net, 'params' if trained else 'params_ema', self.run.path.param_key_e)
        if not trained:
            net.requires_grad_(False).eval()
        self.embedding = TrainedNetwork(net, self.device, self.run, trained=trained)
        if self.opt['dist'] and not trained:
            # Random vectors differ from rank to rank; the wrapper of a trained network sees to it.
            for tensor in net.state_dict().values():
                torch.distributed.broadcast(tensor, 0)
        get_root_logger().info(
            f'Degradation vectors: {type(net).__name__}, {net.embed_dim} numbers, '
            f'{"trained jointly" if trained else "frozen"}; degradations: '
            f'{", ".join(self.names) or "not named"}.'
        )
        return super().trained_network(bare)

    @property
    def networks(self) -> dict[str, TrainedNetwork]:
        return {**super().networks, 'net_e': self.embedding}

    def options_as_tuned(self) -> dict[str, Any]:
        """``network_e``; what CLIP compares with, if left out, is that of its weights' file."""
        section, path = self.opt['network_e'], self.run.path
        if path.pretrain_network_e:
            made = checkpoints.read_checkpoint(path.pretrain_network_e).arch
        elif path.pretrain_network_g:
            record = read_record(checkpoints.read_checkpoint(path.pretrain_network_g))
            made = record and record.arch
        else:
            made = None
        if made is None or made['type'] != section['type']:
            return section
        return {k: v for k, v in made['kwargs'].items() if k in AS_TUNED} | section

    def network_options(self, key: str) -> Mapping[str, Any]:
        return self.embedding_options if key == 'network_e' else super().network_options(key)

    def load_embedding(
        self, net: nn.Module, kind: str, key: str | None = None, *, is_average: bool = False
    ) -> None:
        """``kind`` of weights where the file has them; those under ``key`` where it is given."""
        warn = get_root_logger().debug if is_average else get_root_logger().warning  # said once
        path, record = self.run.path, None
        file, source = path.pretrain_network_g, path.pretrain_network_e
        if file:  # averaged if the network's is
            stored = kind if is_average else path.param_key_g or kind
            record = read_record(checkpoints.read_checkpoint(file, stored, fallback=True))
        if record is not None:
            record = self._fitting(net, record, warn)
        if source:
            load_weights(
                net, source, key or kind, fallback=key in checkpoints.MAY_LACK, label='e',
                arguments=None if is_average else self.embedding_options,
            )  # fmt: skip
            own, known = net.state_dict(), {} if record is None else record.state_dict
            pairs = [(own[k].cpu(), known[k].cpu()) for k in own.keys() & known]
            if not all(torch.equal(a.to(b.dtype), b) for a, b in pairs):  # of an export: halves
                warn(
                    f'path.pretrain_network_e: {source} holds other degradation vectors than those '
                    'that the network of path.pretrain_network_g was trained with.'
                )
        elif record is not None:
            net.load_state_dict(record.state_dict)
        elif file and not self.is_train:
            raise checkpoints.CheckpointError(
                f'path.pretrain_network_g: {file} holds no degradation embedding, so the test '
                'would steer the network with random vectors. Name the weights of the embedding '
                'in path.pretrain_network_e.'
            )
        elif self.is_train and contract_of(net).save_backbone is not None:
            warn(
                f'path.pretrain_network_e is empty: the adapters of {type(net).__name__} keep '
                'their random initial values for the whole training. Tune them first with '
                'model_type: DegradationCLIPModel and name its net_g_latest.pth.'
            )

    def _fitting(
        self, net: nn.Module, record: checkpoints.Checkpoint, warn: Callable[..., None]
    ) -> checkpoints.Checkpoint | None:
        """The embedding of the file, as far as this run can start with it; none: anew. A training
        may have other degradations, or another kind of vectors. CheckpointError: a test may not.
        """
        file, kind = self.run.path.pretrain_network_g, type(net).__name__
        if record.arch['type'] != kind:
            message = f'{file}: was trained with network_e.type: {record.arch["type"]}, not {kind}'
            if not self.is_train:
                raise checkpoints.CheckpointError(f'{message}.')
            warn(f'{message}, whose vectors start anew.')
            return None
        contract = contract_of(net)
        fault = class_order_fault(record.classes, self.names, contract.needs_label)
        if fault and self.is_train:
            moved = _with_rows_of(self.names, net, record) if contract.needs_label else record
            if moved is not None:
                record, fault = moved, None
                new = [name for name in self.names if name not in record.classes]
                if new and contract.needs_label and not self.run.path.pretrain_network_e:
                    warn(f'{file}: knows no {", ".join(new)}: new vectors.')
        missing = net.state_dict().keys() - record.state_dict.keys()
        if contract.save_backbone and missing and not self.run.path.pretrain_network_e:
            fault = (
                f'holds no backbone for network_e, which would keep random weights. Write '
                f'network_e.pretrained: {record.arch["kwargs"].get("pretrained")}, as it was '
                'trained with.'
            )
        if fault:
            raise checkpoints.CheckpointError(f'{file}: {fault}')
        message = misfit(net, record, label='e')
        if message and not self.run.path.pretrain_network_e:
            if not self.is_train:
                raise checkpoints.CheckpointError(message)
            warn(f'{message} The vectors start anew.')
            return None
        other = differing_arguments(net, record, self.embedding_options)
        if other := [line for line in other if 'num_degradations' not in line or not self.is_train]:
            message = '%s was trained with the vectors of another network_e: %s.'
            warn(message, file, '; '.join(other))
        return record

    def start_averages(self) -> None:
        if self.embedding.trained:
            self.embedding.start_average()
            self.load_embedding(self.embedding.average, 'params_ema', is_average=True)
        super().start_averages()

    def checkpoint_extras(self) -> dict[str, Any]:
        """What ``net_g_*.pth`` says about its vectors."""
        meta = degradation_meta(self.names, self.embedding_options, **self.embedding.states())
        return {checkpoints.DEGRADATION_KEY: meta}

    # ---- vectors ------------------------------------------------------------------------------

    def network_arguments(self, batch: Batch) -> dict[str, Tensor]:
        """Vectors (B, E) in fp32; without gradients by the averaged embedding."""
        batch = batch.get('stand_in', batch)
        inputs = batch['lq'], batch.get('degradation')
        with torch.autocast(self.device.type, enabled=False):
            if torch.is_grad_enabled() and self.embedding.trained:
                return {'degradation': self.embedding.net(*inputs)}
            with torch.no_grad(), self.embedding.evaluating() as net:
                return {'degradation': net(*inputs)}

    def build_evaluator(self, **settings: Any) -> Evaluator:
        choice = self.run.val.degradation_override
        if choice is not None:  # such scores are no results
            whose = 'the next degradation' if choice == WRONG else choice
            settings = {
                'prefix': 'wrong_' if choice == WRONG else f'as_{choice}_',
                'note': ' (ablation: every image is restored with the degradation vector of '
                f'{whose})',
            }
        self.other_sets: dict[str, Dataset] = {}  # opened where they are needed
        return super().build_evaluator(**settings)

    def validation_extras(self, dataset: Dataset, index: int, batch: Batch) -> Batch:
        """``stand_in``: ``lq`` (1, 3, H, W) and ``degradation`` (1,) that the embedding gets.

        Raises ValueError: the items have no label, or the set has none of the degradation.
        """
        choice = self.run.val.degradation_override
        if choice is None:
            return {}
        if 'degradation' not in batch or not hasattr(dataset, 'label_of'):
            raise ValueError(
                'val.degradation_override needs a validation set that knows the degradations of '
                'its images, such as MixedDegradationDataset.'
            )
        label, count = int(batch['degradation'][0]), len(self.names)
        if choice == WRONG:
            wanted = [(label + step) % count for step in range(1, count)]
        else:
            wanted = [self.names.index(choice)]
        if contract_of(self.embedding.bare).needs_label:
            return {'stand_in': {'lq': batch['lq'], 'degradation': torch.tensor(wanted[:1])}}
        for images in self._known_images(dataset):
            labels = [images.label_of(place) for place in range(len(images))]
            if (other := next((other for other in wanted if other in labels), None)) is not None:
                break
        else:
            raise ValueError(
                f'val.degradation_override: {choice}: no validation set has an image with '
                f'{" or ".join(self.names[other] for other in wanted)} to take the vector from.'
            )
        before = [dataset.label_of(place) for place in range(index)].count(label)
        others = [place for place, found in enumerate(labels) if found == other]
        item = images[others[before % len(others)]]
        return {'stand_in': {'lq': item['lq'][None], 'degradation': torch.tensor([other])}}

    def _known_images(self, dataset: Dataset) -> Iterator[Dataset]:
        """A validation set, then the others of the run that know their degradations."""
        yield dataset
        for path, section in self.run.sets():
            if path != 'datasets.train' and section['name'] != dataset.opt['name']:
                if path not in self.other_sets:
                    self.other_sets[path] = build_dataset({'phase': 'val', 'scale': 1, **section})
                if hasattr(self.other_sets[path], 'label_of'):
                    yield self.other_sets[path]
