"""README and docs: links lead somewhere, commands are understood, code compiles, files exist."""

import glob
import itertools
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from basicsr.utils.registry import ARCH_REGISTRY
from helpers import ROOT, write_photos
from tiny_network import save_trained, unfoldldm_kwargs

from unfoldldm_basicsr.cli import COMMANDS, build_parser
from unfoldldm_basicsr.data.degradations import DEGRADATIONS, DegradationChain

FOLDERS = '*.md', 'docs/*.md', 'options/**/*.md', 'scripts/**/*.md'
PAGES = sorted(page for pattern in FOLDERS for page in ROOT.glob(pattern))
EACH = pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
OURS = ('options/', 'scripts/', 'docs/', 'tests/', 'unfoldldm_basicsr/')


def blocks(page: Path, kind: str) -> list[str]:
    """Code of a page in the languages that match ``kind``."""
    return re.findall(rf'^```(?:{kind})\n(.*?)^```', page.read_text('utf-8'), re.M | re.S)


def without_code(page: Path) -> str:
    return re.sub(r'^```.*?^```', '', page.read_text('utf-8'), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """Anchors of headings as GitHub makes them."""
    heads = re.findall(r'^#+ (.+)$', without_code(page), re.M)
    return {re.sub(r'[^\w\- ]', '', head.lower()).strip().replace(' ', '-') for head in heads}


def commands(page: Path) -> list[list[str]]:
    """Commands of the shell blocks, continued lines joined, comments and variables left out."""
    found = []
    for block in blocks(page, 'bash|sh|'):
        for line in block.replace('\\\n', ' ').splitlines():
            try:
                words = shlex.split(line, comments=True)
            except ValueError:  # a drawing or an equation
                continue
            while words and re.fullmatch(r'[A-Z_]+=\S*', words[0]):
                words.pop(0)
            for end in ('|', '&&', '>', ';'):
                words = words[: words.index(end)] if end in words else words
            if words:
                found.append(words)
    return found


def expanded(name: str) -> list[str]:
    braces = re.search(r'\{([^{}]*)\}', name)
    if not braces:
        return [name]
    start, end = name[: braces.start()], name[braces.end() :]
    return [file for part in braces[1].split(',') for file in expanded(start + part + end)]


@EACH
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r'\]\(([^)\s]+)\)', without_code(page)):
        if re.match(r'https?://|mailto:', target):
            continue
        name, _, anchor = target.partition('#')
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@EACH
def test_commands_are_understood(page):
    for words in commands(page):
        if words[0] == 'unfoldldm':
            assert words[1] in COMMANDS, words
            build_parser().parse_args(words[1:])
            continue
        if words[0] == 'python' and words[1] == '-m':
            module = words[2].replace('.', '/')
            assert not module.startswith('unfoldldm') or (ROOT / f'{module}.py').is_file(), words
        elif words[0] in ('bash', 'source', 'python') and words[1].startswith('scripts/'):
            assert (ROOT / words[1]).is_file(), words
            source = (ROOT / words[1]).read_text(encoding='utf-8')
            for word in words[2:] if words[0] == 'python' else ():
                assert not word.startswith('--') or f"'{word.partition('=')[0]}'" in source, words
        for option, value in itertools.pairwise(words):
            if option == '-opt' and value.startswith('options/'):
                assert all((ROOT / file).is_file() for file in expanded(value)), words


@EACH
def test_files_and_commands_in_the_text_exist(page):
    for quoted in re.findall(r'`([^`\n]+)`', without_code(page)):
        words = quoted.split()
        if words[0] == 'unfoldldm' and len(words) > 1 and re.fullmatch('[a-z]+', words[1]):
            assert words[1] in COMMANDS, quoted
        name = words[0].partition('::')[0]
        if not name.startswith(OURS) or re.search(r'[A-Z]{3,}(?!\.)|<|DIR', name):
            continue
        for file in expanded(name.rstrip(':,.')):
            assert glob.glob(str(ROOT / file)), quoted


@EACH
def test_python_examples_compile_and_import_what_exists(page):
    for block in blocks(page, 'python'):
        compile(block, str(page), 'exec')
        for module, names in re.findall(r'^from (unfoldldm[\w.]*) import (.+)$', block, re.M):
            loaded = __import__(module, fromlist=['x'])
            for name in names.split(','):
                assert hasattr(loaded, name.strip()), f'{module}.{name}'


def test_the_example_of_the_readme_loads_restores_and_shows(tmp_path, monkeypatch):
    (block,) = (block for block in blocks(ROOT / 'README.md', 'python') if 'Restorer' in block)
    assert len(block.splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MPLBACKEND', 'Agg')
    save_trained(Path('net_g.pth'))
    write_photos(tmp_path, 1)[0].rename('photo.png')
    names: dict = {}
    exec(block, names)
    left, right = (cell.images[0].get_array() for cell in names['cells'])
    assert np.array_equal(left, names['photo'])
    assert left.shape == right.shape
    assert (left != right).any()


def test_the_degradation_of_the_guide_for_changes_degrades(monkeypatch):
    page = ROOT / 'docs/contributing.md'
    (block,) = (b for b in blocks(page, 'python') if 'Posterise' in b)
    (steps,) = blocks(page, 'yaml')
    monkeypatch.setitem(DEGRADATIONS, 'posterise', None)
    exec(compile(block, 'example', 'exec', dont_inherit=True), {'__name__': 'example'})
    chain = DegradationChain(**yaml.safe_load(steps))
    image = np.random.default_rng(0).random((32, 32, 3), np.float32)
    first, again = (chain(image, np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(first, again)
    ((name, drawn), _) = chain.sample(np.random.default_rng(1))
    alone = DEGRADATIONS[name].apply(image[..., :1], np.random.default_rng(1), **drawn)
    assert len(np.unique(alone)) == drawn['levels'] < 33


def test_the_gradient_step_of_the_guide_for_changes_restores(monkeypatch):
    monkeypatch.setattr(ARCH_REGISTRY, '_obj_map', dict(ARCH_REGISTRY._obj_map))
    (block,) = (b for b in blocks(ROOT / 'docs/contributing.md', 'python') if 'KnownBlur' in b)
    exec(block, {'__name__': 'example'})
    net = ARCH_REGISTRY.get('KnownBlur')(**unfoldldm_kwargs(mgda_mode='none')).eval()
    x, r = torch.rand(2, 1, 3, 16, 16)
    assert torch.allclose((net.blur(x) * r).sum(), (x * net.blur(r)).sum())
    once, twice = (net.blur(net.gradient_step(z, net.blur(x), 0, None).x_hat) for z in (r, x))
    assert (once - net.blur(x)).norm() < (net.blur(r) - net.blur(x)).norm()
    assert torch.allclose(twice, net.blur(x))
    assert net(x, prior_source='null').shape == x.shape
