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
    """Options with one mistake."""

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
        key[:middle] + key[middle + 1 :],
        key[:middle] + key[middle] + key[middle:],
        key[: middle - 1] + key[middle] + key[middle - 1] + key[middle + 1 :],
        key.capitalize(),
        f'{key}_x',
    ]
    return [word for word in dict.fromkeys(found) if word and word != key]


def misspell(options: dict, path: Place, word: str) -> Mutant:
    options = copy.deepcopy(options)
    section = at(options, path[:-1])
    items = [(word if key == path[-1] else key, value) for key, value in section.items()]
    section.clear()
    section.update(items)
    return Mutant('misspell', options, (word,), ((*path[:-1], word),), f'for {path[-1]}')


def retype(options: dict, path: Place, value: object) -> Mutant:
    options = copy.deepcopy(options)
    at(options, path[:-1])[path[-1]] = copy.deepcopy(value)
    return Mutant('retype', options, (str(path[-1]),), (path,), repr(value))


def other_values(value: object) -> list:
    """Values of another type than ``value``, or of its type and senseless."""
    kind = type(value)
    return [v for v in OTHER_VALUES if type(v) is not kind or kind in (int, float, list, dict)]


def swap(options: dict, first: Place, second: Place) -> Mutant:
    options = copy.deepcopy(options)
    a, b = copy.deepcopy(at(options, first)), copy.deepcopy(at(options, second))
    at(options, first[:-1])[first[-1]] = b
    at(options, second[:-1])[second[-1]] = a
    return Mutant('swap', options, (str(first[-1]), str(second[-1])), (first, second))


def swap_partners(options: dict, path: Place) -> list[Place]:
    """Keys that ``path`` can change values with: not one that holds the other, not an equal."""
    return [
        other
        for other in key_paths(options)
        if other[: len(path)] != path
        and path[: len(other)] != other
        and at(options, other) != at(options, path)
    ]


def mutant_of(options: dict, path: Place, operation: str, rng: Random) -> Mutant:
    """One mistake at a place; a value without a partner is dropped instead of swapped."""
    if operation == 'misspell':
        return misspell(options, path, rng.choice(misspellings(path[-1])))
    if operation == 'retype':
        return retype(options, path, rng.choice(other_values(at(options, path))))
    partners = swap_partners(options, path)
    if operation == 'drop' or not partners:
        return drop(options, path)
    siblings = [p for p in partners if p[:-1] == path[:-1]]
    return swap(
        options, path, rng.choice(siblings if siblings and rng.random() < 0.5 else partners)
    )
