"""Imports run one way, without cycles; importing the package stays cheap; files stay short."""

import ast
import functools
import graphlib
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT, run_python

PACKAGE = 'unfoldldm_basicsr'
SOURCES = sorted((ROOT / PACKAGE).rglob('*.py'))
MAX_LINES = 400

# Parts of the package (longest match counts) by level; imports go to the same or a lower level.
BY_LEVEL = (
    ('common',), ('compat', 'ops', 'data.degradations'), ('archs.layers',),
    ('archs.unfolding', 'weights'), ('options', 'archs', 'losses', 'data', 'metrics', 'preparing'),
    ('training', 'restoring'), ('models', 'comparing', 'pictures'),
    ('commands', 'cli', 'train', 'test', ''),
)  # fmt: skip
LEVELS = {part: level for level, parts in enumerate(BY_LEVEL) for part in parts}
# Parts that do not know BasicSR, nor another of them on their level.
PURE = ('ops', 'data.degradations', 'archs.layers', 'archs.unfolding')
# Models build networks and losses by name through BasicSR; networks know nothing of data.
NEVER = {*itertools.product(('models', 'training', 'restoring'), ('archs', 'losses'))}
NEVER |= {*itertools.product(('archs', 'ops'), ('data',))}
HEAVY = ('open_clip', 'mamba_ssm', 'matplotlib', 'wandb', 'pyiqa', 'lpips', 'spandrel', 'skimage')


def module_name(path: Path) -> str:
    """``archs.layers.norm`` for a file; '' for the package itself."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_name(path): path for path in SOURCES}


def part_of(module: str) -> str:
    parts = module.split('.') if module else []
    names = ['.'.join(parts[:n]) for n in range(len(parts), -1, -1)]
    return next(name for name in names if name in LEVELS)


@functools.cache
def imports_of(module: str, path: Path, *, top_level: bool = False) -> list[tuple[str, int]]:
    """Imported names with their lines: modules of this package as ``archs.x``, others as ``>x``.

    Imports for type checkers only do not count; ``top_level``: nor those inside functions.
    """
    found = []
    tree = ast.parse(path.read_text(encoding='utf-8'))
    nodes = tree.body if top_level else ast.walk(tree)
    types_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING'
        for inner in node.body
    }
    for node in nodes:
        if id(node) in types_only:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}:{node.lineno}: a relative import'
            found += [(f'{node.module}.{alias.name}', node.lineno) for alias in node.names]
    return [(_shorten(name), line) for name, line in found]


def _shorten(name: str) -> str:
    if name.split('.')[0] != PACKAGE:
        return f'>{name}'  # from outside
    inner = name.split('.')[1:]
    while inner and '.'.join(inner) not in MODULES:
        inner.pop()
    return '.'.join(inner)


def wrong_imports(is_wrong: Callable[[str, str], bool]) -> list[str]:
    return [
        f'{path.relative_to(ROOT)}:{line} imports {target}'
        for module, path in MODULES.items()
        for target, line in imports_of(module, path)
        if is_wrong(module, target)
    ]


def test_imports_go_down_the_levels():
    def goes_up(module: str, target: str) -> bool:
        return (target or '>')[0] != '>' and LEVELS[part_of(target)] > LEVELS[part_of(module)]

    assert wrong_imports(goes_up) == []


def test_no_two_folders_import_each_other():
    pairs = {
        (module.split('.')[0], target.split('.')[0])
        for module, path in MODULES.items()
        for target, _ in imports_of(module, path)
        if '.' in module and not target.startswith('>') and '.' in target
    }
    assert {(a, b) for a, b in pairs if a < b and (b, a) in pairs} == set()


def test_pure_parts_know_neither_basicsr_nor_each_other():
    def is_foreign(module: str, target: str) -> bool:
        own = part_of(module)
        if own not in PURE or target.startswith('>'):
            return own in PURE and target.startswith('>basicsr')
        other = part_of(target)
        return other in PURE and other != own and LEVELS[other] >= LEVELS[own]

    assert wrong_imports(is_foreign) == []


def test_no_folder_imports_what_it_reaches_by_name_or_does_not_need():
    assert wrong_imports(lambda *pair: tuple(m.split('.')[0] for m in pair) in NEVER) == []


def test_no_module_imports_itself_through_others():
    graph = {
        module: {
            target
            for target, _ in imports_of(module, path, top_level=True)
            if not target.startswith('>') and target not in ('', module)
        }
        for module, path in MODULES.items()
        if module
    }
    try:
        circle = []
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        circle = error.args[1]
    assert circle == []


@pytest.mark.parametrize('folder', [PACKAGE, 'scripts'])
def test_files_stay_short(folder):
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding='utf-8').splitlines())
        for path in (ROOT / folder).rglob('*.py')
    }
    assert {name: n for name, n in lengths.items() if n >= MAX_LINES} == {}


def test_importing_the_package_loads_no_optional_package():
    code = f'import sys, {PACKAGE}, {PACKAGE}.cli\nprint([n for n in {HEAVY} if n in sys.modules])'
    result = run_python('-c', code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == '[]'


@pytest.mark.parametrize('enabled', [True, False])
def test_importing_the_package_pauses_the_collector_and_leaves_it_as_it_was(enabled):
    code = (
        f'import gc; gc.{"enable" if enabled else "disable"}()\n'
        'runs = lambda: sum(row["collections"] for row in gc.get_stats())\n'
        f'before = runs(); import {PACKAGE}; print(runs() - before, gc.isenabled())'
    )
    number, state = run_python('-c', code).stdout.split()[-2:]
    assert int(number) < 10
    assert state == str(enabled)
