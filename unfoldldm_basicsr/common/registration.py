"""Registration in BasicSR's registries: idempotent, and a user's own class goes first."""

import logging
from collections.abc import Iterable
from typing import Any

SECOND_NAME = '{}_unfoldldm'
_PACKAGES = {__name__.partition('.')[0]: 'ours', 'basicsr': 'basicsr'}
KNOWN = tuple(_PACKAGES.values())


def registered(registry: Iterable[tuple[str, Any]], name: object) -> Any:
    """The class or function of that name in a registry of BasicSR, None if there is none."""
    known = dict(iter(registry))
    return known.get(name, known.get(f'{name}_basicsr')) if isinstance(name, str) else None


def do_register(self, name: str, obj: Any, suffix: str | None = None) -> None:
    """Replaces ``Registry._do_register``, which refuses every second class of a name.

    A module may register again (notebooks, ``importlib.reload``). Where a project has a class of a
    name of this package, whichever comes first, ours goes by ``NAME_unfoldldm``.
    """
    present = None if isinstance(suffix, str) else self._obj_map.get(name)
    if present is not None and present.__module__ == obj.__module__:
        self._obj_map[name] = obj
    elif present is not None and 'ours' in (whose(obj), whose(present)):
        ours, winner = (obj, present) if whose(obj) == 'ours' else (present, obj)
        second = SECOND_NAME.format(name)
        self._obj_map |= {name: winner, second: ours}
        text = "'%s' (%s) is that of %s; the one of this package is called '%s'."
        places = name, self._name, winner.__module__, second
        logging.getLogger('basicsr').warning(text, *places)
    else:
        do_register.replaces(self, name, obj, suffix)


def whose(obj: Any) -> str:
    """Whose class or function that is, which says how much is known of it.

    'ours' or 'basicsr'; 'derived', in a project, from one of these (which the base of all models of
    BasicSR does not count for); 'theirs'; 'nobody' for None.
    """
    if obj is None:
        return 'nobody'
    bases = getattr(obj, '__mro__', (obj,))
    bases = [base for base in bases if getattr(base, '__name__', '') != 'BaseModel']
    owners = [_PACKAGES.get(module_of(base).partition('.')[0]) for base in bases]
    return owners[0] or ('derived' if any(owners) else 'theirs')


def module_of(obj: Any) -> str:
    """Name of the module that a class or function was written in.

    A wrapper made with functools.wraps bears the name of another, but for those of torch that is
    where it belongs.
    """
    written = getattr(obj, '__globals__', {}).get('__name__', 'torch')
    wrapped = written.partition('.')[0] in ('torch', 'contextlib')
    return str(getattr(obj, '__module__', '')) if wrapped else written
