"""Checks a whole option dict before anything is built, written or renamed.

All problems are reported at once, each as ``FILE: key.path: cause and remedy``. Nothing here
changes the options, sets BasicSR's logger up, or leaves a trace on the disk.

The way of an option dict: names of forks are translated and what BasicSR demands is filled in; each
section is read as its declaration says (:func:`.run.typed`), and each section with a ``type`` as
that class says, which is then built where it costs nothing; rules look at what must fit together;
last, files and data of this machine are opened.
"""

import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from basicsr.models import lr_scheduler
from basicsr.utils import registry as registries
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.optim import Adam, Optimizer

from unfoldldm_basicsr.common import sections
from unfoldldm_basicsr.common.cost import build_on_meta
from unfoldldm_basicsr.common.declaration import Options, show
from unfoldldm_basicsr.common.registration import KNOWN, registered, whose
from unfoldldm_basicsr.common.suggest import did_you_mean, written_as
from unfoldldm_basicsr.options import environment, rules
from unfoldldm_basicsr.options.aliases import MODELS, translate
from unfoldldm_basicsr.options.declared import options_of
from unfoldldm_basicsr.options.defaults import fill_defaults
from unfoldldm_basicsr.options.run import (
    SET_AT_START,
    Report,
    Run,
    constants,
    flatten,
    inherits,
    is_read,
    section_values,
    typed,
)

# Those of torch that need no closure, no sparse gradients, and not only matrices.
OPTIMIZERS = [
    (name, cls)
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type)
    and issubclass(cls, Optimizer)
    and name not in ('Optimizer', 'LBFGS', 'SparseAdam', 'Muon')
]
_LOADS_WEIGHTS = ('PerceptualLoss',)  # building it would fetch a file

_MODULES = 10_000  # of a network: more would only hang


def _network(cls: type[nn.Module], /, **arguments: Any) -> nn.Module:
    """Builds a network without memory for its weights."""
    left = iter(range(_MODULES))

    def count(*_: object) -> None:
        if next(left, None) is None:
            raise ValueError(f'too large, more than {_MODULES} modules')

    with warnings.catch_warnings(), register_module_module_registration_hook(count):
        warnings.simplefilter('ignore')  # of layers without a single weight, for example
        return build_on_meta(cls, deepcopy(arguments))


def _loss(cls: type, /, **arguments: Any) -> None:
    """Builds a loss of BasicSR or of this package; what others do when they are built is theirs."""
    if whose(cls) in KNOWN and cls.__name__ not in _LOADS_WEIGHTS:
        cls(**arguments)


def _optimiser(cls: type, /, **arguments: Any) -> Optimizer:
    return cls([nn.Parameter(torch.zeros(1))], **arguments)


def _schedule(cls: type, /, **arguments: Any) -> None:
    cls(_optimiser(Adam), **arguments)


def _data_options(cls: type) -> type[Options]:
    stock = sections.AnyDataset if whose(cls) == 'theirs' else sections.BasicDataset
    return getattr(cls, 'Options', stock)


class Kind(NamedTuple):
    """What the ``type`` of a section names, and what its other keys are."""

    what: str
    registry: Iterable[tuple[str, Any]]
    build: Callable[..., Any] | None = None  # what is made of class and arguments to try them
    options: Callable[[Any], type[Options]] = options_of
    where: str = 'is registered'


_OF_STOCK = "is known to BasicSR's own models (model_type: RestorationModel knows more)"
_STEPS, _CYCLES = lr_scheduler.MultiStepRestartLR, lr_scheduler.CosineAnnealingRestartLR
_SCHEDULES = [('MultiStepLR', _STEPS), *((cls.__name__, cls) for cls in (_STEPS, _CYCLES))]
_of_schedule = partial(
    options_of, given=('optimizer', 'last_epoch'), known=sections.ScheduleOptions
)
_of_metric = partial(
    options_of, given=('img', 'img2'), base=sections.AnyMetric, known=sections.MetricOptions
)
_of_optimiser = partial(options_of, given=('params',))
NETWORK = Kind('network', registries.ARCH_REGISTRY, _network)
LOSS = Kind('loss', registries.LOSS_REGISTRY, _loss)
OPTIMISER = Kind('optimiser', OPTIMIZERS, _optimiser, _of_optimiser)
SCHEDULE = Kind('schedule', _SCHEDULES, _schedule, _of_schedule, _OF_STOCK)
METRIC = Kind('metric', registries.METRIC_REGISTRY, None, _of_metric)
DATASET = Kind('data set', registries.DATASET_REGISTRY, None, _data_options)
ANY = Kind('class', ())


