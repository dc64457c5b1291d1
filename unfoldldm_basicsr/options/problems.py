"""What is wrong with an option file: refusals and warnings, one for each place."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from unfoldldm_basicsr.common.declaration import Options, keys_of, problems_of
from unfoldldm_basicsr.common.registration import whose
from unfoldldm_basicsr.common.suggest import nearest, one_slip


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
        self, prefix: str, declared: type[Options], values: Mapping[str, Any], owner: Any
    ) -> Options:
        """A section as its declaration types it, as far as it is right; the rest is added.

        ``prefix`` is its key path, ``owner`` the class that it is for, None where that is not
        known. One without a declaration of its own reads the keys of ``also`` beside, and may read
        more: of those that are unknown, only slips of known ones are refused then, and in one of
        somebody else none that stands beside what it might be a slip of: game is not name.
        """
        values = {str(key): value for key, value in values.items()}
        also = declared.also if owner else re.compile('.*', re.DOTALL)
        if hasattr(owner, 'Options') or hasattr(owner, 'sections'):
            also = None
        try:
            return declared.model_validate(values)
        except ValidationError as error:
            found = problems_of(error, declared, values, getattr(owner, '__name__', ''))
        known, theirs = keys_of(declared), whose(owner) == 'theirs'
        for path, message, kind in found:
            if kind == 'unknown' and '.' not in path:
                if also and also.fullmatch(path):
                    continue
                near = nearest(path, known)
                possible = [key for key in known if not (theirs and key in values)]
                if also and (slip := _slip_of(path, possible, values)):
                    message, kind = f"is not known here. Did you mean '{slip}'?", 'slip'
                elif also or not (prefix or near):  # at the top: a note
                    kind = 'warning'
                    message = f'is nothing that is known here; left as it is.{near}'
            self.add(f'{prefix}.{path}'.strip('.'), message, kind)
        faulty = {problem.path.partition('.')[0] for problem in found}
        right = {k: v for k, v in values.items() if k in known and k not in faulty}
        try:
            return declared.model_validate(right)
        except ValidationError:  # a required key is missing, or keys that depend on a faulty one
            return declared.model_construct(**right)


def _slip_of(key: str, known: list[str], present: Mapping[str, Any]) -> str:
    """The known key that ``key`` is a slip of, '' for none.

    ``dataroot_gt2`` is none, nor is a longer key beside the one that it contains.
    """
    slips = (near for near in known if one_slip(key, near) and key.rstrip('0123456789') != near)
    return next((near for near in slips if not (near in key and near in present)), '')


def _remove(values: Any, path: str) -> None:
    """Takes the key at a path out of sections in sections and lists."""
    if isinstance(values, list):
        values = dict(enumerate(values))
    for key, inner in [*values.items()] if isinstance(values, dict) else ():
        if str(key) == path:
            del values[key]
        elif path.startswith(f'{key}.'):
            _remove(inner, path.removeprefix(f'{key}.'))
