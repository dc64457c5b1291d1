"""Checks of sections that name a registered class: networks, losses, metrics, and their weights."""

from __future__ import annotations

import inspect
import pickle
import re
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from unfoldldm_basicsr.common.cost import build_on_meta
from unfoldldm_basicsr.common.suggest import did_you_mean, written_as
from unfoldldm_basicsr.options.blame import blamed
from unfoldldm_basicsr.options.problems import VALUE_ERRORS, Problems
from unfoldldm_basicsr.options.schema import METRIC
from unfoldldm_basicsr.options.values import argument_problem, key_problem, show
from unfoldldm_basicsr.weights.checkpoint import read_checkpoint
from unfoldldm_basicsr.weights.loading import misfit, phase1_misfit

_LARGEST = 100_000  # of a network's numbers: more blocks than that would only hang
_MODULES = 20_000
_EMPTY = inspect.Parameter.empty


def registered(registry, name: object) -> Any:
    """The class or function of that name, None if there is none."""
    known = dict(iter(registry))
    return known.get(name, known.get(f'{name}_basicsr')) if isinstance(name, str) else None


def find_registered(problems: Problems, path: str, section: object, registry, what: str) -> Any:
    """What ``section['type']`` names, or None with the problem added."""
    if not isinstance(section, Mapping):
        problems.add(path, f'must be a section with a type, got {show(section)}.')
        return None
    if 'type' not in section:
        problems.add(f'{path}.type', f'is missing: the {what} to use.{written_as("type", section)}')
        return None
    found = registered(registry, section['type'])
    if found is None:
        names = [name for name, _ in registry]
        problems.add(
            f'{path}.type',
            f'no {what} {show(section["type"])} is registered.'
            f'{did_you_mean(section["type"], names)}',
        )
    return found


def check_arguments(
    problems: Problems,
    path: str,
    section: Mapping,
    function: Callable,
    extra: tuple[str, ...] = (),
    given: tuple[str, ...] = (),
) -> bool:
    """Compares a section with the parameters of the class or function it is passed to.

    Args:
        problems: gets what is found.
        path: path of the section.
        section: the arguments, with ``type``.
        function: what takes them.
        extra: further keys that are read before the call.
        given: parameters that the caller provides.

    Returns:
        Whether nothing was found.
    """
    before = len(problems)
    parameters = inspect.signature(function).parameters
    named = {
        name: p
        for name, p in parameters.items()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY) and name not in given
    }
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    hints = _hints(function)
    owner = getattr(function, '__name__', str(function))
    for name, value in section.items():
        if name == 'type' or name in extra:
            continue
        if name not in named:
            if not takes_any or inspect.isfunction(function):
                known = [*named, *extra]
                problems.add(
                    f'{path}.{name}',
                    f'is not an argument of {owner}.{did_you_mean(name, known)}',
                )
            continue
        problem = argument_problem(value, named[name], hints.get(name, _EMPTY))
        if problem:
            problems.add(f'{path}.{name}', problem)
    for name, parameter in named.items():
        if parameter.default is _EMPTY and name not in section:
            problems.add(f'{path}.{name}', f'is missing: {owner} needs it.')
    return len(problems) == before


def _hints(function: Callable) -> dict[str, Any]:
    target = function.__init__ if inspect.isclass(function) else function
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError, AttributeError):  # annotations of names that are not imported
        return {}


def check_network(problems: Problems, path: str, section: object) -> nn.Module | None:
    """Checks ``network_g`` and the like; returns the network without memory for its weights."""
    from basicsr.utils.registry import ARCH_REGISTRY

    cls = find_registered(problems, path, section, ARCH_REGISTRY, 'network')
    if cls is None or not check_arguments(problems, path, section, cls):
        return None
    for name, value in section.items():
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(n, (int, float)) and abs(n) > _LARGEST for n in numbers):
            problems.add(f'{path}.{name}', f'{show(value)} is too large to build.')
            return None
    arguments = {k: v for k, v in section.items() if k != 'type'}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of layers without a single weight, for example
        try:
            with _limited_modules():
                return build_on_meta(cls, arguments)
        except _TooLargeError as error:
            _add_refusal(problems, path, cls, section, error, _largest(arguments))
            return None
        except VALUE_ERRORS as error:
            names = _at_fault(lambda **kept: build_on_meta(cls, kept), arguments, error)
            _add_refusal(problems, path, cls, section, error, names)
            return None


class _TooLargeError(ValueError):
    """A network has more modules than any that could be trained."""


@contextmanager
def _limited_modules() -> Iterator[None]:
    """Inside, a constructor that would go on for hours ends with an exception."""
    left = _MODULES

    def count(module: nn.Module, name: str, child: nn.Module | None) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise _TooLargeError(f'more than {_MODULES} modules')

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _largest(arguments: Mapping) -> list[str]:
    """The three arguments with the largest numbers."""
    sizes = _sizes(arguments)
    return sorted(sizes, key=sizes.__getitem__, reverse=True)[:3]


def _sizes(arguments: Mapping) -> dict[str, float]:
    sizes = {}
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            sizes |= {f'{name}.{key}': size for key, size in _sizes(value).items()}
            continue
        numbers = value if isinstance(value, (list, tuple)) else [value]
        sizes[str(name)] = max((n for n in numbers if isinstance(n, (int, float))), default=0)
    return sizes