def project_hint(problems: Iterable[str]) -> str:
    """What makes the classes of a project known, where a problem is an unknown one."""
    seen = 'Classes of a project of yours are seen with --import PACKAGE, if it registers them '
    unknown = any(' is registered.' in line for line in problems)
    return f'{seen}(@ARCH_REGISTRY.register() and the like).' if unknown else ''


@environment.basicsr_logger_untouched()
def examine(
    options: dict,
    file: str,
    is_train: bool,
    *,
    strict: bool = True,
    later: bool = False,
    **start: Any,
) -> Report:
    """Checks an option dict as read from ``file``, not completed; it stays unchanged.

    ``strict``: whether keys that are not known are refused; ``later``: leave the data sets to
    :func:`.environment.open_datasets` if all else is right; ``start``: ``here``, ``launcher`` and
    ``resuming`` of :class:`.Run`.
    """
    options = deepcopy(options)
    report = Report(options, file, strict)
    report.notes = translate(options)
    fill_defaults(options, is_train)
    options['is_train'] = is_train
    model = registered(registries.MODEL_REGISTRY, options.get('model_type'))
    if options['num_gpu'] == 'auto':  # BasicSR's own models split batches over several
        present, alone = torch.cuda.device_count(), start.get('launcher') in (None, 'none')
        single = alone and getattr(model, 'one_gpu_per_process', False)
        options['num_gpu'] = min(present, 1) if single else present
    for key in SET_AT_START['path'] if isinstance(options['path'], dict) else ():
        if options['path'].pop(key, None) is not None:
            report.add(f'path.{key}', 'is set when a run starts; not read.', 'warning')
    run = report.run = typed(model, options, report, **start)
    if model is None and isinstance(options.get('model_type'), str):
        names = [*MODELS, *(name for name, _ in registries.MODEL_REGISTRY)]
        hint, name = did_you_mean(options['model_type'], names), show(options['model_type'])
        report.add('model_type', f'no model {name} is registered.{hint}')
    for path, section, kind in _classes(run):
        if not report.at(path):
            made = _check_class(report, path, section, kind)
            if kind is NETWORK:
                run.networks[path] = made
            elif kind is DATASET:
                run.datasets[path] = made
    _apply_rules(report)
    if report.refused or not later:
        environment.open_datasets(report)
    return report


def _apply_rules(report: Report) -> None:
    """Adds what rules find; one that stumbles over values found to be wrong before has no news."""
    run, not_read = report.run, environment.not_read(report.run)
    own = environment.RULES if run.here else ()
    for rule in (*rules.RULES, *getattr(run.model, 'rules', ()), *own):
        try:
            for path, *rest in rule(run):
                if path not in not_read:
                    report.add(path, *rest)
        except Exception:
            if not report.refused:
                raise


# ---- sections that name a class -----------------------------------------------------------------


def _classes(run: Run) -> Iterator[tuple[str, Any, Kind]]:
    """Path and content of every section with a ``type``, and what that names."""
    for key, section in run.opt.items():
        if str(key).startswith('network_') and _is_network(run, key, section):
            yield key, section, NETWORK
    for name, section in section_values(run.opt, 'train').items() if run.is_train else ():
        kind = _kind_in_train(run, str(name), section) if isinstance(section, Mapping) else None
        if kind is not None:
            yield f'train.{name}', section, kind
    for name, section in (run.val.metrics or {}).items():
        yield f'val.metrics.{name}', section, METRIC
    for phase, section in section_values(run.opt, 'datasets').items():
        if is_read(str(phase), run.is_train):
            yield f'datasets.{phase}', section, DATASET


