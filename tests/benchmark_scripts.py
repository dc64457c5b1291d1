"""Imports the benchmark scripts and reads what they write."""

from __future__ import annotations

import csv
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers import ROOT

FOLDER = ROOT / 'scripts' / 'benchmark'


def imported_scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a script as Python does that runs it: its folder on the path, one thread."""
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    known = set(sys.modules)
    yield importlib.import_module
    torch.set_num_threads(threads)
    for name in set(sys.modules) - known:
        if str(FOLDER) in str(getattr(sys.modules[name], '__file__', '')):
            del sys.modules[name]


def read(path: Path) -> list[dict]:
    """Rows of a table; its first line names the machine, and a picture is beside it."""
    assert path.with_suffix('.png').stat().st_size > 1000
    return read_table(path)


def read_table(path: Path) -> list[dict]:
    """Rows of a table; its first line names the machine."""
    lines = path.with_suffix('.csv').read_text(encoding='utf-8').splitlines()
    assert lines[0].startswith('# ')
    assert 'torch' in lines[0]
    return list(csv.DictReader(lines[1:]))
