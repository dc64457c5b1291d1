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

import ast
import functools
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError

from unfoldldm_basicsr.common.suggest import did_you_mean, nearest, written_as

T = TypeVar('T')
Tuple = Annotated[tuple[T, ...], Strict(False)]  # ``Tuple[int]``: a YAML list of any length


def count(**limits: float) -> Any:
    """Type of a whole number within limits (``ge=1``); 5e3, a float in YAML, is one."""
    whole = BeforeValidator(lambda v: int(v) if isinstance(v, float) and v.is_integer() else v)
    return Annotated[int, Field(**limits), whole]


_NUMBER = re.compile(r'[-+.\d].*')
_WORDS = {  # pydantic's, and those of option files
    'a valid dictionary': 'a section of "key: value" lines',
    'a valid integer': 'a whole number',
    'a valid number': 'a number',
    'a valid string': 'a text',
    'a valid boolean': 'true or false',
    'a valid list': 'a list',
    'a valid tuple': 'a list',
    'greater than or equal to': 'at least',
    'less than or equal to': 'at most',
}


class Options(BaseModel):
    """Base of every declared section: strict types, no unknown keys, immutable."""

    # keys that a class without a declaration reads beside; None: none, and it takes no others
    also: ClassVar[re.Pattern | None] = re.compile('(?!)')

    model_config = ConfigDict(
        strict=True,
        extra='forbid',
        defer_build=True,  # when first read: an import builds none
        frozen=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
    )


class Problem(NamedTuple):
    """One thing that is wrong: ``path`` is the key, ``message`` ends the sentence it begins."""

    path: str
    message: str
    kind: str = 'fault'
    """``unknown``: a key that nothing reads; ``warning``: nothing to refuse a run for."""


Problems = Iterator[Problem]  # what a rule gives


class OptionError(ValueError):
    """Values that do not fit their declaration; ``problems`` has each of them.

    A validator of a field may raise it for the section inside: its problems keep their places.
    """

    def __init__(self, owner: str, problems: list[Problem]):
        self.problems = problems
        super().__init__(' '.join(f'{owner}: {path} {message}' for path, message, _ in problems))


def read(declared: type[Options], values: Mapping[str, Any], owner: str) -> Options:
    """Typed options made of a section; OptionError with all that does not fit."""
    try:
        return declared.model_validate(dict(values))
    except ValidationError as error:
        raise OptionError(owner, problems_of(error, declared, values, owner)) from None


def takes(declared: type[Options]) -> Callable[[type[T]], type[T]]:
    """Lets a class whose constructor wants typed options be built from keyword arguments.

    The class keeps ``Options`` (its declaration), its objects their ``options``, and the signature
    shows every key with type and default. Subclasses hand typed options on:
    ``super().__init__(options)``.
    """

    def decorate(cls: type[T]) -> type[T]:
        init = cls.__init__

        @functools.wraps(init)
        def build(self, options: Options | None = None, /, **values: Any) -> None:
            self.options = read(declared, values, cls.__name__) if options is None else options
            init(self, self.options)

        parameters = [inspect.Parameter('self', inspect.Parameter.POSITIONAL_ONLY)]
        for name, field in declared.model_fields.items():
            default = inspect.Parameter.empty if field.is_required() else field.default
            about = {'default': default, 'annotation': field.rebuild_annotation()}
            parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, **about))
        build.__signature__ = inspect.Signature(parameters)
        cls.__init__, cls.Options = build, declared
        return cls

    return decorate


