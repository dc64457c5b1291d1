"""The report of a single run: its validations, stages and log, and what its prior is worth."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from basicsr.utils.registry import MODEL_REGISTRY

from unfoldldm_basicsr.common.files import write_bytes_atomic
from unfoldldm_basicsr.common.registration import registered
from unfoldldm_basicsr.comparing.runs import Run, read_run
from unfoldldm_basicsr.comparing.statistics import paired_difference
from unfoldldm_basicsr.comparing.tables import markdown, read_csv, signed, write_csv
from unfoldldm_basicsr.comparing.task import TestOptions, options_of_test, test_sets
from unfoldldm_basicsr.comparing.testing import metrics_of, tested
from unfoldldm_basicsr.comparing.workspace import Workspace
from unfoldldm_basicsr.pictures import plots

PRIORS = ('generated', 'null', 'shuffled', 'oracle')
NOTE = (
    'Differences to the generated prior, paired by image, with 95 % intervals (bootstrap). '
    "Row shuffled, another image's prior, needs at least two images in every set."
)
FIGURES = {  # of the log: beginnings of names, label of the axis
    'losses': ('l_', 'loss'),
    'step_size': ('step_size', 'mean |x_hat - x| of a gradient step'),
    'isda_ratio': ('isda_ratio', '|x_hat - x_tilde| in steps'),
}
_WHOLE = ('all', 'average')  # names of the row with the mean of a validation
_ITERATION = re.compile(r'iter:\s*([\d,]+)')
_FIGURE = re.compile(r'\b([A-Za-z_][\w/]*): (-?\d+\.\d+e[+-]\d+)')


def report(path: Path, root: Path, folder: Path | None) -> str:
    """Writes curves, tables and a page about one run, by its folder or its name; says where."""
    *_, run = read_run(path, root)
    place = Workspace(root, folder or root / 'results' / f'report_{run.name}', threads=1)
    tables = {'validation': validations, 'stages': stages, 'log': log}
    tables = {name: read(run.folder) for name, read in tables.items()}
    parts = [f'# {run.name}\n']

    def draw(name: str, title: str, label: str, table: pd.DataFrame, by: str, value: str) -> None:
        if len(table):
            lines = table.rename(columns={by: 'side', value: 'value'})
            with plots.figure(place.folder / f'{name}.png', 'iterations', label) as axes:
                plots.curves(axes, lines, 'iteration', plots.looks(lines['side'].unique()))
            parts.append(f'\n## {title}\n\n![{title}]({name}.png)\n')

    for name, table in tables.items():
        if len(table):
            write_csv(table, place.folder / f'{name}.csv')
    for metric, own in tables['validation'].groupby('metric'):
        draw(f'validation_{metric}', f'Validation: {metric}', metric, own, 'set', 'value')
    own = tables['stages'].assign(stage='stage ' + tables['stages']['stage'].astype(str))
    if own['set'].nunique() > 1:
        own['stage'] = own['set'] + ', ' + own['stage']
    draw('stages', 'Stages: PSNR of x_k', 'PSNR in dB', own, 'stage', 'psnr')
    for name, (beginning, label) in FIGURES.items():
        own = tables['log'][tables['log']['figure'].str.startswith(beginning)]
        draw(name, f'Log: {name}', label, own, 'figure', 'value')
    if tables['validation'].empty:
        parts.append("\nNo validations: BasicSR's own models write theirs to the log alone.\n")
    tested_in_training = (run.options.get('val') or {}).get('metrics')
    if run.weights.exists() and tested_in_training and generates_prior(run.options):
        place.say('Testing with every prior ...')
        table = prior_table(run, place)
        write_csv(table, place.folder / 'prior.csv')
        shown = signed(table.assign(metric=next(iter(tested_in_training)))).drop(columns='metric')
        parts.append(f'\n## What the prior is worth\n\n{markdown(shown, NOTE)}')
    write_bytes_atomic(place.folder / 'report.md', ''.join(parts).encode())
    return f'Report: {place.folder / "report.md"}'


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
                found = ((name, iteration, float(value)) for name, value in figures)
                rows += [row for row in found if row[2] or row[0][:2] != 'l_']  # 0: left out, II-a
    frame = pd.DataFrame(rows, columns=['figure', 'iteration', 'value'])
    return _last([frame], ['figure', 'iteration'])


def _last(frames: list[pd.DataFrame], keys: list[str]) -> pd.DataFrame:
    """One row for each key, the last that was written, in order."""
    if not frames:
        return pd.DataFrame(columns=keys)
    frame = pd.concat(frames).drop_duplicates(keys, keep='last')
    return frame.sort_values(keys).reset_index(drop=True)


def generates_prior(options: Mapping[str, Any]) -> bool:
    """Whether the model of a run takes the values of ``val.prior_source``."""
    model = registered(MODEL_REGISTRY, options.get('model_type'))
    return getattr(model, 'default_prior_source', '') == 'generated'


def prior_table(run: Run, place: Workspace) -> pd.DataFrame:
    """A row for each test set and prior: mean score and the difference to the generated one."""
    metric, tables = next(iter(metrics_of(run.options))), {}
    for source in PRIORS:
        if source == 'shuffled' and tables['generated'].groupby('set').size().min() < 2:
            continue  # there is no other image
        changes, sets = TestOptions(val={'prior_source': source}), test_sets(run.options)
        test = options_of_test(f'{run.name}_{source}', run.options, sets, run.weights, changes)
        images = tested(test, place, pictures=False).groupby(['set', 'image'], sort=False)
        tables[source] = images[metric].mean()  # over draws
    rows = []
    for name in tables['generated'].index.unique('set'):
        for source, scores in tables.items():
            gain = paired_difference(scores[name] - tables['generated'][name])
            row = {'set': name, 'prior': source, 'images': gain.images, metric: scores[name].mean()}
            rows.append(row | {'difference': gain.mean, 'low': gain.low, 'high': gain.high})
    return pd.DataFrame(rows)
