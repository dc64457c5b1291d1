"""Checks a whole option dict before anything is built, written or renamed.

All problems are reported at once, each as ``FILE: key.path: cause and remedy``. Nothing here
changes the options, sets BasicSR's logger up, or leaves a trace on the disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

from basicsr.utils.registry import (
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
)
from pydantic import ValidationError

from unfoldldm_basicsr.common.declaration import Options, keys_of, problems_of, show
from unfoldldm_basicsr.common.sections import (
    ALSO_READ,
    FREE,
    SECTIONS,
    BasicDataset,
    MetricOptions,
)
from unfoldldm_basicsr.common.suggest import did_you_mean, one_slip, written_as
from unfoldldm_basicsr.options import environment, networks, rules
from unfoldldm_basicsr.options.aliases import Note, translate
from unfoldldm_basicsr.options.declared import options_of, registered, takes_any_key
from unfoldldm_basicsr.options.defaults import fill_defaults
from unfoldldm_basicsr.options.machine import Machine, gpu_count
from unfoldldm_basicsr.options.problems import Problems, of_somebody_else
from unfoldldm_basicsr.options.run import OF_TRAINING, Run, make_run, section_values

ARCH_REGISTRY = networks.ARCH_REGISTRY
_LOADS_WEIGHTS = ('PerceptualLoss',)  # building it would fetch a file


@dataclass
class Report:
    """What a check found."""

    file: str
    found: Problems
    run: Run
    machine: Machine
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
    """Every problem of an option dict, one line each; empty when the run can start.

    For the parameters see :func:`examine`.
    """
    return examine(options, file, is_train, **settings).problems


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
        is_train: training or test.
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
    problems = Problems(strict)
    for path, value in _values(options):
        if isinstance(value, float) and not math.isfinite(value):
            problems.add(path, f'must be a finite number, got {value}.')
        if path.endswith('.type') and not isinstance(value, str):
            problems.add(path, f'must be a name, got {show(value)}.')
    model = registered(MODEL_REGISTRY, options.get('model_type'))
    with environment.basicsr_logger_untouched():
        sections = _check_sections(problems, options, model, is_train)
        nets = {}
        for key, section in options.items():
            if str(key).startswith('network_') and not problems.covers(str(key)):
                nets[str(key)] = _check_network(problems, str(key), section)
        if is_train:
            _check_losses(problems, section_values(options, 'train'), model)
        _check_metrics(problems, section_values(options, 'val').get('metrics'))
        datasets = _check_datasets(problems, options, is_train, here)
        gpus = options['num_gpu']
        if gpus == 'auto' and here:
            gpus = gpu_count(options, launcher)
        options['num_gpu'] = gpus
        if resuming is None:
            resuming = bool(section_values(options, 'path').get('resume_state'))
        machine = Machine(here, launcher, resuming, gpus)
        run = make_run(model, options, sections, datasets)
        run.networks = nets
        _apply(problems, [partial(rule, machine=machine) for rule in rules.RULES], run)
        skipped = environment.not_read(run, machine)
        _apply(problems, getattr(model, 'rules', ()), run, skipped)
        if here:
            _apply(problems, [partial(rule, machine=machine) for rule in environment.RULES], run)
        if here and (problems.refused or not later):
            environment.open_datasets(problems, run, machine)
    return Report(file, problems, run, machine, notes)


def _values(value: object, path: str = '') -> Iterator[tuple[str, object]]:
    """Everything in an option dict with its key path."""
    if path:
        yield path, value
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _values(item, f'{path}.{key}' if path else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _values(item, f'{path}.{index}')


def _apply(
    problems: Problems, rules_: Any, run: Run, not_read: frozenset[str] = frozenset()
) -> None:
    """Adds what rules find; one that stumbles over values found to be wrong before has no news."""
    for rule in rules_:
        try:
            for path, *rest in rule(run):
                if path not in not_read:
                    problems.add(path, *rest)
        except networks.VALUE_ERRORS:
            if not problems.refused:
                raise


# ---- sections -----------------------------------------------------------------------------------


def _read(
    problems: Problems,
    prefix: str,
    declared: type[Options],
    values: Mapping[str, Any],
    *,
    owner: str = '',
    foreign: bool = False,
    also: Callable[[str], bool] = lambda key: False,
) -> Options:
    """A section as its declaration types it, as far as it is right; problems are added.

    Args:
        problems: gets what is found.
        prefix: key path of the section.
        declared: its declaration.
        values: what stands there.
        owner: class that it is for, for messages.
        foreign: whether the class may read keys that are not declared.
        also: tells keys that are known without a declaration.
    """
    values = {str(k): v for k, v in values.items()}
    try:
        return declared.model_validate(values)
    except ValidationError as error:
        found = problems_of(error, declared, values, owner)
        found = [p for p in found if p.kind != 'unknown' or not also(p.path)]
        faulty = {p.path.partition('.')[0] for p in found}
        if foreign:
            found = of_somebody_else(found, keys_of(declared), values)
        problems.extend(prefix, found)
    return _partly(declared, {k: v for k, v in values.items() if k not in faulty})


def _partly(declared: type[Options], values: Mapping[str, Any]) -> Options:
    """What is left of a section without its faulty keys; required ones may be missing."""
    known = set(keys_of(declared))
    values = {key: value for key, value in values.items() if key in known}
    try:
        return declared.model_validate(values)
    except ValidationError:
        return declared.model_construct(**values)


def _check_sections(
    problems: Problems, options: Mapping, model: type | None, is_train: bool
) -> dict[str, Options]:
    sections, foreign = {}, not hasattr(model, 'sections')
    for name, declared in getattr(model, 'sections', SECTIONS).items():
        if name in OF_TRAINING and not is_train:
            continue
        if name == 'train' and options.get('train') is None:
            problems.add('train', 'is missing: total_iter, optim_g, scheduler and the losses.')

        def also(key: str, name: str = name) -> bool:
            free = FREE.get(name)
            known = (foreign and free and free.fullmatch(key)) or key in ALSO_READ.get(
                name, ''
            ).split()
            return model is None or (foreign and bool(known))

        values = section_values(options, name) if not name else options.get(name)
        values = values if isinstance(values, Mapping) else {}  # folders that a start sets, too
        sections[name] = _read(problems, name, declared, values, foreign=foreign, also=also)
    if isinstance(options.get('model_type'), str) and model is None:
        hint = did_you_mean(options['model_type'], [name for name, _ in MODEL_REGISTRY])
        problems.add('model_type', f'no model {show(options["model_type"])} is registered.{hint}')
    return sections


# ---- sections that name a class -----------------------------------------------------------------


def _find(problems: Problems, path: str, section: object, registry, what: str) -> Any:
    """What ``section['type']`` names, or None with the problem added."""
    if not isinstance(section, Mapping):
        problems.add(path, f'must be a section with a type, got {show(section)}.')
    elif 'type' not in section:
        problems.add(f'{path}.type', f'is missing: the {what} to use.{written_as("type", section)}')
    else:
        found = registered(registry, section['type'])
        if found is None:
            hint = did_you_mean(section['type'], [name for name, _ in registry])
            problems.add(f'{path}.type', f'no {what} {show(section["type"])} is registered.{hint}')
        return found
    return None


def _check_arguments(
    problems: Problems, path: str, owner: Callable, section: Mapping, given: tuple[str, ...] = ()
) -> dict[str, Any] | None:
    """Arguments of a class or function, None with problems added."""
    arguments = {k: v for k, v in section.items() if k != 'type'}
    _read(
        problems,
        path,
        options_of(owner, given),
        arguments,
        owner=owner.__name__,
        foreign=takes_any_key(owner),
    )
    return None if problems.within(path) else arguments


def _check_network(problems: Problems, path: str, section: object) -> Any:
    cls = _find(problems, path, section, ARCH_REGISTRY, 'network')
    if cls is None or _check_arguments(problems, path, cls, section) is None:
        return None
    net, fault = networks.build(section)
    if fault:
        problems.add(path, fault)
    return net


def _check_losses(problems: Problems, train: Mapping, model: type | None) -> None:
    """The sections ``train.*_opt``; a model of somebody else may call other things so, too."""
    for name, section in train.items():
        path = f'train.{name}'
        if not str(name).endswith('_opt') or not isinstance(section, Mapping):
            continue
        kind = section.get('type')
        ours = _by(model, 'basicsr', 'unfoldldm_basicsr') or name in keys_of(SECTIONS['train'])
        near = any(one_slip(str(kind), known) for known, _ in LOSS_REGISTRY)
        if not ours and not near and registered(LOSS_REGISTRY, kind) is None:
            continue
        cls = _find(problems, path, section, LOSS_REGISTRY, 'loss')
        arguments = None if cls is None else _check_arguments(problems, path, cls, section)
        if arguments is None or not _by(cls, 'basicsr', 'unfoldldm_basicsr'):
            continue
        if cls.__name__ not in _LOADS_WEIGHTS:
            try:
                cls(**arguments)
            except (*networks.VALUE_ERRORS, NotImplementedError) as error:
                problems.add(path, networks.refusal(cls, arguments, error))


def _by(cls: type | None, *packages: str) -> bool:
    return cls is not None and cls.__module__.partition('.')[0] in packages


def _check_metrics(problems: Problems, section: object) -> None:
    """``val.metrics``: BasicSR looks the names up at the first validation, hours later."""
    for name, metric in section.items() if isinstance(section, Mapping) else ():
        path = f'val.metrics.{name}'
        function = _find(problems, path, metric, METRIC_REGISTRY, 'metric')
        if function is None:
            continue
        common = {k: v for k, v in metric.items() if k in keys_of(MetricOptions)}
        _read(problems, path, MetricOptions, common)
        own = {k: v for k, v in metric.items() if k != 'better'}
        _check_arguments(problems, path, function, own, ('img', 'img2'))


def _check_datasets(
    problems: Problems, options: dict, is_train: bool, here: bool
) -> dict[str, Any]:
    """Typed sections of data sets that declare their options, those of others as they are."""
    found, datasets = {}, options.get('datasets')
    for phase, section in datasets.items() if isinstance(datasets, Mapping) else ():
        path = f'datasets.{phase}'
        if not rules.is_read(str(phase), is_train):
            continue
        cls = _find(problems, path, section, DATASET_REGISTRY, 'data set')
        if cls is None:
            continue
        declared = getattr(cls, 'Options', BasicDataset)
        own = declared is not BasicDataset
        also = frozenset() if own else frozenset(ALSO_READ['datasets'].split())
        typed = _read(problems, path, declared, section, foreign=not own, also=also.__contains__)
        found[str(phase)] = typed if hasattr(cls, 'Options') else section
    return found
