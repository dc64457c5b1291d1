"""Checks a whole option dict before anything is built, written or renamed.

All problems are reported at once, each as ``FILE: key.path: cause and remedy``. Nothing here
changes the options, sets BasicSR's logger up, or leaves a trace on the disk.

The way of an option dict: names of forks are translated and what BasicSR demands is filled in; each
section is read as its declaration says (:func:`.run.typed`), and each section with a ``type`` as
that class says, which is then built where it costs nothing; rules look at what must fit together;
last, files and data of this machine are opened.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from basicsr.models import lr_scheduler
from basicsr.utils import registry as registries

from unfoldldm_basicsr.common.declaration import Options, show
from unfoldldm_basicsr.common.registration import by, of_somebody_else, registered
from unfoldldm_basicsr.common.sections import AnyMetric, BasicDataset, MetricOptions
from unfoldldm_basicsr.common.suggest import did_you_mean, written_as
from unfoldldm_basicsr.options import environment, networks, rules
from unfoldldm_basicsr.options.aliases import MODELS, Note, translate
from unfoldldm_basicsr.options.declared import options_of, takes_any_key
from unfoldldm_basicsr.options.defaults import fill_defaults
from unfoldldm_basicsr.options.problems import Problems
from unfoldldm_basicsr.options.run import (
    SET_AT_START,
    Machine,
    Run,
    gpu_count,
    is_read,
    section_values,
    typed,
)

_ADAM = (('Adam', torch.optim.Adam),)  # what BasicSR's own models know
_SCHEDULES = (
    ('MultiStepLR', lr_scheduler.MultiStepRestartLR),
    ('MultiStepRestartLR', lr_scheduler.MultiStepRestartLR),
    ('CosineAnnealingRestartLR', lr_scheduler.CosineAnnealingRestartLR),
)
_LOADS_WEIGHTS = ('PerceptualLoss',)  # building it would fetch a file


@dataclass
class Report:
    """What a check found."""

    file: str
    found: Problems
    run: Run
    notes: list[Note]

    @property
    def problems(self) -> list[str]:
        """``FILE: key.path: message`` for what a run is refused for."""
        return [f'{self.file}: {path}: {text}' for path, text in self.found.refused.items()]

    @property
    def warnings(self) -> list[str]:
        """The same for what is worth a warning only."""
        return [f'{self.file}: {path}: {text}' for path, text in self.found.warned.items()]


def preflight(options: dict, file: str, is_train: bool, **settings: Any) -> list[str]:
    """Every problem of an option dict, one line each; for the parameters see :func:`examine`."""
    return examine(options, file, is_train, **settings).problems


@environment.basicsr_logger_untouched()
def examine(
    options: dict,
    file: str,
    is_train: bool,
    *,
    here: bool = True,
    resuming: bool | None = None,
    launcher: str | None = None,
    strict: bool = True,
    later: bool = False,
) -> Report:
    """Checks an option dict.

    Args:
        options: as read from the file, not completed; stays unchanged.
        file: name for the messages.
        here: also check what belongs to this machine: data, weights, GPUs.
        resuming: the run goes on from a state, so the weights it started from are not read (None:
            if ``path.resume_state`` names one).
        launcher: that of the command line; None where no run is started.
        strict: whether keys that are not known are refused.
        later: leave the data sets to :func:`.environment.open_datasets` if all else is right.
    """
    options = deepcopy(options)
    notes = translate(options)
    fill_defaults(options, is_train)
    options['is_train'] = is_train
    model = registered(registries.MODEL_REGISTRY, options.get('model_type'))
    if here:
        options['num_gpu'] = gpu_count(options, model, launcher)
    if resuming is None:
        resuming = bool(section_values(options, 'path').get('resume_state'))
    problems = Problems(strict)
    for key in SET_AT_START['path'] if isinstance(options['path'], dict) else ():
        if options['path'].pop(key, None) is not None:
            problems.add(f'path.{key}', 'is set when a run starts; not read.', 'warning')
    run = typed(model, options, problems)
    run.machine = Machine(here, launcher, resuming, options['num_gpu'])
    if model is None and isinstance(options.get('model_type'), str):
        names = [*MODELS, *(name for name, _ in registries.MODEL_REGISTRY)]
        hint = did_you_mean(options['model_type'], names)
        message = f'no model {show(options["model_type"])} is registered.{hint}'
        problems.add('model_type', message)
    _check_classes(problems, run)
    _remove(options, problems.ignored)  # before rules and data sets look at them
    own = environment.RULES if here else ()
    _apply(problems, (*rules.RULES, *getattr(model, 'rules', ()), *own), run)
    _remove(options, problems.ignored)
    if problems.refused or not later:
        environment.open_datasets(problems, run)
    return Report(file, problems, run, notes)


def _apply(problems: Problems, rules_: Iterable[Callable], run: Run) -> None:
    """Adds what rules find; one that stumbles over values found to be wrong before has no news."""
    not_read = environment.not_read(run)
    for rule in rules_:
        try:
            for path, *rest in rule(run):
                if path not in not_read:
                    problems.add(path, *rest)
        except networks.VALUE_ERRORS:
            if not problems.refused:
                raise


def _remove(options: dict, paths: Iterable[str]) -> None:
    """Takes keys out of an option dict."""
    for path in paths:
        inner, key = options, path
        while key and (isinstance(inner, list) or key not in inner):  # a key may hold dots itself
            section, _, key = key.partition('.')
            inner = inner[int(section)] if isinstance(inner, list) else inner.get(section, {})
        inner.pop(key, None)


# ---- sections that name a class -----------------------------------------------------------------


def _check_classes(problems: Problems, run: Run) -> None:
    """Reads every section with a ``type``, and builds networks, losses, optimiser and schedule."""
    for key, section in run.opt.items():
        if str(key).startswith('network_') and key not in problems.refused:
            run.networks[key] = _check_class(
                problems, key, section, registries.ARCH_REGISTRY, 'network',
                build=networks.on_meta, here=run.machine.here,
            )  # fmt: skip
    train, ours = section_values(run.opt, 'train'), by(run.model, 'unfoldldm_basicsr')
    stock = by(run.model, 'basicsr')
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    for name, section in train.items() if run.is_train else ():
        path, check = f'train.{name}', partial(_check_class, problems, f'train.{name}', section)
        if problems.at(path) or not isinstance(section, Mapping):
            continue
        if name.endswith('_opt'):
            known = registered(registries.LOSS_REGISTRY, section.get('type')) is not None
            if ours or stock or known or name in type(run.train).model_fields:
                check(registries.LOSS_REGISTRY, 'loss', build=_loss)
        elif name == 'scheduler' and stock:
            check(
                _SCHEDULES, 'schedule', ('optimizer', 'last_epoch'),
                build=lambda cls, **kept: cls(optimizer, **kept),
            )  # fmt: skip
        elif name.startswith('optim_') and (stock or hasattr(run.model, 'sections')):
            known = _ADAM if stock else networks.OPTIMIZERS
            check(known, 'optimiser', ('params',), build=networks.one_step)
        elif of_somebody_else(run.model):
            continue
        elif (name.startswith('optim_') or name == 'scheduler') and 'type' not in section:
            problems.add(f'{path}.type', f'is missing.{written_as("type", section)}')
    for name, section in (run.val.metrics or {}).items():
        _check_class(
            problems, f'val.metrics.{name}', section, registries.METRIC_REGISTRY, 'metric',
            ('img', 'img2'), AnyMetric, MetricOptions,
        )  # fmt: skip
    for phase, section in section_values(run.opt, 'datasets').items():
        path = f'datasets.{phase}'
        if not is_read(str(phase), run.is_train):
            continue
        cls = _find(problems, path, section, registries.DATASET_REGISTRY, 'data set')
        if cls is not None:
            declared, own = getattr(cls, 'Options', BasicDataset), hasattr(cls, 'Options')
            theirs = of_somebody_else(cls)
            values = problems.read(path, declared, section, foreign=not own, theirs=theirs)
            if own:
                run.datasets[str(phase)] = values


def _find(problems: Problems, path: str, section: object, registry: Iterable, what: str) -> Any:
    """What ``section['type']`` names, or None with the problem added."""
    if not isinstance(section, Mapping):
        problems.add(path, f'must be a section with a type, got {show(section)}.')
    elif 'type' not in section:
        problems.add(f'{path}.type', f'is missing: the {what} to use.{written_as("type", section)}')
    else:
        found = registered(registry, section['type'])
        if found is None:
            hint = did_you_mean(section['type'], [name for name, _ in registry])
            where = 'is registered'
            if isinstance(registry, tuple):
                where = "is known to BasicSR's own models"
                hint += f' model_type: RestorationModel takes every {what} of torch.'
            problems.add(f'{path}.type', f'no {what} {show(section["type"])} {where}.{hint}')
        return found
    return None


def _check_class(
    problems: Problems,
    path: str,
    section: object,
    registry: Iterable,
    what: str,
    given: tuple[str, ...] = (),
    base: type[Options] = Options,
    known: type[Options] = Options,
    build: Callable[..., Any] | None = None,
    here: bool = True,
) -> Any:
    """What ``build`` makes of the arguments in a section; None with the problems added."""
    owner = _find(problems, path, section, registry, what)
    if owner is None:
        return None
    arguments = {str(key): value for key, value in section.items() if key != 'type'}
    declared, foreign = options_of(owner, given, base, known), takes_any_key(owner)
    problems.read(path, declared, arguments, owner.__name__, foreign=foreign)
    if build is None or problems.at(path):
        return None
    for ignored in problems.ignored:
        arguments.pop(ignored.removeprefix(f'{path}.'), None)
    try:
        return build(owner, **arguments)
    except networks.VALUE_ERRORS as error:
        if isinstance(error, FileNotFoundError) and not here:
            return None  # weights that a network loads by itself
        text = networks.refusal(owner.__name__, arguments, error, partial(build, owner))
        problems.add(path, text)
    return None


def _loss(cls: type, **arguments: Any) -> None:
    """Builds a loss of BasicSR or of this package; what others do when they are built is theirs."""
    if by(cls, 'basicsr', 'unfoldldm_basicsr') and cls.__name__ not in _LOADS_WEIGHTS:
        cls(**arguments)
