"""An option file as typed sections: what rules look at, and what a model is built from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from unfoldldm_basicsr.common.declaration import OptionError, Options, Problem, read
from unfoldldm_basicsr.common.sections import SECTIONS

# Written into the option dict when a run is started; no keys of an option file.
SET_AT_START = {
    '': ('is_train', 'dist', 'rank', 'world_size', 'auto_resume', 'root_path'),
    'path': (
        'experiments_root', 'results_root', 'models', 'training_states', 'log', 'visualization',
    ),
}  # fmt: skip
OF_TRAINING = ('train', 'logger')  # sections that a test does not read


@dataclass
class Run:
    """What an option file describes.

    Attributes:
        model: class of ``model_type``, None if there is no such class.
        is_train: training or test.
        opt: the option dict itself; not to be changed.
        top: the top level, ``train``, ``val``, ``path``, ``logger``: the typed sections.
        datasets: by phase; typed where the class declares its options, the dict elsewhere.
    """

    model: type | None
    is_train: bool
    opt: Mapping[str, Any]
    top: Options
    train: Options | None
    val: Options
    path: Options
    logger: Options | None
    datasets: Mapping[str, Options | Mapping[str, Any]]

    @property
    def network_sections(self) -> dict[str, Mapping[str, Any]]:
        """``network_g`` and the like: type and arguments."""
        return {
            key: section
            for key, section in self.opt.items()
            if str(key).startswith('network_') and isinstance(section, Mapping)
        }

    @cached_property
    def networks(self) -> dict[str, nn.Module | None]:
        """The networks on the meta device; None for what cannot be built there."""
        from unfoldldm_basicsr.options.networks import build

        return {key: build(section)[0] for key, section in self.network_sections.items()}


def section_values(opt: Mapping[str, Any], section: str) -> dict[str, Any]:
    """A section of an option dict ('' for the top level), empty where there is none."""
    values = opt.get(section) if section else opt
    values = values if isinstance(values, Mapping) else {}
    return {k: v for k, v in values.items() if k not in SET_AT_START.get(section, ())}


def is_training(opt: Mapping[str, Any]) -> bool:
    """Whether an option dict describes a training; files of tests have no ``train``."""
    datasets = opt.get('datasets')
    training = 'train' in opt or (isinstance(datasets, Mapping) and 'train' in datasets)
    return bool(opt.get('is_train', training))


def typed(model: type, opt: Mapping[str, Any]) -> Run:
    """The typed options of a run with ``model``.

    Raises:
        OptionError: everything in the sections that does not fit its declaration.
    """
    opt = {'model_type': model.__name__, **opt}
    training, problems, sections = is_training(opt), [], {}
    for name, declared in getattr(model, 'sections', SECTIONS).items():
        if name in OF_TRAINING and not training:
            continue
        try:
            sections[name] = read(declared, section_values(opt, name))
        except OptionError as error:
            prefix = f'{name}.' if name else ''
            problems += [Problem(f'{prefix}{path}', text) for path, text, _ in error.problems]
    if problems:
        raise OptionError('options', problems)
    return make_run(model, opt, sections, opt.get('datasets') or {})


def make_run(
    model: type | None, opt: Mapping, sections: Mapping[str, Options], datasets: Mapping
) -> Run:
    """A run of typed sections."""
    named = {key: sections.get(key) for key in ('train', 'val', 'path', 'logger')}
    return Run(model, is_training(opt), opt, sections[''], **named, datasets=datasets)
