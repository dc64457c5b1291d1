"""The option files, and the data that they read, in miniature."""

import re
from pathlib import Path

import yaml
from helpers import ROOT
from miniatures import prepare_all

OPTIONS = ROOT / 'options'


def sets_of(options: dict) -> list[str]:
    """Names of the data sets whose LMDBs an option file reads."""
    return sorted(set(re.findall(r'datasets/([^/\'"]+)/\w+_(?:gt|lq)\.lmdb', str(options))))


def build_datasets(root: Path, options: dict) -> Path:
    """Writes ``root/datasets`` as ``unfoldldm prepare`` does for these options."""
    return prepare_all(root, sets_of(options))


def load_options(name: str) -> dict:
    """An option file, ``name`` relative to the folder ``options``."""
    return yaml.safe_load((OPTIONS / name).read_text(encoding='utf-8'))