def _at_fault(build: Callable[..., object], arguments: Mapping, error: Exception) -> list[str]:
    """The arguments that an error is about: those that it names, else those to blame."""
    words = set(re.findall(r'\w+', str(error)))
    named = [name for name in arguments if str(name) in words]
    if named and not any(isinstance(arguments[name], Mapping) for name in named):
        return named
    return blamed(build, arguments, VALUE_ERRORS) or named


def _value(section: Mapping, name: str) -> object:
    """The value of ``name``, which may be ``outer.inner``."""
    for part in [name] if name in section else name.split('.'):
        section = section[part]
    return section


def _add_refusal(
    problems: Problems,
    path: str,
    cls: type,
    section: Mapping,
    error: Exception | str,
    names: Sequence[str],
) -> None:
    """Adds what a constructor raised, with the arguments that it is about."""
    kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
    if isinstance(error, pickle.UnpicklingError):
        kind, error = '', 'a file that it loads holds more than data and could execute code'
    values = ', '.join(f'{name}: {show(_value(section, name))}' for name in names)
    problems.add(
        path,
        f'{cls.__name__} cannot be built with these values: {kind}{str(error).rstrip(".")}'
        f'{f" (look at {values})" if values else ""}.',
    )


def check_vector_length(problems: Problems, networks: Mapping[str, nn.Module | None]) -> None:
    """The degradation embedding ``network_e`` must give what ``network_g`` takes."""
    given, taken = (
        getattr(networks.get(name), 'embed_dim', None) for name in ('network_e', 'network_g')
    )
    if given is not None and taken is not None and given != taken:
        problems.add(
            'network_g.embed_dim',
            f'is {taken}, but network_e gives vectors of {given} numbers: set it to {given}.',
        )


def check_loss(problems: Problems, path: str, section: object) -> None:
    """Checks a ``train.*_opt`` section. Losses of BasicSR are not built: some download weights."""
    from basicsr.utils.registry import LOSS_REGISTRY

    cls = find_registered(problems, path, section, LOSS_REGISTRY, 'loss')
    if cls is None or not check_arguments(problems, path, section, cls):
        return
    for name, value in section.items():
        is_weight = str(name).endswith('_weight') and isinstance(value, (int, float))
        if is_weight and value < 0:
            problems.add(f'{path}.{name}', f'must not be negative, got {show(value)}.')
            return
    if cls.__module__.startswith('unfoldldm_basicsr.'):
        arguments = {k: v for k, v in section.items() if k != 'type'}
        try:
            cls(**arguments)
        except VALUE_ERRORS as error:
            names = _at_fault(cls, arguments, error)
            _add_refusal(problems, path, cls, section, error, names)
    elif 'reduction' in section and section['reduction'] not in ('none', 'mean', 'sum'):
        problems.add(
            f'{path}.reduction',
            f'unknown value {show(section["reduction"])}.'
            f'{did_you_mean(section["reduction"], ("none", "mean", "sum"))}',
        )


def check_metrics(problems: Problems, path: str, section: object, has_gt: bool) -> None:
    """Checks ``val.metrics``: BasicSR looks the names up at the first validation, hours later."""
    from basicsr.utils.registry import METRIC_REGISTRY

    if not isinstance(section, Mapping):
        problems.add(path, f'must be a section "name: {{type, ...}}", got {show(section)}.')
        return
    for name, metric in section.items():
        place = f'{path}.{name}'
        function = find_registered(problems, place, metric, METRIC_REGISTRY, 'metric')
        if function is None:
            continue
        check_arguments(problems, place, metric, function, ('better',), ('img', 'img2'))
        for argument in METRIC.keys() & metric.keys():
            problem = key_problem(metric[argument], METRIC[argument])
            if problem:
                problems.add(f'{place}.{argument}', problem)
        if 'img2' in inspect.signature(function).parameters and not has_gt:
            problems.add(
                place, 'compares with a ground truth, but no validation set has one: remove it.'
            )


def check_weights(
    problems: Problems,
    path: str,
    file: str,
    net: nn.Module | None,
    *,
    param_key: str | None = None,
    strict: bool = True,
    complete: bool = False,
    new_modules: Sequence[str] | None = None,
    arguments: Mapping[str, Any] | None = None,
    label: str = 'g',
) -> None:
    """Checks that a weight file can be read and fits a network.

    Args:
        problems: gets what is found.
        path: key path that names the file.
        file: the file.
        net: the network it goes to, None if that cannot be built.
        param_key: which weights of the file; None for those that are there.
        strict: every name must fit.
        complete: every tensor of the network must come from the file, strict or not.
        new_modules: for a file of an earlier phase: exactly the modules that are new since.
        arguments: what the network was built with, for a file of an earlier phase.
        label: of the network: network_g.
    """
    try:
        checkpoint = read_checkpoint(Path(file).expanduser(), param_key=param_key)
    except (ValueError, OSError) as error:
        problems.add(path, str(error))
        return
    if net is None:
        return
    if new_modules is not None:
        fault = phase1_misfit(net, checkpoint, new_modules, arguments)
    else:
        fault = misfit(net, checkpoint, strict=strict, allow_missing=not complete, label=label)
    if fault:
        problems.add(path, fault)
