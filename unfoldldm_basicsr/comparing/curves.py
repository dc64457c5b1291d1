"""What a training left behind: validations, stages, and the figures in its log."""

from __future__ import annotations

import re
from pathlib import Path

from unfoldldm_basicsr.comparing.testing import Rows, read_rows

_WHOLE = ('all', 'average')  # names of the row with the mean of a validation
_ITERATION = re.compile(r'iter:\s*([\d,]+)')
_FIGURE = re.compile(r'\b([A-Za-z_][\w/]*): (-?\d+\.\d+e[+-]\d+)')


def validation_rows(folder: Path) -> Rows:
    """Means of every validation of a training: ``set``, ``iteration``, ``metric``, ``value``.

    A validation that was written twice (at the end of a training) counts once.
    """
    found = {}
    for file in sorted(folder.glob('validation_*.csv')):
        name = file.stem.removeprefix('validation_')
        for row in read_rows(file):
            if row.pop('degradation') not in _WHOLE or not isinstance(row['iteration'], float):
                continue
            iteration = row.pop('iteration')
            row.pop('images')
            for metric, value in row.items():
                if isinstance(value, float):
                    found[name, iteration, metric] = value
    keys = 'set', 'iteration', 'metric', 'value'
    return [dict(zip(keys, (*key, value), strict=True)) for key, value in found.items()]


def stage_rows(folder: Path) -> Rows:
    """Mean PSNR of every stage at every validation with ``val.trace``."""
    groups: dict[tuple, list[dict]] = {}
    for file in sorted(folder.glob('stage_psnr_*.csv')):
        name = file.stem.removeprefix('stage_psnr_')
        for row in read_rows(file):
            if isinstance(row['iteration'], float):
                groups.setdefault((name, row['iteration'], int(row['stage'])), []).append(row)
    return [
        {
            'set': name, 'iteration': iteration, 'stage': stage,
            **{k: sum(r[k] for r in rows) / len(rows) for k in ('psnr_hat', 'psnr_tilde', 'psnr')},
        }
        for (name, iteration, stage), rows in groups.items()
    ]  # fmt: skip


def log_rows(folder: Path) -> Rows:
    """Losses and other figures of a training's log; what a resumed run repeats counts once."""
    found = {}
    for file in sorted(folder.glob('train_*.log')):
        for line in file.read_text(encoding='utf-8', errors='replace').splitlines():
            iteration = _ITERATION.search(line)
            if iteration is None:
                continue
            place = int(iteration[1].replace(',', ''))
            for name, value in _FIGURE.findall(line.rpartition(']')[2]):
                found[name, place] = float(value)
    return [
        {'figure': name, 'iteration': place, 'value': value}
        for (name, place), value in sorted(found.items())
    ]
