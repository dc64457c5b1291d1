"""Finds out which of several arguments a constructor refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping


def blamed(build: Callable[..., object], arguments: Mapping, errors: tuple[type, ...]) -> list[str]:
    """Arguments that ``build`` refuses: those without which it succeeds on the others.

    Keys of a mapping are named with it, ``outer.inner``. For errors from the depths of a library,
    which do not say whose value they are about.

    Args:
        build: fails with ``arguments``.
        arguments: keyword arguments.
        errors: what a failure raises.
    """
    found = []
    for name, value in arguments.items():
        inner = []
        if isinstance(value, Mapping):

            def build_with(_name: str = name, **kept: object) -> object:
                return build(**{**arguments, _name: kept})

            inner = [f'{name}.{key}' for key in blamed(build_with, value, errors)]
        if not inner:
            try:
                build(**{k: v for k, v in arguments.items() if k != name})
            except errors:
                continue
        found += inner or [str(name)]
    return found
