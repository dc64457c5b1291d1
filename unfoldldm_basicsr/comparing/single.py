"""The report of a single run: curves from its log and tables, and what its prior is worth."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from basicsr.utils.registry import ARCH_REGISTRY

from unfoldldm_basicsr.common.files import write_bytes_atomic
from unfoldldm_basicsr.comparing import curves
from unfoldldm_basicsr.comparing.finished import read_run
from unfoldldm_basicsr.comparing.statistics import paired_difference
from unfoldldm_basicsr.comparing.tables import markdown, write_csv
from unfoldldm_basicsr.comparing.task import TestOptions, options_of_test, sections, weights_of
from unfoldldm_basicsr.comparing.testing import metrics_of, tested
from unfoldldm_basicsr.pictures import plots
from unfoldldm_basicsr.pictures.plots import Series, save_figure

PRIORS = ('generated', 'null', 'shuffled', 'oracle')
FIGURES = {  # of the log: file, figures (all that begin so), label of the axis
    'losses': (('l_',), 'loss'),
    'step_size': (('step_size',), 'mean |x_hat - x| of a gradient step'),
    'isda_ratio': (('isda_ratio',), '|x_hat - x_tilde| in steps'),
}


def report(path: Path, root: Path, folder: Path | None, say: Callable[[str], None]) -> str:
    """Writes curves, tables and a page about one run.

    Args:
        path: folder of the run, or its name below ``root/experiments``.
        root: where ``experiments`` and ``results`` are.
        folder: of the report; None: ``results/report_NAME``.
        say: gets lines about the progress.

    Returns:
        One line that says where the report is.

    Raises:
        ValueError: no such run.
    """
    run = read_run(path, root)
    folder = folder or root / 'results' / f'report_{run.folder.name}'
    parts = [f'# {run.folder.name}\n']
    tables = {
        'validation': curves.validations(run.folder),
        'stages': curves.stages(run.folder),
        'log': curves.log(run.folder),
    }
    for name, table in tables.items():
        if len(table):
            write_csv(table, folder / f'{name}.csv')
    parts += _figures(folder, tables)
    sources = prior_sources(run.options)
    if sources and weights_of(run.folder.parent.parent, run.folder.name).exists():
        say('Testing with every prior ...')
        table = prior_table(run.options, run.folder, folder, sources)
        write_csv(table, folder / 'prior.csv')
        note = 'Validation sets; differences to the generated prior, paired by image, 95 % interval'
        parts.append(f'\n## What the prior is worth\n\n{markdown(table, note)}')
    write_bytes_atomic(folder / 'report.md', ''.join(parts).encode())
    return f'Report: {folder / "report.md"}'


def prior_sources(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Prior sources that a trained network can be tested with; none without a generated prior."""
    network = options['network_g']
    known = inspect.signature(ARCH_REGISTRY.get(network['type'])).parameters
    generates = network.get('phase', 2) != 1 and network.get('use_ldm', True)
    return PRIORS if 'prior_source' in known and generates else ()


def prior_table(
    options: Mapping[str, Any], run: Path, folder: Path, sources: tuple[str, ...]
) -> pd.DataFrame:
    """A row for each prior: mean score and the difference to the generated one."""
    sets = sections(options['datasets'], 'val')
    weights, metric = weights_of(run.parent.parent, run.name), next(iter(metrics_of(options)))
    rows, base = [], None
    for source in sources:
        changes = TestOptions(val={'prior_source': source})
        opt = options_of_test(f'{run.name}_{source}', options, sets, weights, changes)
        scores = tested(opt, weights, folder, pictures=False)[metric]
        base = scores if base is None else base
        gain = paired_difference(scores - base)
        row = {'prior': source, 'images': gain.images, metric: scores.mean()}
        rows.append(row | {'difference': gain.mean, 'low': gain.low, 'high': gain.high})
    return pd.DataFrame(rows)


def _figures(folder: Path, tables: Mapping[str, pd.DataFrame]) -> list[str]:
    parts = []

    def draw(name: str, title: str, label: str, table: pd.DataFrame, by: str, value: str) -> None:
        lines = enumerate(table.groupby(by, sort=False)) if len(table) else ()
        series = {
            str(key): Series(own['iteration'], own[value], style=n) for n, (key, own) in lines
        }
        if series:
            save_figure(plots.curves(series, 'iterations', label), folder / f'{name}.png')
            parts.append(f'\n## {title}\n\n![{title}]({name}.png)\n')

    table = tables['validation']
    for metric in table['metric'].unique() if len(table) else ():
        own = table[table['metric'] == metric]
        draw(f'validation_{metric}', f'Validation: {metric}', metric, own, 'set', 'value')
    stages = tables['stages']
    if len(stages):
        own = stages.assign(stage='stage ' + stages['stage'].astype(str))
        draw('stages', 'Stages: PSNR of x_k', 'PSNR in dB', own, 'stage', 'psnr')
    log = tables['log']
    for name, (beginnings, label) in FIGURES.items():
        own = log[log['figure'].str.startswith(beginnings)]
        draw(name, f'Log: {name}', label, own, 'figure', 'value')
    return parts
