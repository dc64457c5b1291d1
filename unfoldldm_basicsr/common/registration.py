"""Registration in BasicSR's registries: idempotent, and clear about name clashes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar('T', bound=type)


def register(registry) -> Callable[[T], T]:
    """Returns a class decorator that registers under the class's own name in ``registry``.

    BasicSR's registries assert on every second registration, so reloading a module (notebooks,
    ``importlib.reload``) fails there. Here the same module may register again; another may not.

    Args:
        registry: one of ``ARCH_REGISTRY``, ``DATASET_REGISTRY``, ``LOSS_REGISTRY``,
            ``METRIC_REGISTRY`` or ``MODEL_REGISTRY`` of ``basicsr.utils.registry``.

    Raises:
        KeyError: the name belongs to another package.
    """

    def decorate(obj: T) -> T:
        name = obj.__name__
        present = registry._obj_map.get(name)
        if present is None:
            registry.register(obj)
        elif present.__module__ == obj.__module__:
            registry._obj_map[name] = obj
        else:
            raise KeyError(
                f"The name '{name}' of BasicSR's {registry._name} registry is taken by "
                f'{present.__module__}, so {obj.__module__} cannot register it: '
                f'import only one of the two packages in a run.'
            )
        return obj

    return decorate
