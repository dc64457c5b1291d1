"""Building what an option file names, networks without memory for their weights."""

import pickle
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.optim import Optimizer

from unfoldldm_basicsr.common.cost import build_on_meta
from unfoldldm_basicsr.common.declaration import show

# Those of torch that need no closure, no sparse gradients, and not only matrices.
OPTIMIZERS = [
    (name, cls)
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type)
    and issubclass(cls, Optimizer)
    and name not in ('Optimizer', 'LBFGS', 'SparseAdam', 'Muon')
]
_MODULES = 10_000  # more than that would only hang


class TooLargeError(ValueError):
    """A network has more modules than any that could be trained: building it would take hours."""


def on_meta(cls: type[nn.Module], **arguments: Any) -> nn.Module:
    """Builds a network on the meta device; TooLargeError, and what its constructor raises."""
    left = iter(range(_MODULES))

    def count(*_: object) -> None:
        if next(left, None) is None:
            raise TooLargeError(f'too large, more than {_MODULES} modules')

    with warnings.catch_warnings(), register_module_module_registration_hook(count):
        warnings.simplefilter('ignore')  # of layers without a single weight, for example
        return build_on_meta(cls, deepcopy(arguments))


def refusal(
    name: str, arguments: Mapping, error: Exception, construct: Callable[..., object]
) -> str:
    """What a constructor raised, with the arguments that it is about.

    Those are the ones that the error names, else those that :func:`_blamed` finds, else all.
    """
    words = set(re.findall(r'\w+', str(error)))
    about = {key: value for key, value in arguments.items() if str(key) in words}
    if isinstance(error, TooLargeError):  # a search for it would build as many again and again
        about = arguments
    elif not about or any(isinstance(value, Mapping) for value in about.values()):
        about = _blamed(construct, arguments) or about or arguments
    kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
    if isinstance(error, pickle.UnpicklingError):
        kind, error = '', 'a file that it loads holds more than data and could execute code'
    values = ', '.join(f'{key}: {show(value)}' for key, value in about.items())
    return (
        f'{name} cannot be built with these values: {kind}{str(error).rstrip(".")}'
        f'{f" (look at {values})" if values else ""}.'
    )


def _blamed(build: Callable[..., object], arguments: Mapping) -> dict[str, object]:
    """Arguments without which ``build`` succeeds on the others, or that it refuses alone."""

    def fails(names: Collection[str]) -> bool:
        try:
            build(**{name: arguments[name] for name in names})
        except Exception:  # noqa: BLE001  (of a class of anybody, handed wrong values)
            return True
        return False

    found = [name for name in arguments if not fails(arguments.keys() - {name})]
    if not found and not fails(()):
        found = [name for name in arguments if fails([name])]
    return {name: arguments[name] for name in found}