def _is_network(run: Run, key: str, section: Any) -> bool:
    """Other entries of such names are for a model of a project to read."""
    if whose(run.model) in ('derived', 'theirs'):
        stock = next((base for base in run.model.__mro__ if whose(base) in KNOWN), None)
        read = section is not None and key in constants(stock)
        return read or (isinstance(section, Mapping) and 'type' in section)
    wanted = section is not None or whose(run.model) == 'basicsr'
    return isinstance(section, Mapping) or (wanted and key in constants(run.model))


def _kind_in_train(run: Run, name: str, section: Mapping) -> Kind | None:
    """What a section of ``train`` names; None where that is for the model alone to say."""
    model, declared = whose(run.model), name in type(run.train).model_fields
    if name.endswith('_opt'):
        known = declared or model in KNOWN or registered(LOSS.registry, section.get('type'))
        return LOSS if known else None
    optimiser = name.startswith('optim_')
    if model == 'theirs' or not (optimiser or name == 'scheduler'):
        return None
    if hasattr(run.model, 'sections'):
        return OPTIMISER if optimiser else ANY
    if not inherits(run.model, 'optimizers' if optimiser else 'schedulers'):
        return None
    if not optimiser:
        return SCHEDULE
    # one that a project adds is for the project to read
    return _stock_optimisers(run.model) if name in constants(run.model) else None


def _stock_optimisers(model: type) -> Kind:
    """Those that a model of BasicSR takes: Adam alone in the release, more in its repository."""
    named = model.get_optimizer.__code__.co_consts
    known = [(name, cls) for name, cls in OPTIMIZERS if name in named]
    return OPTIMISER._replace(registry=known or OPTIMIZERS, where=_OF_STOCK)


def _find(report: Report, path: str, section: object, kind: Kind) -> Any:
    """What ``section['type']`` names, or None with the problem added."""
    if not isinstance(section, Mapping):
        report.add(path, f'must be a section with a type, got {show(section)}.')
    elif 'type' not in section:
        message = f'is missing: the {kind.what} to use.{written_as("type", section)}'
        report.add(f'{path}.type', message)
    elif kind is not ANY:
        name, known = section['type'], dict(iter(kind.registry))
        if found := registered(kind.registry, name):
            return found
        message = f'no {kind.what} {show(name)} {kind.where}.{did_you_mean(name, known)}'
        report.add(f'{path}.type', message)
    return None


def _check_class(report: Report, path: str, section: Any, kind: Kind) -> Any:
    """What is built of a section, or its options if nothing is; None with the problems added."""
    owner = _find(report, path, section, kind)
    if owner is None:
        return None
    declared = kind.options(owner)
    own = ('type',) if 'type' not in declared.model_fields else ()

    def arguments() -> dict[str, Any]:
        return {str(key): value for key, value in section.items() if key not in own}

    options = report.read(path, declared, arguments(), owner)
    if kind.build is None:
        return options
    if report.at(path):
        return None
    try:
        return kind.build(owner, **arguments())  # without what the reading has taken out
    except Exception as error:  # noqa: BLE001  (of a class of anybody)
        if report.run.here or not isinstance(error, FileNotFoundError):  # its weights elsewhere
            report.add(path, _refusal(owner.__name__, arguments(), error))
    return None


def _refusal(name: str, arguments: Mapping, error: Exception) -> str:
    """What a constructor raised, with the arguments that it names, else all."""
    words = set(re.findall(r'\w+', str(error)))
    about = {key: value for key, value in arguments.items() if str(key) in words} or arguments
    kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
    if isinstance(error, pickle.UnpicklingError):
        kind, error = '', 'a file that it loads holds more than data and could execute code'
    flat = {}
    for key, value in about.items():  # nothing inside an empty section; lists as a whole
        inner = flatten(value, str(key)) if isinstance(value, Mapping) else {}
        flat |= inner or {str(key): value}
    values = ', '.join(f'{path}: {show(value)}' for path, value in flat.items())
    return (
        f'{name} cannot be built with these values: {kind}{str(error).rstrip(".")}'
        f'{f" (look at {values})" if values else ""}.'
    )
