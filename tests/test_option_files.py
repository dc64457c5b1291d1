"""Every shipped option file passes the check; every key is declared once, read, and explained."""

import ast
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import basicsr
import pytest
from helpers import OPTION_FILES, ROOT, load_options, load_script

from unfoldldm_basicsr.archs.unfoldldm_arch import UnfoldLDMOptions
from unfoldldm_basicsr.common import sections
from unfoldldm_basicsr.common.declaration import Options, help_of
from unfoldldm_basicsr.comparing.task import SideOptions
from unfoldldm_basicsr.data.degradations import Degradation
from unfoldldm_basicsr.data.restoration_dataset import DatasetOptions, PhotoOptions
from unfoldldm_basicsr.options.preflight import examine
from unfoldldm_basicsr.options.run import is_training
from unfoldldm_basicsr.training.schedules import Schedule

EACH = pytest.mark.parametrize(
    'file', OPTION_FILES, ids=lambda f: str(f.relative_to(ROOT / 'options'))
)


@pytest.mark.usefixtures('networks_once')
@EACH
def test_option_file_passes_the_check(file):
    options = load_options(file)
    report = examine(options, str(file), is_training(options), here=False)
    assert report.problems == []
    assert report.run.networks['network_g'] is not None


@EACH
def test_first_lines_give_purpose_and_a_command_for_this_very_file(file):
    first = file.read_text(encoding='utf-8').splitlines()[:3]
    assert first[0].startswith('# ')
    name = str(file.relative_to(ROOT))
    command = next(line for line in first if '-m unfoldldm_basicsr' in line)
    assert name in command
    assert ('unfoldldm_basicsr.test' in command) == ('train' not in load_options(file))


def test_readme_lists_every_option_file_and_no_other():
    text = (ROOT / 'options' / 'README.md').read_text(encoding='utf-8')
    listed = set()
    for entry in re.findall(r'^\| `(\S+\.yml)`', text, re.M):
        parts = [part.strip('{}').split(',') for part in re.split(r'(\{.*?\})', entry)]
        listed |= {''.join(choice) for choice in product(*parts)}
    assert listed == {file.relative_to(ROOT / 'options').as_posix() for file in OPTION_FILES}


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


HOLDERS = {  # what is called so where it is read; ``def``: an argument
    **{base: section or 'top|opt' for section, base in sections.ANY_SECTIONS.items()},
    sections.AnyDataset | DatasetOptions | PhotoOptions: 'options|(dataset_)?opt|section|part',
    Degradation | Schedule | UnfoldLDMOptions: 'self|def|entry',
    sections.MetricOptions | sections.DistOptions: 'def|params',
    SideOptions: 'file',
    Options: 'options|metric|mixing_augs|typed|wandb|budget|settings|head',
}
UNREAD = {'use_shuffle', 'dataroot_lq_right'}  # only old files hold it; found by its beginning


def reads(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Every ``holder.key``, ``holder['key']`` and ``holder.get('key')``: key and holder."""
    for node in ast.walk(tree):
        match node:
            case ast.arg(arg=key):
                yield key, 'def'
            case (
                ast.Attribute(value=holder, attr=key)
                | ast.Subscript(value=holder, slice=ast.Constant(value=key))
                | ast.Call(func=ast.Attribute(value=holder), args=[ast.Constant(value=key), *_])
            ) if key in KEYS:
                yield key, ast.unparse(holder)


def test_every_declared_key_is_read_from_its_section():
    places = ROOT / 'unfoldldm_basicsr', Path(basicsr.__file__).parent
    files = [path for place in places for path in place.rglob('*.py')]
    found = {pair for path in files for pair in reads(ast.parse(path.read_text()))}
    unread = set()
    for cls in DECLARED:
        words = next(words for base, words in HOLDERS.items() if issubclass(cls, base))
        last = re.compile(rf'\b({words})\W*$')  # a.val, a['val'], a.get('val') or {}
        unread |= own(cls) - {key for key, holder in found if last.search(holder)}
    assert unread == UNREAD


def test_every_declared_key_has_its_help():
    assert [(c.__name__, key) for c in DECLARED for key in own(c) if not help_of(c).get(key)] == []


def test_the_page_of_options_is_that_of_the_declarations():
    script = load_script('scripts/option_files/reference.py')
    page = (ROOT / 'docs' / 'options.md').read_text(encoding='utf-8')
    assert page == script.reference(), f'make it again: {script.__doc__}'
