"""Weights of a file beside those of a network: the one comparison that everything else uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

_SHOWN = 6  # modules in a message; another network altogether differs in dozens


@dataclass(frozen=True)
class StateDictDiff:
    """What differs; true where anything does, and ``str`` says what in one line.

    Attributes:
        fitting: names with the same shape in both.
        missing: names that only the network has.
        unexpected: names that only the file has.
        reshaped: name -> shapes in the file and in the network.
    """

    fitting: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @classmethod
    def between(
        cls, net: nn.Module, given: Mapping[str, Tensor], *, new_modules: Sequence[str] = ()
    ) -> StateDictDiff:
        """Compares names and shapes with a network, on the meta device too; weights of its
        ``new_modules`` need not be there.
        """
        own = net.state_dict()
        shapes = {k: (tuple(given[k].shape), tuple(own[k].shape)) for k in own if k in given}
        return cls(
            fitting=tuple(k for k, (there, here) in shapes.items() if there == here),
            missing=tuple(k for k in own if k not in given and module_of(k) not in new_modules),
            unexpected=tuple(k for k in given if k not in own),
            reshaped={k: pair for k, pair in shapes.items() if pair[0] != pair[1]},
        )

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)

    @property
    def total(self) -> int:
        """Number of tensors that the network wants."""
        return len(self.fitting) + len(self.missing) + len(self.reshaped)

    def lines(self) -> list[str]:
        """One sentence per kind of difference and module."""
        found = []
        for what, names in (
            ('missing in the file', self.missing),
            ('unknown to the network', self.unexpected),
            ('of another shape', tuple(self.reshaped)),
        ):
            modules: dict[str, list[str]] = {}
            for name in names:
                modules.setdefault(module_of(name), []).append(name)
            for module, keys in modules.items():
                first = keys[0]
                if first in self.reshaped:
                    there, here = self.reshaped[first]
                    first += f': {there} in the file, {here} in the network'
                found.append(f'{module}: {len(keys)} {what} (first {first})')
        return found

    def __str__(self) -> str:
        lines = self.lines()
        more = f'; and {len(lines) - _SHOWN} more' if len(lines) > _SHOWN else ''
        fit = f'{len(self.fitting)} of {self.total} tensors fit'
        return '; '.join([fit, *lines[:_SHOWN]]) + more


def module_of(key: str) -> str:
    """The outermost module that a weight belongs to."""
    return key.partition('.')[0]
