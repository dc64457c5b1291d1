"""Every option key is declared once and read; docs/options.md tells all of them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import basicsr
from helpers import ROOT, load_script

from unfoldldm_basicsr.common.declaration import Options, help_of

SOURCES = {path: ast.parse(path.read_text()) for path in (ROOT / 'unfoldldm_basicsr').rglob('*.py')}
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


def test_every_declared_key_is_read():
    """By its name, as an attribute or as an argument, here or in BasicSR."""
    read: set[object] = set()
    theirs = [ast.parse(p.read_text()) for p in Path(basicsr.__file__).parent.rglob('*.py')]
    for tree in (*SOURCES.values(), *theirs):
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute | ast.arg):
                read.add(getattr(node, 'attr', None) or node.arg)
            elif isinstance(node, ast.Constant):
                read.add(node.value)
    assert sorted(KEYS - read - READ_BY_NOBODY) == []


def test_every_declared_key_has_its_help():
    assert [(c.__name__, key) for c in DECLARED for key in own(c) if not help_of(c).get(key)] == []


def test_the_page_of_options_is_that_of_the_declarations():
    script = load_script('scripts/option_files/reference.py')
    page = (ROOT / 'docs' / 'options.md').read_text(encoding='utf-8')
    assert page == script.reference(), f'make it again: {script.__doc__}'
