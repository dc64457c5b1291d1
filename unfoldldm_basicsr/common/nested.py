"""Sections inside sections: what is wrong with the inner one keeps its place in the outer one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from unfoldldm_basicsr.common.declaration import NESTED, OptionError, Options, Problem, read


def read_nested(declared: type[Options], values: Mapping[str, Any], owner: str) -> Options:
    """:func:`read` for the validator of a field.

    Raises:
        ValidationError: what is wrong with which key, in the words of :func:`read`.
    """
    try:
        return read(declared, values, owner)
    except OptionError as error:
        raise invalid(error.problems) from None


def invalid(problems: Iterable[Problem]) -> ValidationError:
    """Problems at keys of the value of a field, for its validator to raise."""
    details = []
    for path, text, *_ in problems:
        place = tuple(int(part) if part.isdigit() else part for part in path.split('.') if part)
        kind = PydanticCustomError(NESTED, '{text}', {'text': text})
        details.append(InitErrorDetails(type=kind, loc=place, input=None))
    return ValidationError.from_exception_data('section', details)
