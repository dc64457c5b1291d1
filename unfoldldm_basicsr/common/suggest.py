"""Nearest valid names for error messages. No dependencies, importable from everywhere."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """Text to append to an error: ``" Did you mean 'dim'? Known: dim, heads."``; without a near
    match only the known names, '' when nothing is known.
    """
    names = sorted(str(k) for k in known)
    return f'{nearest(name, names)} Known: {", ".join(names)}.' if names else ''


def nearest(name: object, known: Iterable[object]) -> str:
    """The first half of :func:`did_you_mean`, '' without a near match."""
    near = _near(name, known)
    return f" Did you mean '{near}'?" if near else ''


def _near(name: object, known: Iterable[object]) -> str:
    folded = {str(k).lower(): str(k) for k in known}
    found = difflib.get_close_matches(str(name).lower(), list(folded), n=1, cutoff=0.6)
    return folded[found[0]] if found else ''


def one_slip(name: str, known: str) -> bool:
    """Whether one letter too many, too few, wrong, exchanged with the next, or the case differs."""
    a, b = name.lower(), known.lower()
    while a and b and a[0] == b[0]:
        a, b = a[1:], b[1:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return max(len(a), len(b)) <= 1 or (len(a) == 2 and a == b[::-1])


def written_as(name: str, keys: Iterable[object]) -> str:
    """Text to append to an error about a missing ``name``: ``" Is 'tpye' meant to be it?"``, with
    nothing like it the keys that are there.
    """
    keys = [str(k) for k in keys]
    if near := _near(name, keys):
        return f" Is '{near}' meant to be it?"
    return f' There are: {", ".join(keys)}.' if keys else ''


def check_choice(name: str, value: object, known: Iterable[object]) -> None:
    """Raises ValueError naming the nearest choice unless ``value`` is one of ``known``."""
    known = tuple(known)
    if value not in known:
        raise ValueError(f"{name}: unknown value '{value}'.{did_you_mean(value, known)}")
