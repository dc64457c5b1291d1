"""A list of problems, one per place in the option file."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping

from unfoldldm_basicsr.common.suggest import did_you_mean
from unfoldldm_basicsr.options.values import Key, key_problem

# What code that is handed wrong values raises; used where the values are the thing being tested.
VALUE_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    OSError,
    ImportError,
    pickle.UnpicklingError,
)


class Problems:
    """Collects problems by key path; the first one of a place stands, as it has the cause."""

    def __init__(self):
        self._found: dict[str, str] = {}

    def add(self, path: str, message: str) -> None:
        """``message`` continues the sentence that ``path`` begins."""
        if not self.covers(path):
            self._found[path] = ' '.join(message.split())

    def covers(self, path: str) -> bool:
        """Whether ``path`` or a section around it has a problem already."""
        parts = path.split('.')
        return any('.'.join(parts[:n]) in self._found for n in range(1, len(parts) + 1))

    def within(self, prefix: str) -> bool:
        """Whether ``prefix`` or anything in it has a problem."""
        return self.covers(prefix) or any(p.startswith(f'{prefix}.') for p in self._found)

    def lines(self, file: object) -> list[str]:
        """``FILE: key.path: message`` for each."""
        return [f'{file}: {path}: {message}' for path, message in self._found.items()]

    def __len__(self) -> int:
        return len(self._found)

    def check_keys(
        self,
        prefix: str,
        section: object,
        keys: Mapping[str, Key],
        more: Iterable[str] = (),
        required: Iterable[str] = (),
    ) -> bool:
        """Unknown keys, missing keys, and values of a wrong type or range in one section.

        Args:
            prefix: path of the section, '' for the top level.
            section: what stands there.
            keys: the known keys.
            more: words that are accepted as keys too, without knowing their types.
            required: keys that must be there.

        Returns:
            Whether it is a section at all, so that its values can be looked at further.
        """
        if not isinstance(section, Mapping):
            self.add(prefix, f'must be a section of "key: value" lines, got {section!r}.')
            return False
        dot = f'{prefix}.' if prefix else ''
        for name, value in section.items():
            if name in keys:
                problem = key_problem(value, keys[name])
                if problem:
                    self.add(f'{dot}{name}', problem)
            elif name not in more:
                self.add(f'{dot}{name}', f'is not an option.{did_you_mean(name, keys)}')
        for name in required:
            if name not in section:
                self.add(f'{dot}{name}', f'is missing: {keys[name].help or "it is needed"}.')
        return True

    def check_with(
        self,
        prefix: str,
        check: Callable[[], Iterable[tuple[str, str]]],
        keep: Callable[[str], bool],
    ) -> None:
        """Adds what a class's own ``check_options`` finds.

        Such a check may stumble over values that were found to be wrong before; that is no news.

        Args:
            prefix: path of the section that is checked, '' for the whole dict.
            check: gives pairs of key path (relative to ``prefix``) and message.
            keep: whether a problem of such a path counts.
        """
        try:
            found = list(check())
        except VALUE_ERRORS as error:
            if not (self.within(prefix) if prefix else self._found):
                where = prefix or 'model_type'
                self.add(where, f'its options cannot be checked: {type(error).__name__}: {error}.')
            return
        for path, message in found:
            if keep(path):
                self.add(f'{prefix}.{path}' if prefix else path, message)
