"""Every option key is declared once and read; docs/options.md tells all of them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import basicsr
from helpers import ROOT, load_script

from unfoldldm_basicsr.common.declaration import Options, help_of
from unfoldldm_basicsr.options.run import SET_AT_START

SOURCES = {path: ast.parse(path.read_text()) for path in (ROOT / 'unfoldldm_basicsr').rglob('*.py')}
SECTIONS = ('top', 'train', 'val', 'path', 'logger')  # of a typed run
# What option dicts are called where they are read as dicts.
DICTS = ('opt', 'options', 'section', 'dataset_opt', 'train', 'paths', 'schedule')
# Arguments of torch's optimisers, and the keys by which models of BasicSR are told apart.
OF_OTHERS = {'lr', 'weight_decay', 'maximize', 'capturable', 'network_d'}
READ_BY_NOBODY = {'use_shuffle'}  # BasicSR's own option files hold it, and it does not read it


def declarations(base: type[Options] = Options) -> Iterator[type[Options]]:
    for cls in base.__subclasses__():
        yield cls
        yield from declarations(cls)


# Those that are made of the signature of a constructor declare nothing by themselves.
OURS, MADE = 'unfoldldm_basicsr.', 'unfoldldm_basicsr.options.declared'
DECLARED = {c for c in declarations() if c.__module__.startswith(OURS) and c.__module__ != MADE}
KEYS = {key for cls in DECLARED for key in cls.model_fields}


def own(cls: type[Options]) -> set[str]:
    return cls.model_fields.keys() & vars(cls).get('__annotations__', {}).keys()


def strings(tree: ast.AST) -> set[str]:
    return {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and type(n.value) is str}


def test_a_key_is_declared_again_only_to_change_it():
    for cls in DECLARED:
        for key in own(cls):
            for base in cls.__mro__[1:]:
                if base in DECLARED and key in base.model_fields:
                    assert repr(base.model_fields[key]) != repr(cls.model_fields[key]), (cls, key)


def test_every_declared_key_is_read():
    """By its name, as an attribute or as an argument, here or in BasicSR."""
    read: set[str] = set()
    theirs = [ast.parse(p.read_text()) for p in Path(basicsr.__file__).parent.rglob('*.py')]
    for tree in (*SOURCES.values(), *theirs):
        read |= strings(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute | ast.arg):
                read.add(getattr(node, 'attr', None) or node.arg)
    assert sorted(KEYS - read - READ_BY_NOBODY) == []


def reads() -> Iterator[tuple[str, str]]:
    """Place and key of what our code reads from options, typed ones and dicts."""
    for path, tree in SOURCES.items():
        if path.name == 'aliases.py' or path.parent.name == 'comparing':
            continue  # keys of forks, and of comparisons
        for node in ast.walk(tree):
            key, owner = None, getattr(node, 'value', None)
            if isinstance(node, ast.Attribute) and name_of(owner) in SECTIONS:
                key = node.attr if name_of(getattr(owner, 'value', None)) == 'run' else None
            elif isinstance(node, ast.Subscript) and name_of(owner) in DICTS:
                key = getattr(node.slice, 'value', None)
            elif isinstance(node, ast.Call) and name_of(node.func) == 'get':
                owner = getattr(node.func, 'value', None)
                key = getattr(node.args[0], 'value', None) if name_of(owner) in DICTS else None
            if isinstance(key, str):
                yield f'{path.name}:{node.lineno}', key


def name_of(node: ast.AST | None) -> str:
    return getattr(node, 'id', getattr(node, 'attr', ''))


def test_every_key_that_is_read_is_declared():
    methods = {name for cls in DECLARED for name in dir(cls)}
    known = KEYS | methods | OF_OTHERS | {key for keys in SET_AT_START.values() for key in keys}
    found = list(reads())
    assert len(found) > 100
    assert [(place, key) for place, key in found if key not in known] == []


def test_every_declared_key_has_its_help():
    assert [(c.__name__, key) for c in DECLARED for key in own(c) if not help_of(c).get(key)] == []


def test_the_page_of_options_is_that_of_the_declarations():
    script = load_script('scripts/option_files/reference.py')
    page = (ROOT / 'docs' / 'options.md').read_text(encoding='utf-8')
    assert page == script.reference(), f'make it again: {script.__doc__}'
