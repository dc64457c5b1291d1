"""Is a value of an option file of the right kind? Answers are ends of sentences, '' when it is."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

from unfoldldm_basicsr.common.suggest import did_you_mean

_NAMES = {
    bool: 'true or false',
    int: 'a whole number',
    float: 'a number',
    str: 'a text',
    list: 'a list',
    tuple: 'a list',
    dict: 'a section of "key: value" lines',
    type(None): '~ (nothing)',
}
_SEQUENCES = (list, tuple, Sequence, Iterable, Collection)


class Key(NamedTuple):
    """What an option may be.

    Attributes:
        types: Python types of the value; an ``int`` passes for ``float``, a ``bool`` for no number.
        help: what the option does, shown when it is wrong.
        low: smallest value, itself allowed.
        high: largest value, itself allowed.
        choices: the only values.
        below: a limit that the value does not reach.
    """

    types: tuple[type, ...]
    help: str = ''
    low: float | None = None
    high: float | None = None
    choices: tuple = ()
    below: float | None = None


def key_problem(value: object, key: Key) -> str:
    """What is wrong with ``value`` as the option ``key``."""
    about = f' ({key.help})' if key.help else ''
    if not _is_one_of(value, key.types):
        return f'must be {_names(key.types)}{about}, got {show(value)}.{_retype_hint(value, key)}'
    if value is None:
        return ''
    if isinstance(value, str) and not key.choices:
        return ''  # 'auto' and the like: limits are for numbers
    if key.choices and value not in key.choices:
        return f'unknown value {show(value)}{about}.{did_you_mean(value, key.choices)}'
    if not _is_one_of(value, (float,)):
        return ''
    if key.low is not None and not value >= key.low:
        return f'must be at least {key.low:g}{about}, got {show(value)}.'
    if key.high is not None and not value <= key.high:
        return f'must be at most {key.high:g}{about}, got {show(value)}.'
    if key.below is not None and not value < key.below:
        return f'must be less than {key.below:g}{about}, got {show(value)}.'
    return ''


def argument_problem(value: object, parameter: inspect.Parameter, hint: Any) -> str:
    """What is wrong with ``value`` for a parameter of a constructor.

    Args:
        value: from the option file.
        parameter: its default stands in for a missing annotation.
        hint: the resolved annotation, ``inspect.Parameter.empty`` if there is none.
    """
    if hint is not inspect.Parameter.empty:
        return _hint_problem(value, hint)
    default = parameter.default
    if isinstance(default, bool):
        return ''  # without an annotation, other values may be meant too
    if isinstance(default, (int, float)) and not _is_one_of(value, (float,)):
        return f'must be a number (default {default}), got {show(value)}.'
    if isinstance(default, (list, tuple)) and isinstance(value, str):
        return f'must be a list (default {list(default)}), got {show(value)}.'
    return ''


def show(value: object) -> str:
    """``value`` as it would stand in a message: short, and texts in quotes."""
    if value is None:
        return 'nothing (~)'
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + '...'


def _is_one_of(value: object, allowed: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in allowed
    if isinstance(value, int) and float in allowed:
        return True
    if isinstance(value, Mapping) and dict in allowed:
        return True
    return isinstance(value, allowed)


def _names(allowed: tuple[type, ...]) -> str:
    if float in allowed:
        allowed = tuple(t for t in allowed if t is not int)
    names = dict.fromkeys(_NAMES.get(t, t.__name__) for t in allowed)
    return ' or '.join(names)


def _retype_hint(value: object, key: Key) -> str:
    if isinstance(value, str) and (int in key.types or float in key.types):
        return ' Write the number without quotes and units.'
    if isinstance(value, float) and int in key.types and value.is_integer():
        return f' Write {int(value)}.'
    return ''


def _hint_problem(value: object, hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return ''
    if origin in (typing.Union, types.UnionType):
        answers = [_hint_problem(value, a) for a in arguments if _is_plain(a)]
        if '' in answers:
            return ''
        deeper = [a for a in answers if a.startswith('item ')]
        return deeper[0] if deeper else f'must be {_hint_names(hint)}, got {show(value)}.'
    if origin is Literal:
        ok = any(value == a and type(value) is type(a) for a in arguments)
        return '' if ok else f'unknown value {show(value)}.{did_you_mean(value, arguments)}'
    base = origin or hint
    if base in _SEQUENCES:
        return _sequence_problem(value, base, arguments)
    if base in (dict, Mapping):
        return '' if isinstance(value, Mapping) else f'must be {_NAMES[dict]}, got {show(value)}.'
    if base is None or base in _NAMES:
        kind = type(None) if base is None else base
        return '' if _is_one_of(value, (kind,)) else f'must be {_NAMES[kind]}, got {show(value)}.'
    return ''  # a class: nothing an option file can hold, so the constructor decides


def _is_plain(hint: Any) -> bool:
    """Whether a value of an option file can be what ``hint`` says."""
    base = get_origin(hint) or hint
    return (
        base in (Any, Literal, typing.Union, types.UnionType, dict, Mapping, None)
        or base in _SEQUENCES
        or base in _NAMES
    )


def _sequence_problem(value: object, base: type, arguments: tuple) -> str:
    if not isinstance(value, (list, tuple)):
        return f'must be a list, got {show(value)}.'
    items = [a for a in arguments if a is not Ellipsis]
    if base is tuple and arguments and Ellipsis not in arguments:
        if len(value) != len(items):
            return f'must be a list of {len(items)} values, got {show(value)}.'
    else:
        items = items[:1] * len(value)
    for index, (item, hint) in enumerate(zip(value, items, strict=False)):
        problem = _hint_problem(item, hint)
        if problem:
            return f'item {index} {problem}'
    return ''


def _hint_names(hint: Any) -> str:
    names = []
    for argument in get_args(hint):
        base = get_origin(argument) or argument
        if base is Literal:
            names.append(' or '.join(show(a) for a in get_args(argument)))
        elif base in _SEQUENCES:
            names.append('a list')
        else:
            names.append(_NAMES.get(base, getattr(base, '__name__', str(base))))
    return ' or '.join(dict.fromkeys(names))
