"""Option files with one mistake each: a key dropped, misspelt, of another type, or swapped."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

Place = tuple[str | int, ...]

# What a retyped key gets; the entries of its own type are left out.
OTHER_VALUES = (
    None, True, 0, -1, 7, 0.5, -2.5, 1e30, float('nan'), '12', 'text', '', '../x', [], [3, 'a'],
    [[1]], {}, {'type': 'text'}, {'a': {'b': 1}},
)  # fmt: skip
OPERATIONS = ('drop', 'misspell', 'retype', 'swap')


@dataclass(frozen=True)
class Mutant:
    operation: str
    options: dict = field(repr=False)
    names: tuple[str, ...]  # one of these an error has to name
    paths: tuple[Place, ...]
    note: str = ''

    def __str__(self) -> str:
        places = ' and '.join('.'.join(map(str, path)) for path in self.paths)
        return f'{self.operation} {places}{f" ({self.note})" if self.note else ""}'


def key_paths(value: object, prefix: Place = ()) -> Iterator[Place]:
    """The place of every key of a mapping, in lists of mappings too."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*prefix, key)
            yield from key_paths(item, (*prefix, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from key_paths(item, (*prefix, index))


def at(options: Any, path: Place) -> Any:
    for part in path:
        options = options[part]
    return options


def drop(options: dict, path: Place) -> Mutant:
    options = copy.deepcopy(options)
    del at(options, path[:-1])[path[-1]]
    return Mutant('drop', options, (str(path[-1]),), (path,))


def misspellings(key: str) -> list[str]:
    """Typing mistakes: a letter lost, doubled, exchanged with the next, or of the wrong case."""
    middle = len(key) // 2
    found = [
        key[:middle] + key[middle + 1 :], key[:middle] + key[middle] + key[middle:],
        key[: middle - 1] + key[middle] + key[middle - 1] + key[middle + 1 :], key.capitalize(),
        f'{key}_x',
    ]  # fmt: skip
    return [word for word in dict.fromkeys(found) if word and word != key]


def other_values(value: object) -> list:
    """Values of another type than ``value``, or of its type and senseless."""
    kind = type(value)
    return [v for v in OTHER_VALUES if type(v) is not kind or kind in (int, float, list, dict)]


def swap_partners(options: dict, path: Place) -> list[Place]:
    """Keys that ``path`` can change values with: not one that holds the other, not an equal."""
    apart = (k for k in key_paths(options) if k[: len(path)] != path and path[: len(k)] != k)
    return [key for key in apart if at(options, key) != at(options, path)]


def mutant_of(options: dict, path: Place, operation: str, rng: Random) -> Mutant:
    """One mistake at a place; a value without a partner is dropped instead of swapped."""
    key = path[-1]
    if operation in ('drop', 'swap'):
        partners = swap_partners(options, path) if operation == 'swap' else []
        if not partners:
            return drop(options, path)
        siblings = [p for p in partners if p[:-1] == path[:-1]]
        other = rng.choice(siblings if siblings and rng.random() < 0.5 else partners)
    options = copy.deepcopy(options)
    section = at(options, path[:-1])
    if operation == 'misspell':
        word = rng.choice(misspellings(key))
        items = [(word if k == key else k, value) for k, value in section.items()]
        section.clear()
        section.update(items)
        return Mutant('misspell', options, (word,), ((*path[:-1], word),), f'for {key}')
    if operation == 'retype':
        value = rng.choice(other_values(section[key]))
        section[key] = copy.deepcopy(value)
        return Mutant('retype', options, (str(key),), (path,), repr(value))
    place = at(options, other[:-1])
    section[key], place[other[-1]] = place[other[-1]], section[key]
    return Mutant('swap', options, (str(key), str(other[-1])), (path, other))
