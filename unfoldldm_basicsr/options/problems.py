"""What is wrong with an option file: refusals and warnings, one for each place."""

from __future__ import annotations

from collections.abc import Container, Iterable

from unfoldldm_basicsr.common.declaration import Problem
from unfoldldm_basicsr.common.suggest import nearest, one_slip


class Problems:
    """Collects problems by key path; the first one of a place stands, as it has the cause.

    Args:
        strict: whether unknown keys are refused; otherwise they are warnings.

    Attributes:
        ignored: unknown keys of classes that declare all of theirs.
    """

    def __init__(self, strict: bool = True):
        self.strict = strict
        self.refused: dict[str, str] = {}
        self.warned: dict[str, str] = {}
        self.ignored: list[str] = []

    def add(self, path: str, message: str, kind: str = 'fault') -> None:
        """``message`` continues the sentence that ``path`` begins; see :class:`.Problem`."""
        message = ' '.join(message.split())
        if self.covers(path):
            return
        if kind == 'warning' or (kind in ('unknown', 'slip') and not self.strict):
            self.warned.setdefault(path, message)
        else:
            self.refused[path] = message
        if kind == 'unknown':
            self.ignored.append(path)

    def extend(self, prefix: str, problems: Iterable[Problem]) -> None:
        """Adds problems whose paths begin at the section ``prefix``."""
        for path, message, kind in problems:
            self.add(f'{prefix}.{path}'.strip('.'), message, kind)

    def covers(self, path: str) -> bool:
        """Whether ``path`` or a section around it has a problem already."""
        parts = path.split('.')
        return any('.'.join(parts[:n]) in self.refused for n in range(1, len(parts) + 1))

    def within(self, prefix: str) -> bool:
        """Whether ``prefix`` or anything in it has a problem; '' stands for the whole file."""
        inside = any(not prefix or p.startswith(f'{prefix}.') for p in self.refused)
        return inside or self.covers(prefix)


def of_somebody_else(
    problems: Iterable[Problem], keys: Iterable[str], present: Container[str]
) -> Iterable[Problem]:
    """Judges unknown keys of a class whose own keys nobody has declared.

    What such a class reads is not guessed: only a slip of a known key is refused. A second
    ``dataroot_gt2`` beside ``dataroot_gt`` is none.

    Args:
        problems: what the known keys alone give.
        keys: the known ones.
        present: those of the section.
    """
    keys = list(keys)
    for path, message, kind in problems:
        slips = [
            key
            for key in keys
            if kind == 'unknown'
            and one_slip(path, key)
            and not (path.startswith(key) and key in present)
        ]
        if kind != 'unknown' or '.' in path:
            yield Problem(path, message, kind)
        elif slips:
            yield Problem(path, f"is not known here. Did you mean '{slips[0]}'?", 'slip')
        else:
            hint = nearest(path, keys)
            yield Problem(path, f'is nothing that is known here; left as it is.{hint}', 'warning')
