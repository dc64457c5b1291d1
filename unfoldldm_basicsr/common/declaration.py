"""Options are declared once, as a pydantic model beside the class that uses them.

    class MixingOptions(Options):
        beta: PositiveFloat = 1.2
        \"\"\"Parameter of the Beta distribution that the share is drawn from.\"\"\"

    @takes(MixingOptions)
    class Mixing:
        def __init__(self, options: MixingOptions): ...

    Mixing(beta=1.0)        # as BasicSR builds it, from a section of an option file

The declaration holds key, type, range, default and help; the check of option files, constructors
and the documentation all read it. Types are strict, as YAML tells them apart: a whole number
passes for a number, nothing else is converted; lists become tuples.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Strict, ValidationError

from unfoldldm_basicsr.common.suggest import did_you_mean

T = TypeVar('T')
Tuple = Annotated[tuple[T, ...], Strict(False)]  # ``Tuple[int]``: a YAML list of any length


class Options(BaseModel):
    """Base of every declared section: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(
        strict=True,
        extra='forbid',
        frozen=True,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
    )


class Problem(NamedTuple):
    """One thing that is wrong: ``path`` is the key, ``message`` ends the sentence it begins."""

    path: str
    message: str


class OptionError(ValueError):
    """Values that do not fit their declaration; ``problems`` has each of them."""

    def __init__(self, owner: str, problems: list[Problem]):
        self.problems = problems
        super().__init__(' '.join(f'{owner}: {path} {message}' for path, message in problems))


def read(declared: type[Options], values: Mapping[str, Any], owner: str = '') -> Options:
    """Typed options made of a section of an option file.

    Raises:
        OptionError: unknown keys, missing keys, values of a wrong type or range: all of them.
    """
    try:
        return declared.model_validate(dict(values))
    except ValidationError as error:
        problems = list(problems_of(error, declared, values))
        raise OptionError(owner or declared.__name__.removesuffix('Options'), problems) from None


def takes(declared: type[Options]) -> Callable[[type[T]], type[T]]:
    """Lets a class whose constructor wants typed options be built from keyword arguments.

    The class keeps ``Options`` (its declaration), and its signature shows every key with type and
    default. Subclasses hand typed options on: ``super().__init__(options)``.
    """

    def decorate(cls: type[T]) -> type[T]:
        init = cls.__init__

        @functools.wraps(init)
        def build(self, options: Options | None = None, /, **values: Any) -> None:
            init(self, read(declared, values, cls.__name__) if options is None else options)

        keys = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=field.rebuild_annotation(),
                default=inspect.Parameter.empty
                if field.is_required()
                else field.get_default(call_default_factory=True),
            )
            for name, field in declared.model_fields.items()
        ]
        build.__signature__ = inspect.Signature(
            [inspect.Parameter('self', inspect.Parameter.POSITIONAL_ONLY), *keys]
        )
        cls.__init__, cls.Options = build, declared
        return cls

    return decorate


def problems_of(
    error: ValidationError, declared: type[Options], values: Mapping[str, Any]
) -> Iterator[Problem]:
    """What pydantic found, one problem for each key: cause and nearest name."""
    seen = set()
    for found in error.errors():
        key = str(found['loc'][0]) if found['loc'] else ''
        if key in seen:  # one line for each member of a union
            continue
        seen.add(key)
        if found['type'] == 'extra_forbidden':
            yield Problem(key, f'is not an option.{did_you_mean(key, declared.model_fields)}')
        elif found['type'] == 'missing':
            yield Problem(key, 'is missing.')
        else:
            message = found['msg'].removeprefix('Input should').removeprefix('Value error, ')
            yield Problem(key, f'{message.strip()}, got {values[key]!r}.')


def help_of(declared: type[Options]) -> dict[str, str]:
    """The text under each key of a declaration and of its bases, read from the source."""
    texts: dict[str, str] = {}
    for cls in reversed(declared.__mro__):
        if not (issubclass(cls, Options) and cls is not Options):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
        for key, text in itertools.pairwise(body):
            if isinstance(key, ast.AnnAssign) and isinstance(text, ast.Expr):
                texts[key.target.id] = inspect.cleandoc(ast.literal_eval(text.value))
    return texts
