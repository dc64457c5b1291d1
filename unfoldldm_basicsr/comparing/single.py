"""The report of a single run: curves from its log and tables, and what its prior is worth."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from basicsr.utils.registry import ARCH_REGISTRY

from unfoldldm_basicsr.common.files import write_bytes_atomic
from unfoldldm_basicsr.comparing.curves import log_rows, stage_rows, validation_rows
from unfoldldm_basicsr.comparing.finished import read_run
from unfoldldm_basicsr.comparing.statistics import paired_difference
from unfoldldm_basicsr.comparing.tables import markdown_table
from unfoldldm_basicsr.comparing.task import TestOptions, options_of_test, sections, weights_of
from unfoldldm_basicsr.comparing.testing import Rows, metrics_of, tested, write_rows
from unfoldldm_basicsr.pictures.plots import Series, curves, save_figure

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
        'validation': validation_rows(run.folder),
        'stages': stage_rows(run.folder),
        'log': log_rows(run.folder),
    }
    for name, rows in tables.items():
        if rows:
            write_rows(folder / f'{name}.csv', rows)
    parts += _figures(folder, tables)
    sources = prior_sources(run.options)
    if sources and weights_of(run.folder.parent.parent, run.folder.name).exists():
        say('Testing with every prior ...')
        rows = prior_rows(run.options, run.folder, folder, sources)
        write_rows(folder / 'prior.csv', rows)
        note = 'Validation sets; differences to the generated prior, paired by image, 95 % interval'
        parts.append(f'\n## What the prior is worth\n\n{markdown_table(rows, note)}')
    write_bytes_atomic(folder / 'report.md', ''.join(parts).encode())
    return f'Report: {folder / "report.md"}'


def prior_sources(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Prior sources that a trained network can be tested with; none without a generated prior."""
    network = options['network_g']
    known = inspect.signature(ARCH_REGISTRY.get(network['type'])).parameters
    generates = network.get('phase', 2) != 1 and network.get('use_ldm', True)
    return PRIORS if 'prior_source' in known and generates else ()


def prior_rows(
    options: Mapping[str, Any], run: Path, folder: Path, sources: tuple[str, ...]
) -> Rows:
    """A row for each prior: mean PSNR and the difference to the generated one."""
    metrics, tests = metrics_of(options), {}
    sets = sections(options['datasets'], 'val')
    weights = weights_of(run.parent.parent, run.name)
    for source in sources:
        changes = TestOptions(val={'prior_source': source})
        opt = options_of_test(f'{run.name}_{source}', options, sets, weights, changes)
        tests[source] = tested(opt, weights, folder, pictures=False)
    metric, rows = next(iter(metrics)), []
    for source, images in tests.items():
        own, base = (np.array([[row[metric] for row in t]]) for t in (images, tests[sources[0]]))
        row = {'prior': source, 'images': own.shape[1], metric: float(own.mean())}
        gain = paired_difference(own, base)
        rows.append(row | {'difference': gain.mean, 'low': gain.low, 'high': gain.high})
    return rows


def _figures(folder: Path, tables: Mapping[str, Rows]) -> list[str]:
    parts = []

    def draw(name: str, title: str, label: str, series: dict[str, Series]) -> None:
        if series:
            save_figure(curves(series, 'iterations', label), folder / f'{name}.png')
            parts.append(f'\n## {title}\n\n![{title}]({name}.png)\n')

    for metric in dict.fromkeys(row['metric'] for row in tables['validation']):
        series = _series(tables['validation'], 'set', 'value', metric=metric)
        draw(f'validation_{metric}', f'Validation: {metric}', metric, series)
    stages = _series(tables['stages'], 'stage', 'psnr')
    series = {f'stage {stage}': line for stage, line in stages.items()}
    draw('stages', 'Stages: PSNR of x_k', 'PSNR in dB', series)
    for name, (beginnings, label) in FIGURES.items():
        rows = [row for row in tables['log'] if row['figure'].startswith(beginnings)]
        draw(name, f'Log: {name}', label, _series(rows, 'figure', 'value'))
    return parts


def _series(rows: Rows, key: str, value: str, **wanted: str) -> dict[str, Series]:
    """Values over iterations, a line for each ``key``."""
    lines: dict[str, tuple[list, list]] = {}
    for row in rows:
        if all(row[k] == v for k, v in wanted.items()):
            x, y = lines.setdefault(str(row[key]), ([], []))
            x.append(row['iteration'])
            y.append(row[value])
    return {name: Series(x, y, style=n) for n, (name, (x, y)) in enumerate(lines.items())}
