"""Registration in BasicSR's registries: idempotent, and a user's own class goes first."""

import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar('T', bound=type)
SECOND_NAME = '{}_unfoldldm'
_PACKAGES = {__name__.partition('.')[0]: 'ours', 'basicsr': 'basicsr'}
KNOWN = tuple(_PACKAGES.values())


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
    taken = whose(present) == 'ours' and not isinstance(suffix, str)
    if taken and whose(obj) != 'ours':
        self._obj_map[SECOND_NAME.format(name)] = self._obj_map.pop(name)
        _say(self, name, obj)
    do_register.replaces(self, name, obj, suffix)


def whose(obj: Any) -> str:
    """Whose class or function that is, which says how much is known of it.

    'ours' or 'basicsr'; 'derived', in a project, from one of these (which the base of all models of
    BasicSR does not count for); 'theirs'; 'nobody' for None.
    """
    if obj is None:
        return 'nobody'
    bases = [base for base in getattr(obj, '__mro__', (obj,)) if base.__name__ != 'BaseModel']
    owners = [_PACKAGES.get(base.__module__.partition('.')[0]) for base in bases]
    return owners[0] or ('derived' if any(owners) else 'theirs')


def _say(registry: Any, name: str, winner: Any) -> None:
    logging.getLogger('basicsr').warning(
        "'%s' (%s) is that of %s; the one of this package is called '%s'.",
        name,
        registry._name,
        winner.__module__,
        SECOND_NAME.format(name),
    )