def problems_of(
    error: ValidationError, declared: type[Options], values: Mapping[str, Any], owner: str
) -> list[Problem]:
    """What pydantic found, one problem for each key: cause, nearest name, remedy."""
    problems: dict[str, str] = {}
    unknown = set()
    for found in error.errors():
        kind = found['type']
        loc = found['loc'][:-1] if kind == 'missing' else found['loc']
        *parts, value = _walk(values, loc, keys_of(declared))
        path = '.'.join(map(str, parts))
        inner = found.get('ctx', {}).get('error')
        if isinstance(inner, OptionError):
            problems |= {f'{path}.{key}'.strip('.'): text for key, text, _ in inner.problems}
            continue
        if kind == 'missing':
            key, section = str(found['loc'][-1]), declared_at(declared, parts)
            about = help_of(section).get(key, f'{owner or "it"} needs it')
            about = about.partition('\n')[0].rstrip('.')
            others = [k for k in value if k not in keys_of(section)]
            problems[f'{path}.{key}'.lstrip('.')] = f'is missing: {about}.{written_as(key, others)}'
            continue
        if kind == 'extra_forbidden':
            of = f' of {owner}' if owner and len(parts) == 1 else ''
            known = keys_of(declared_at(declared, parts[:-1]))
            unknown.add(path)
            problems[path] = f'is not an option{of}.{did_you_mean(parts[-1], known)}'
        elif path in problems:  # the next member of a union
            first, got, rest = problems[path].partition(', got ')
            problems[path] = f'{first} or {_wanted(found).removeprefix("must be ")}{got}{rest}'
        else:
            wanted = _wanted(found)
            if not path and wanted.split()[0] in declared.model_fields:
                path, _, wanted = wanted.partition(' ')  # a rule of several keys names one first
            problems[path] = wanted if wanted.endswith('.') else f'{wanted}, got {show(value)}.'
            if isinstance(value, str) and 'number' in wanted and _NUMBER.fullmatch(value):
                problems[path] += ' Write the number without quotes and units.'
            elif isinstance(value, str) and 'a list' in wanted and value.startswith('['):
                problems[path] += ' Write the list without quotes.'
            elif isinstance(value, int | float) and 'a text' in wanted:
                problems[path] += ' Write it in quotes.'
            elif kind == 'literal_error':
                problems[path] += nearest(value, re.findall("'([^']*)'", found['msg']))
    return [
        Problem(path, text, 'unknown' if path in unknown else 'fault')
        for path, text in problems.items()
    ]


def _walk(value: Any, loc: Sequence[str | int], known: Collection[str | int]) -> list:
    """Parts of a place without the names of a union's members, and last what is there."""
    parts = []
    for part in loc:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            if part not in known:
                continue
            value = None
        parts.append(part)
    return [*parts, value]


def _wanted(found: Mapping[str, Any]) -> str:
    """What a value must be, in the words of option files."""
    text = found['msg'].removeprefix('Value error, ')
    for word, plain in _WORDS.items():
        text = text.replace(word, plain)
    text = re.split(' after validation| or instance of ', text)[0]
    return re.sub(r'^\w+ should', 'must', text)


def show(value: Any) -> str:
    """``value`` as it would stand in a message: short, and texts in quotes."""
    if value is None or isinstance(value, bool):
        return 'nothing (~)' if value is None else str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + '...'


def keys_of(declared: type[Options]) -> list[str]:
    """Keys as they stand in an option file."""
    return [field.alias or name for name, field in declared.model_fields.items()]


def declared_at(declared: type[Options], parts: Iterable[str | int]) -> type[Options]:
    """The declaration of the section that ``parts`` lead to."""
    for part in parts:
        field = declared.model_fields.get(str(part))
        for member in _members(field.annotation) if field else ():
            if inspect.isclass(member) and issubclass(member, Options):
                declared = member
    return declared


def _members(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in get_args(annotation):
        yield from _members(argument)


@functools.cache
def help_of(declared: type[Options]) -> dict[str, str]:
    """The text under each key of a declaration and of its bases, read from the source."""
    texts: dict[str, str] = {}
    for cls in reversed(declared.__mro__):
        if not (issubclass(cls, Options) and cls is not Options):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
        except (OSError, TypeError):  # made from a signature
            continue
        for key, text in itertools.pairwise(body):
            if isinstance(key, ast.AnnAssign) and isinstance(text, ast.Expr):
                texts[key.target.id] = inspect.cleandoc(ast.literal_eval(text.value))
    return texts
