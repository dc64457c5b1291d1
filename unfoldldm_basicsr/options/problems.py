"""What is wrong with an option file: refusals and warnings, one for each place."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import ValidationError

from unfoldldm_basicsr.common.declaration import Options, keys_of, problems_of
from unfoldldm_basicsr.common.registration import of_somebody_else
from unfoldldm_basicsr.common.suggest import nearest, one_slip

Reader = Literal['declared', 'stock', 'theirs', 'nobody']
"""Whose class reads a section: one that declares all of its keys; one of BasicSR, or made from
one, that may read more; one of somebody else; or none that is known."""


def reader_of(cls: type | None) -> Reader:
    """What is known of the keys of a model or data set."""
    if cls is None or hasattr(cls, 'sections') or hasattr(cls, 'Options'):
        return 'nobody' if cls is None else 'declared'
    return 'theirs' if of_somebody_else(cls) else 'stock'


class Problems:
    """Collects problems by key path; the first one of a place stands, as it has the cause.

    Keys that nothing reads are taken out of ``options``: rules and data sets look at the others.
    Where the check is not ``strict``, they are warnings.
    """

    def __init__(self, options: dict | None = None, strict: bool = True):
        self.options, self.strict = options, strict
        self.refused: dict[str, str] = {}
        self.warned: dict[str, str] = {}

    def add(self, path: str, message: str, kind: str = 'fault') -> None:
        """``message`` continues the sentence that ``path`` begins; see :class:`.Problem`."""
        message = ' '.join(message.split())
        if any(f'{path}.'.startswith(f'{place}.') for place in self.refused):
            return
        if kind == 'warning' or (kind in ('unknown', 'slip') and not self.strict):
            self.warned.setdefault(path, message)
        else:
            self.refused[path] = message
        if kind == 'unknown':
            _remove(self.options, path)

    def at(self, path: str) -> bool:
        """Whether ``path``, a section around it or anything in it has a problem."""
        places = (f'{place}.' for place in self.refused)
        return any(p.startswith(f'{path}.') or f'{path}.'.startswith(p) for p in places)

    def read(
        self,
        prefix: str,
        declared: type[Options],
        values: Mapping[str, Any],
        owner: str = '',
        reader: Reader = 'declared',
    ) -> Options:
        """A section as its declaration types it, as far as it is right; the rest is added.

        ``prefix`` is its key path, ``owner`` the name of the class that it is for.
        """
        values = {str(key): value for key, value in values.items()}
        try:
            return declared.model_validate(values)
        except ValidationError as error:
            found = problems_of(error, declared, values, owner)
        known, foreign = keys_of(declared), reader != 'declared'
        also = getattr(declared, 'also', None) if foreign else None
        own = getattr(declared, 'by_class', ()) if reader == 'theirs' else ()
        if reader == 'theirs':  # keys of its own may be like those that only BasicSR's classes read
            known = [key for key in known if key not in {*own, *values}]
        for path, message, kind in found:
            unknown, near = kind == 'unknown', nearest(path, known)
            if path.partition('.')[0] in own or (unknown and reader == 'nobody'):
                continue
            if unknown and also and also.fullmatch(path):
                continue
            if unknown and '.' not in path:
                if foreign and (slip := _slip_of(path, known, values)):
                    message, kind = f"is not known here. Did you mean '{slip}'?", 'slip'
                elif foreign or not (prefix or near):  # at the top: a note
                    kind = 'warning'
                    message = f'is nothing that is known here; left as it is.{near}'
            self.add(f'{prefix}.{path}'.strip('.'), message, kind)
        faulty = {problem.path.partition('.')[0] for problem in found}
        right = {k: v for k, v in values.items() if k in keys_of(declared) and k not in faulty}
        try:
            return declared.model_validate(right)
        except ValidationError:  # a required key is missing, or keys that depend on a faulty one
            return declared.model_construct(**right)


def _slip_of(key: str, known: Iterable[str], present: Mapping[str, Any]) -> str:
    """The known key that ``key`` is a slip of, '' for none.

    ``dataroot_gt2`` is none, nor is a longer key beside the one that it begins with.
    """
    slips = (near for near in known if one_slip(key, near) and key.rstrip('0123456789') != near)
    return next((near for near in slips if not (key.startswith(near) and near in present)), '')


def _remove(values: Any, path: str) -> None:
    """Takes the key at a path out of sections in sections and lists."""
    if isinstance(values, list):
        values = dict(enumerate(values))
    for key, inner in [*values.items()] if isinstance(values, dict) else ():
        if str(key) == path:
            del values[key]
        elif path.startswith(f'{key}.'):
            _remove(inner, path.removeprefix(f'{key}.'))
