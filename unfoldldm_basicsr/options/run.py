"""An option file as typed sections: what rules look at, and what a model is built from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from unfoldldm_basicsr.common.declaration import OptionError, Options, Problem
from unfoldldm_basicsr.common.sections import SECTIONS
from unfoldldm_basicsr.options.machine import Machine
from unfoldldm_basicsr.options.networks import build
from unfoldldm_basicsr.options.problems import Problems

# Written into the option dict when a run is started; no keys of an option file.
SET_AT_START = {
    '': ('is_train', 'dist', 'rank', 'world_size', 'auto_resume', 'root_path'),
    'path': (
        'experiments_root', 'results_root', 'models', 'training_states', 'log', 'visualization',
    ),
}  # fmt: skip
_OF_TRAINING = ('train', 'logger')  # sections that a test does not read


@dataclass
class Run:
    """What an option file describes.

    Attributes:
        model: class of ``model_type``, None if there is no such class.
        is_train: training or test.
        opt: the option dict itself; not to be changed.
        top: the top level, ``train``, ``val``, ``path``, ``logger``: the typed sections.
        datasets: by phase; typed where the class declares its options, the dict elsewhere.
        machine: how it is started; known to the check only.
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
    machine: Machine | None = None

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
        return {key: build(section) for key, section in self.network_sections.items()}

    def sets(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Path and section of every data set that is read."""
        for phase, section in section_values(self.opt, 'datasets').items():
            if isinstance(section, Mapping) and is_read(str(phase), self.is_train):
                yield f'datasets.{phase}', section


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


def is_read(phase: str, is_train: bool) -> bool:
    """Whether a training, or a test, reads ``datasets.PHASE``."""
    kind = phase.split('_')[0]
    return phase == 'train' or kind == 'val' if is_train else kind in ('val', 'test')


def typed(model: type | None, opt: Mapping[str, Any], problems: Problems | None = None) -> Run:
    """The typed options of a run with ``model``.

    Args:
        model: declares ``sections``; others are read as BasicSR's models read them.
        opt: the option dict.
        problems: gets what does not fit its declaration.

    Raises:
        OptionError: all that does not fit, where ``problems`` is not given.
    """
    started = problems is None  # the option dict holds what a start has set
    if started:
        problems, opt = Problems(), {'model_type': model.__name__, **opt}
    training, sections = is_training(opt), {}
    for name, declared in getattr(model, 'sections', SECTIONS).items():
        if name in _OF_TRAINING and not training:
            continue
        values = section_values(opt, name)
        if not started and isinstance(opt.get(name), Mapping):
            values = opt[name]  # folders that a start sets are none of an option file
        foreign = not hasattr(model, 'sections')
        sections[name or 'top'] = problems.read(
            name, declared, values, foreign=foreign, any_key=model is None
        )
    if started and problems.refused:
        raise OptionError('options', [Problem(*item) for item in problems.refused.items()])
    named = {key: sections.get(key) for key in ('top', 'train', 'val', 'path', 'logger')}
    return Run(model, training, opt, **named, datasets=opt.get('datasets') or {})
