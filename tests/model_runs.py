"""Models that train step by step: their batches, their pictures, and what a step has changed."""

import math
from pathlib import Path

import torch
from helpers import model_options
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from unfoldldm_basicsr.models import RestorationModel
from unfoldldm_basicsr.training.resume import load_resume_state


def batch(seed: int = 1, size: int = 2, side: int = 16) -> dict:
    """A training batch: random pairs (size, 3, side, side), three degradations in turn."""
    generator = torch.Generator().manual_seed(seed)
    lq, gt = torch.rand(2, size, 3, side, side, generator=generator)
    paths = [f'img_{i}.png' for i in range(size)]
    return {'lq': lq, 'gt': gt, 'lq_path': paths, 'degradation': torch.arange(size) % 3}


def spoilt(key: str = 'gt', **settings) -> dict:
    """A batch with one value that is no number."""
    data = batch(**settings)
    data[key][-1, 0, 0, 0] = math.nan
    return data


def steps(model, *iterations: int, data: dict | None = None, **settings) -> None:
    """Trains; the batch of an iteration follows from its number."""
    for iteration in iterations:
        model.update_learning_rate(iteration)
        model.feed_data(data or batch(iteration, **settings))
        model.optimize_parameters(iteration)


class Pictures(Dataset):
    """A validation set: random pairs of growing height, with the names of degradations in turn."""

    def __init__(self, count: int = 2, *, with_gt: bool = True, names: tuple[str, ...] = ()):
        self.count, self.with_gt, self.names = count, with_gt, names
        self.opt = {'name': 'held_out'}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        lq, gt = torch.rand(2, 3, 16 + 4 * (index % 2), 20, generator=generator)
        item = {'lq': lq, 'lq_path': f'p{index}.png', 'degradation': index % 3}
        if self.with_gt:
            item['gt'] = gt
        if self.names:
            item['degradation_name'] = self.names[index % len(self.names)]
        return item


def validate(model, pictures: Dataset | None = None, iteration: int | str = 1, **settings) -> dict:
    settings = {'tb_logger': None, 'save_img': False} | settings
    model.validation(DataLoader(pictures or Pictures()), iteration, **settings)
    return dict(model.metric_results)


class Board(dict):
    def add_scalar(self, name: str, value: object, step: int) -> None:
        self[name] = value

    add_image = add_scalar


def weights(net) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def state_of(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


def changed(net: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Top-level modules of ``net`` that no longer equal ``before``."""
    now = net.state_dict()
    return {key.split('.')[0] for key in before if not torch.equal(now[key], before[key])}


def networks(model) -> list[nn.Module]:
    """Everything that a model trains or averages."""
    parts = model.networks.values()
    return [net for part in parts for net in (part.bare, part.average) if net is not None]


def same_networks(first, second) -> bool:
    pairs = zip(networks(first), networks(second), strict=True)
    return not any(changed(net, other.state_dict()) for net, other in pairs)


def file_of(model, label: str) -> str:
    """``net_LABEL.pth`` of a model."""
    return f'{model.opt["path"]["models"]}/net_{label}.pth'


def resumed(model, options: dict, iteration: int):
    """A new model with these options that goes on where ``model`` was saved."""
    state = Path(model.opt['path']['training_states']) / f'{iteration}.state'
    options['path']['resume_state'] = str(state)
    for key in {'network_g', 'network_e'} & options.keys():
        options['path'][f'pretrain_{key}'] = file_of(model, f'{key[-1]}_{iteration}')
    other = type(model)(options)
    other.resume_training(torch.load(state, weights_only=True))
    return other


NET = {'type': 'TinyConvNet'}


def options_of(folder: Path, network: dict = NET, state: Path | None = None, **train) -> dict:
    """Options of a run that goes on from its newest checkpoint, or from a named state."""
    options = model_options(folder, dict(network), **train)
    options['auto_resume'] = state is None
    options['path'] |= {'experiments_root': str(folder), 'resume_state': state and str(state)}
    return options


def begin(folder: Path, **train) -> RestorationModel:
    torch.manual_seed(0)
    return RestorationModel(options_of(folder, **train))


def go_on(options: dict) -> RestorationModel:
    """A model that goes on as the trainer does it; ``model.state``: from where."""
    state = load_resume_state(options)
    model = RestorationModel(options)
    model.resume_training(state)
    model.state = state
    return model


def found_in(folder: Path) -> int:
    """Iteration from which a run in the folder would go on."""
    return load_resume_state(options_of(folder))['iter']


def state_file(folder: Path, iteration: int) -> Path:
    return folder / 'states' / f'{iteration}.state'


def names(folder: Path) -> list[str]:
    return sorted(path.name for part in ('models', 'states') for path in (folder / part).iterdir())


def files_of(*iterations: int) -> list[str]:
    kinds = ('{}.state', '{}.state.json', 'net_g_{}.pth')
    return sorted(kind.format(i) for i in iterations for kind in kinds)
