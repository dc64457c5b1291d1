"""Replacing a function of BasicSR everywhere it was imported, once and reversibly readable."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType


def stock(function: Callable) -> Callable:
    """The function of BasicSR behind ``function``, or ``function`` itself if it replaces none."""
    return getattr(function, 'replaces', function)


def replace(owner: ModuleType | type, name: str, replacement: Callable) -> None:
    """Puts ``replacement`` where BasicSR keeps ``owner.name``; a second call changes nothing.

    BasicSR imports functions by name (``from basicsr.utils.options import parse_options``), so a
    function of a module is replaced in every loaded module of BasicSR that holds it. The original
    stays readable as ``replacement.replaces``.

    Raises:
        ImportError: ``owner`` has no such function, so this BasicSR is not the one known here.
    """
    current = getattr(owner, name, None)
    if current is None:
        raise ImportError(
            f'{owner.__name__}.{name} does not exist, so the installed BasicSR is not the 1.4.2 '
            'that unfoldldm_basicsr knows. Fix: pip install --no-build-isolation '
            '--force-reinstall --no-deps basicsr==1.4.2'
        )
    if current is replacement:
        return
    replacement.replaces = stock(current)
    if isinstance(owner, type):
        setattr(owner, name, replacement)
        return
    for module_name, module in list(sys.modules.items()):
        inside = module_name == 'basicsr' or module_name.startswith('basicsr.')
        if inside and getattr(module, name, None) is current:
            setattr(module, name, replacement)
