"""A folder ``datasets`` as scripts/data/README.md lays it out, with a few tiny photos per set."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import yaml
from helpers import ROOT, write_photos

from unfoldldm_basicsr.preparing.lmdb_writer import write_lmdb

OPTIONS = ROOT / 'options'
HAZY = [
    f'{clear}_{light}_0.{beta}'
    for clear in ('0025', '0039')
    for light in (0.8, 1)
    for beta in (1, 2)
]
PLACES = {
    'BSD400_WED': [f'{i:05d}.png' for i in range(4)],
    'CBSD68': ['101085.png', '101087.png'],
    'OTS/clear': ['0025.png', '0039.png'],
    'OTS/hazy': [f'part{1 + i % 2}/{name}.png' for i, name in enumerate(HAZY)],
    'SOTS/outdoor/gt': ['0001.png', '0002.png'],
    'SOTS/outdoor/hazy': ['0001_0.8_0.2.png', '0002_0.8_0.08.png', '0002_1_0.08.png'],
    'Rain100L/train/gt': [f'norain-{i}.png' for i in range(1, 5)],
    'Rain100L/train/rainy': [f'rain-{i}.png' for i in range(1, 5)],
    'Rain100L/test/gt': ['norain-001.png'],
    'Rain100L/test/rainy': ['rain-001.png'],
    'GOPRO_Large/train': [f'S/{kind}/{i}.png' for kind in ('blur', 'sharp') for i in range(4)],
    'GOPRO_Large/test': [f'T/{kind}/{i}.png' for kind in ('blur', 'sharp') for i in range(2)],
    'LOL/our485/high': [f'{i}.png' for i in range(4)],
    'LOL/our485/low': [f'{i}.png' for i in range(4)],
    'LOL/eval15/high': ['1.png'],
    'LOL/eval15/low': ['1.png'],
}


def build_datasets(root: Path) -> Path:
    """Writes ``root/datasets``; the lists of pairs are made by the commands of the README."""
    datasets = root / 'datasets'
    for place, names in PLACES.items():
        for index, photo in enumerate(write_photos(root / 'photos', len(names), (40, 56))):
            target = datasets / place / names[index]
            target.parent.mkdir(parents=True, exist_ok=True)
            photo.rename(target)
    shutil.rmtree(root / 'photos')
    for arguments in list_commands():
        assert load_script('make_meta_info').main(in_folder(arguments, root)) == 0
    write_lmdb(datasets / 'BSD400_WED', datasets / 'dfwb.lmdb')
    for split, name in (('train', 'gopro'), ('test', 'gopro_test')):
        for kind, side in (('sharp', 'gt'), ('blur', 'lq')):
            write_lmdb(
                datasets / 'GOPRO_Large' / split,
                datasets / f'{name}_{side}.lmdb',
                only=f'/{kind}/',
                renames=[(f'/{kind}/', '/')],
            )
    return root


def list_commands() -> list[list[str]]:
    """Arguments of every ``make_meta_info.py`` in a code block of the README."""
    readme = (ROOT / 'scripts' / 'data' / 'README.md').read_text(encoding='utf-8')
    lines = re.findall(r'^python scripts/data/make_meta_info.py (.*)$', readme, re.M)
    assert len(lines) == 6
    return [shlex.split(line) for line in lines]


def in_folder(arguments: list[str], root: Path) -> list[str]:
    return [str(root / a) if a.startswith('datasets/') else a for a in arguments]


def load_script(name: str):
    """A script of scripts/data as a module."""
    path = ROOT / 'scripts' / 'data' / f'{name}.py'
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_options(name: str) -> dict:
    """An option file, ``name`` relative to the folder ``options``."""
    return yaml.safe_load((OPTIONS / name).read_text(encoding='utf-8'))
