"""Registration in BasicSR's registries: idempotent, and a user's own class goes first."""

import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar('T', bound=type)
SECOND_NAME = '{}_unfoldldm'
_OURS = __name__.partition('.')[0]


def register(registry) -> Callable[[T], T]:
    """Returns a class decorator that registers under the class's own name in ``registry``.

    BasicSR's registries assert on every second registration, so reloading a module (notebooks,
    ``importlib.reload``) fails there. Here the same module may register again. Where a project has
    a class of that name already, the class is registered as ``NAME_unfoldldm`` only.
    """

    def decorate(obj: T) -> T:
        name = obj.__name__
        present = registry._obj_map.get(name, obj)
        if present.__module__ != obj.__module__:
            _say(registry, name, present)
            name = SECOND_NAME.format(name)
        registry._obj_map[name] = obj
        return obj

    return decorate


def registered(registry: Iterable[tuple[str, Any]], name: object) -> Any:
    """The class or function of that name in a registry of BasicSR, None if there is none."""
    known = dict(iter(registry))
    return known.get(name, known.get(f'{name}_basicsr')) if isinstance(name, str) else None


def do_register(self, name: str, obj: Any, suffix: str | None = None) -> None:
    """Replaces ``Registry._do_register``: a project's class takes the name of one of this package.

    BasicSR ends with an AssertionError, so that a project with a Restormer of its own could not
    import this package.
    """
    present = self._obj_map.get(name)
    taken = present is not None and not isinstance(suffix, str) and by(present, _OURS)
    if taken and not by(obj, _OURS):
        self._obj_map[SECOND_NAME.format(name)] = self._obj_map.pop(name)
        _say(self, name, obj)
    do_register.replaces(self, name, obj, suffix)


def by(obj: Any, *packages: str) -> bool:
    """Whether a class or function, if there is one, is one of these packages."""
    return obj is not None and obj.__module__.partition('.')[0] in packages


def of_somebody_else(cls: type | None) -> bool:
    """Whether a model or data set is neither BasicSR's nor of this package, nor made from one."""
    own = [base for base in getattr(cls, '__mro__', ()) if base.__name__ != 'BaseModel']
    return bool(own) and not any(by(base, 'basicsr', _OURS) for base in own)


def _say(registry: Any, name: str, winner: Any) -> None:
    logging.getLogger('basicsr').warning(
        "'%s' (%s) is that of %s; the one of this package is called '%s'.",
        name,
        registry._name,
        winner.__module__,
        SECOND_NAME.format(name),
    )
