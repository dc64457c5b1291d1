"""Runs of a tiny network that are saved and go on, and the files they leave."""

from pathlib import Path

import torch
from helpers import model_options

from unfoldldm_basicsr.models import RestorationModel
from unfoldldm_basicsr.training.resume import load_resume_state

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
