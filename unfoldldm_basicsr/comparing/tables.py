"""Result tables: a data frame as CSV for programs, Markdown for people, LaTeX for papers."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype
from tabulate import tabulate

from unfoldldm_basicsr.common.files import write_bytes_atomic

DECIMALS = {  # by the first word of a column's name
    'psnr': 2, 'params_m': 3, 'gmacs': 2, 'training_tmacs': 3, 'latency_ms': 1, 'peak_mib': 1,
    'training_s': 1,
}  # fmt: skip
TEXTS = {'set': str, 'image': str, 'input': str, 'side': str, 'run': str, 'options': str}


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Writes a CSV file with all digits, whole or not at all; odd file names keep their bytes."""
    write_bytes_atomic(path, frame.to_csv(index=False).encode('utf-8', 'surrogateescape'))


def read_csv(path: Path) -> pd.DataFrame:
    """Reads what :func:`write_csv` wrote."""
    return pd.read_csv(path, dtype=TEXTS, encoding_errors='surrogateescape')


def digest_of(options: Any) -> str:
    """A hash of options, for a column ``options`` that says what a row was made with."""
    text = json.dumps(options, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def made_once(path: Path, options: Any, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The table at ``path`` if it was made with these options, else what ``make`` gives."""
    digest = digest_of(options)
    if not path.exists() or {*read_csv(path).get('options', ())} != {digest}:
        path.unlink(missing_ok=True)  # until it is made again
        write_csv(make().assign(options=digest), path)
    return read_csv(path).drop(columns='options')


def markdown(frame: pd.DataFrame, note: str) -> str:
    """A Markdown table under a line that says how the numbers were made."""
    return f'{note.strip()}\n\n{_table(frame, "pipe")}\n'


def latex(frame: pd.DataFrame) -> str:
    """The same for a paper (package booktabs)."""
    return f'{_table(frame, "latex_booktabs")}\n'


def decimals(column: str) -> int:
    """Usual number of decimals of a cost or a metric: four, for PSNR (``oracle_psnr`` too) two."""
    name = column.lower().partition(' ')[0]
    return next((DECIMALS[word] for word in (name, *name.split('_')) if word in DECIMALS), 4)


def signed(gains: pd.DataFrame) -> pd.DataFrame:
    """Differences and their limits as texts with a sign and the decimals of their ``metric``."""
    for key in ('difference', 'low', 'high'):
        pairs = zip(gains['metric'], gains[key], strict=True)
        texts = [None if pd.isna(v) else f'{v:+.{decimals(m)}f}' for m, v in pairs]
        gains = gains.assign(**{key: texts})
    return gains


def _table(frame: pd.DataFrame, style: str) -> str:
    """Numbers to the right with the usual decimals, '-' for none; empty columns left out."""
    frame = frame.dropna(axis=1, how='all')
    sides = ['right' if is_numeric_dtype(frame[c]) else 'left' for c in frame]
    cells = {c: [_cell(c, value) for value in frame[c]] for c in frame}
    return tabulate(cells, 'keys', style, colalign=sides, disable_numparse=True)


def _cell(column: str, value: object) -> str:
    if pd.isna(value):
        return '-'
    if isinstance(value, float):
        return f'{value:.{decimals(column)}f}'
    return str(value).replace('|', '\\|').replace('\n', ' ')
