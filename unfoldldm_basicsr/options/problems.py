"""What is wrong with an option file: refusals and warnings, one for each place."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from unfoldldm_basicsr.common.declaration import Options, keys_of, problems_of
from unfoldldm_basicsr.common.suggest import nearest, one_slip


class Problems:
    """Collects problems by key path; the first one of a place stands, as it has the cause."""

    def __init__(self, strict: bool = True):
        self.strict = strict  # else unknown keys are warnings
        self.refused: dict[str, str] = {}
        self.warned: dict[str, str] = {}
        self.ignored: list[str] = []  # unknown keys of classes that declare all of theirs

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
            self.ignored.append(path)

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
        *,
        foreign: bool = False,
        theirs: bool = False,
        any_key: bool = False,
    ) -> Options:
        """A section as its declaration types it, as far as it is right; the rest is added.

        Args:
            prefix: key path of the section.
            owner: class that it is for, for messages.
            foreign: whether the class may read keys that are not declared.
            theirs: whether it is neither BasicSR's nor of this package: only what BasicSR's
                pipelines read is judged.
            any_key: whether nothing is known about its keys.
        """
        values = {str(key): value for key, value in values.items()}
        try:
            return declared.model_validate(values)
        except ValidationError as error:
            found = problems_of(error, declared, values, owner)
        also = getattr(declared, 'also', None) if foreign else None
        by_class = getattr(declared, 'by_class', ()) if theirs else ()
        for path, message, kind in found:
            if kind == 'unknown' and (any_key or (also and also.fullmatch(path))):
                continue
            if path.partition('.')[0] in by_class:
                continue
            if kind == 'unknown' and '.' not in path:
                if foreign:
                    known = keys_of(declared)
                    if theirs:  # its own keys may be like those that only BasicSR's classes read
                        known = [k for k in known if k not in {*by_class, *values}]
                    message, kind = _of_somebody_else(path, known, values)
                elif not prefix and not nearest(path, keys_of(declared)):  # a note: at the top
                    message, kind = 'is nothing that is known here; left as it is.', 'warning'
            self.add(f'{prefix}.{path}'.strip('.'), message, kind)
        faulty = {problem.path.partition('.')[0] for problem in found}
        right = {k: v for k, v in values.items() if k in keys_of(declared) and k not in faulty}
        try:
            return declared.model_validate(right)
        except ValidationError:  # a required key is missing, or keys that depend on a faulty one
            return declared.model_construct(**right)


def _of_somebody_else(key: str, known: list[str], present: Mapping) -> tuple[str, str]:
    """Message and kind for an unknown key of a class whose own keys nobody has declared.

    What such a class reads is not guessed: only a slip of a known key is refused. ``dataroot_gt2``
    is none, nor is a longer key beside the one that it begins with.
    """
    for near in known:
        numbered = key.rstrip('0123456789') == near
        if one_slip(key, near) and not (numbered or (key.startswith(near) and near in present)):
            return f"is not known here. Did you mean '{near}'?", 'slip'
    return f'is nothing that is known here; left as it is.{nearest(key, known)}', 'warning'
