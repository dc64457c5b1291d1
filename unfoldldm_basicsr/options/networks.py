"""Building what an option file names, networks without memory for their weights."""

import pickle
import re
import warnings
from collections.abc import Mapping
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


def refusal(name: str, arguments: Mapping, error: Exception) -> str:
    """What a constructor raised, with the arguments that it names, else all."""
    words = set(re.findall(r'\w+', str(error)))
    about = {key: value for key, value in arguments.items() if str(key) in words} or arguments
    kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
    if isinstance(error, pickle.UnpicklingError):
        kind, error = '', 'a file that it loads holds more than data and could execute code'
    values = ', '.join(f'{key}: {show(value)}' for key, value in about.items())
    return (
        f'{name} cannot be built with these values: {kind}{str(error).rstrip(".")}'
        f'{f" (look at {values})" if values else ""}.'
    )
