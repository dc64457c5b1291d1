"""What a training left behind: validations, stages, and the figures in its log."""

import re
from pathlib import Path

import pandas as pd

from unfoldldm_basicsr.comparing.tables import read_csv

_WHOLE = ('all', 'average')  # names of the row with the mean of a validation
_ITERATION = re.compile(r'iter:\s*([\d,]+)')
_FIGURE = re.compile(r'\b([A-Za-z_][\w/]*): (-?\d+\.\d+e[+-]\d+)')


def validations(run: Path) -> pd.DataFrame:
    """Last means of every validation: ``set``, ``iteration``, ``metric``, ``value``."""
    frames = []
    for file in sorted(run.glob('validation_*.csv')):
        table = read_csv(file)
        table = table[table['degradation'].isin(_WHOLE)].drop(columns=['degradation', 'images'])
        long = table.melt('iteration', var_name='metric').dropna()
        frames.append(long.assign(set=file.stem.removeprefix('validation_')))
    return _last(frames, ['set', 'metric', 'iteration'])


def stages(run: Path) -> pd.DataFrame:
    """Mean PSNR of every stage at every validation with ``val.trace``: ``set``, ``iteration``,
    ``stage``, ``psnr_hat``, ``psnr_tilde``, ``psnr``."""
    frames = []
    for file in sorted(run.glob('stage_psnr_*.csv')):
        means = read_csv(file).groupby(['iteration', 'stage'])[['psnr_hat', 'psnr_tilde', 'psnr']]
        frames.append(means.mean().reset_index().assign(set=file.stem.removeprefix('stage_psnr_')))
    return _last(frames, ['set', 'stage', 'iteration'])


def log(run: Path) -> pd.DataFrame:
    """Last losses and other figures of the logs: ``figure``, ``iteration``, ``value``."""
    rows = []
    for file in sorted(run.glob('train_*.log')):
        for line in file.read_text(encoding='utf-8', errors='replace').splitlines():
            if place := _ITERATION.search(line):
                figures = _FIGURE.findall(line.rpartition(']')[2])
                iteration = int(place[1].replace(',', ''))
                rows += [(name, iteration, float(value)) for name, value in figures]
    frame = pd.DataFrame(rows, columns=['figure', 'iteration', 'value'])
    return _last([frame], ['figure', 'iteration'])


def _last(frames: list[pd.DataFrame], keys: list[str]) -> pd.DataFrame:
    """One row for each key, the last that was written, in order."""
    if not frames:
        return pd.DataFrame(columns=keys)
    frame = pd.concat(frames).drop_duplicates(keys, keep='last')
    return frame.sort_values(keys).reset_index(drop=True)
