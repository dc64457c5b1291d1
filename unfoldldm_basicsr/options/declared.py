"""Declarations of classes: their own, or made from the signature of their constructor."""

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from basicsr.utils.registry import METRIC_REGISTRY
from pydantic import AfterValidator, Field, Strict, create_model

from unfoldldm_basicsr.common.declaration import Options
from unfoldldm_basicsr.common.registration import KNOWN, registered, whose

_EMPTY = inspect.Parameter.empty
_ANY = re.compile('.*', re.DOTALL)  # keys
_SCALARS = (bool, int, float, str, type(None), None)
_LISTS = (list, Sequence, Iterable, Collection)


@functools.cache
def options_of(
    owner: Callable,
    given: tuple[str, ...] = (),
    base: type[Options] = Options,
    known: type[Options] = Options,
) -> type[Options]:
    """Declaration of what a section may say about a class or function of anybody.

    Args:
        owner: one with ``Options`` is declared by these.
        given: parameters that do not come from the option file.
        base: declares keys beside.
        known: types parameters of these names; declares all keys where the owner takes any
            (``**kwargs``).

    What a project writes beside its parameters is for readers: Python holds no value to it.
    """
    if hasattr(owner, 'Options'):
        return owner.Options
    parameters = inspect.signature(owner).parameters
    meant = whose(owner) in KNOWN or str(getattr(owner, '__module__', '')).startswith('torch.')
    known = known if meant else base
    try:
        hints = typing.get_type_hints(owner.__init__ if inspect.isclass(owner) else owner)
    except (NameError, TypeError, AttributeError):  # annotations of names that are not imported
        hints = {}
    fields = {}
    for name, p in parameters.items():
        if name in given or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY):
            continue
        default = ... if p.default is _EMPTY else p.default
        if name in known.model_fields:
            fields[name] = (known.model_fields[name].rebuild_annotation(), Field(default))
            continue
        annotation = _plain(hints[name]) if name in hints else _like(name, p.default)
        annotation = annotation if meant else Any
        # The name of a field is free of what pydantic keeps for itself; the alias is the key.
        fields[f'key_{len(fields)}'] = (annotation, Field(default, alias=name))
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    base = known if takes_any else base
    declared = create_model(f'{owner.__name__}Options', __base__=base, **fields)
    declared.also = (base.also if meant else _ANY) if takes_any else None
    return declared


def needs_truth(metric: object) -> bool:
    """Whether a metric of that name compares an image with its ground truth."""
    function = registered(METRIC_REGISTRY, metric)
    truth = function and inspect.signature(function).parameters.get('img2')
    return truth is not None and truth.default is _EMPTY


def _plain(hint: Any) -> Any:
    """An annotation as far as values of an option file can be told by it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        members = [_plain(a) for a in arguments]
        members = [m for m in members if m is not Any]
        return Union[tuple(members)] if members else Any  # noqa: UP007
    if origin in (Literal, Annotated) or hint in _SCALARS:
        return hint
    base = origin or hint
    if base is tuple:
        inner = tuple(a if a is Ellipsis else _plain(a) for a in arguments)
        return Annotated[tuple[inner] if inner else tuple, Strict(False)]
    if base in _LISTS:
        return Annotated[list[_plain(arguments[0]) if arguments else Any], Strict(False)]
    if base in (dict, Mapping):
        return dict[str, Any]
    return Any  # a class: nothing an option file can hold, so the constructor decides


def _like(name: str, default: Any) -> Any:
    """What a parameter without an annotation may be, judged by its default."""
    number = isinstance(default, int | float) and not isinstance(default, bool)
    if number and name.endswith('_weight'):  # of a loss, which is multiplied by it
        return float
    return Annotated[Any, AfterValidator(_unquoted)] if number else Any


def _unquoted(value: Any) -> Any:
    try:
        float(value if isinstance(value, str) else '')
    except ValueError:  # no text, or a word that may be meant
        return value
    raise ValueError('must be a number')
