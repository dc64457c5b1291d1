"""Building the networks of an option file without memory for their weights."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from unfoldldm_basicsr.common.cost import build_on_meta
from unfoldldm_basicsr.common.declaration import show
from unfoldldm_basicsr.options.blame import blamed
from unfoldldm_basicsr.options.declared import registered

# What code that is handed wrong values raises; used where the values are the thing being tested.
VALUE_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    OSError,
    ImportError,
    pickle.UnpicklingError,
)
_LARGEST = 1_000_000  # of a network's numbers: more blocks than that would only hang
_MODULES = 20_000


def build(section: Mapping[str, Any]) -> tuple[nn.Module | None, str]:
    """The network of a section ``network_*`` on the meta device, or why it cannot be built.

    A class of somebody else whose numbers are no sizes of blocks is left alone: (None, '').
    """
    cls = registered(ARCH_REGISTRY, section.get('type'))
    if cls is None:
        return None, ''
    arguments = deepcopy({k: v for k, v in section.items() if k != 'type'})
    for name, size in _sizes(arguments).items():
        if size > _LARGEST:
            known = cls.__module__.partition('.')[0] in ('basicsr', 'unfoldldm_basicsr')
            return None, f'{name}: {size:g} is too large to build.' if known else ''
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of layers without a single weight, for example
        try:
            with _limited_modules():
                return build_on_meta(cls, deepcopy(arguments)), ''
        except _TooLargeError as error:
            sizes = _sizes(arguments)
            largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:3]
            return None, refusal(cls, arguments, error, largest)
        except VALUE_ERRORS as error:
            return None, refusal(
                cls, arguments, error, build=lambda **kept: build_on_meta(cls, kept)
            )


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
            raise _TooLargeError(f'too large, more than {_MODULES} modules')

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _sizes(arguments: Mapping) -> dict[str, float]:
    sizes = {}
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            sizes |= {f'{name}.{key}': size for key, size in _sizes(value).items()}
            continue
        numbers = value if isinstance(value, (list, tuple)) else [value]
        sizes[str(name)] = max((n for n in numbers if isinstance(n, (int, float))), default=0)
    return sizes


def refusal(
    cls: type,
    arguments: Mapping,
    error: Exception,
    names: Sequence[str] = (),
    build: Callable[..., object] | None = None,
) -> str:
    """What a constructor raised, with the arguments that it is about.

    Args:
        cls: the class.
        arguments: its arguments.
        error: what it raised.
        names: the arguments to look at; by default those that the error names, else those without
            which ``build`` succeeds.
        build: calls the constructor; ``cls`` by default.
    """
    if not names:
        words = set(re.findall(r'\w+', str(error)))
        names = [name for name in arguments if str(name) in words]
        if not names or any(isinstance(arguments[name], Mapping) for name in names):
            names = blamed(build or cls, arguments, VALUE_ERRORS) or names
    kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
    if isinstance(error, pickle.UnpicklingError):
        kind, error = '', 'a file that it loads holds more than data and could execute code'
    values = ', '.join(f'{name}: {show(_value(arguments, name))}' for name in names)
    return (
        f'{cls.__name__} cannot be built with these values: {kind}{str(error).rstrip(".")}'
        f'{f" (look at {values})" if values else ""}.'
    )


def _value(section: Mapping, name: str) -> object:
    """The value of ``name``, which may be ``outer.inner``."""
    for part in [name] if name in section else name.split('.'):
        section = section[part]
    return section
