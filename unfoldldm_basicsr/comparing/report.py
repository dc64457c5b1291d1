"""The report of a comparison: tables (CSV), plots, and the page that is rendered from them."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from unfoldldm_basicsr.common.files import write_bytes_atomic
from unfoldldm_basicsr.comparing.curves import validation_rows
from unfoldldm_basicsr.comparing.runs import Run
from unfoldldm_basicsr.comparing.statistics import paired_difference
from unfoldldm_basicsr.comparing.tables import format_value, latex_table, markdown_table
from unfoldldm_basicsr.comparing.testing import DEGRADED, KEYS, TRUTH, Rows, read_rows, write_rows
from unfoldldm_basicsr.data.images import read_picture
from unfoldldm_basicsr.pictures.drawing import crop, save_picture
from unfoldldm_basicsr.pictures.grids import comparison_grid
from unfoldldm_basicsr.pictures.plots import Series, curves, points, save_figure, scatter

CROPS = 3  # images in the picture of crops


@dataclass(frozen=True)
class Entry:
    """One side of a report.

    Attributes:
        name: of its files.
        title: in tables and plots.
        paper: what the paper says about it ('' in a comparison).
        images: for each seed the rows of its test.
        pictures: folder with its restored images (of the first seed).
        runs: for each seed its trainings, one for each phase; empty for plain weights.
        choices: what its test does differently, in words.
    """

    name: str
    title: str
    paper: str
    images: tuple[Rows, ...]
    pictures: Path
    runs: tuple[tuple[Run, ...], ...]
    choices: str = ''


def build(
    folder: Path,
    entries: Sequence[Entry],
    protocol: Mapping[str, str],
    costs: Rows,
    *,
    root: Path,
    reference: str | None = None,
    metrics: Mapping[str, Mapping[str, Any]],
) -> None:
    """Writes all files of a report.

    Args:
        folder: of the report.
        entries: the sides.
        protocol: topic -> sentence: how the numbers were made.
        costs: parameters, MACs, latency and memory of each side and size.
        root: where ``experiments`` is.
        reference: name of the side that all others are compared with; None: all pairs.
        metrics: of the images, as in ``val.metrics``.
    """
    _check_inputs(entries)
    sets = list(dict.fromkeys(row['set'] for row in entries[0].images[0]))
    tables = {
        'quality': quality_rows(entries, sets, metrics),
        'differences': difference_rows(entries, sets, metrics, reference),
        'costs': cost_rows(entries, costs),
        'curves': [row for e in entries for row in curve_rows(e, root)],
        'images': [
            {'side': e.title, 'seed': seed, **row} for e in entries
            for seed, rows in enumerate(e.images) for row in rows
        ],
        'protocol': [{'topic': key, 'text': value} for key, value in protocol.items()],
    }  # fmt: skip
    for name, rows in tables.items():
        if rows:
            write_rows(folder / f'{name}.csv', rows)
        if rows and name in ('quality', 'differences', 'costs'):
            write_bytes_atomic(folder / f'{name}.tex', latex_table(rows).encode())
    _plots(folder, tables, entries, sets, reference, next(iter(metrics)))
    _crops(folder, entries, sets[0], next(iter(metrics)))
    write_bytes_atomic(folder / 'report.md', render(folder).encode())


# ---- tables ---------------------------------------------------------------------------------


def score_array(entry: Entry, name: str, metric: str) -> np.ndarray:
    """Scores (seeds, images) on one test set."""
    return np.array([[r[metric] for r in rows if r['set'] == name] for rows in entry.images])


def quality_rows(
    entries: Sequence[Entry], sets: Sequence[str], metrics: Mapping[str, Mapping]
) -> Rows:
    """Mean of each metric over images and seeds, with the spread of the seeds' means."""
    rows = []
    for name in sets:
        first = [row for row in entries[0].images[0] if row['set'] == name]
        base = {'set': name, 'side': DEGRADED, 'images': len(first), 'seeds': 0}
        for metric in metrics:
            base |= {metric: float(np.mean([r[f'{DEGRADED} {metric}'] for r in first]))}
            base |= {f'{metric} spread': float('nan')}
        rows.append(base)
        for entry in entries:
            row = {'set': name, 'side': entry.title, 'images': len(first)}
            row['seeds'] = len(entry.images)
            for metric in metrics:
                means = score_array(entry, name, metric).mean(1)
                row[metric] = float(means.mean())
                spread = means.std(ddof=1) if len(means) > 1 else np.nan
                row[f'{metric} spread'] = float(spread)
            rows.append(row)
    return rows


def difference_rows(
    entries: Sequence[Entry],
    sets: Sequence[str],
    metrics: Mapping[str, Mapping],
    reference: str | None,
) -> Rows:
    """Every side against the reference, or every pair: paired over images, mean over seeds."""
    chosen = [e for e in entries if e.name == reference]
    pairs = [(e, chosen[0]) for e in entries if e is not chosen[0]] if chosen else list(
        combinations(entries, 2)
    )  # fmt: skip
    rows = []
    for name in sets:
        for metric, options in metrics.items():
            for one, other in pairs:
                gain = paired_difference(*(score_array(e, name, metric) for e in (one, other)))
                row = {
                    'set': name, 'metric': metric, 'side': one.title, 'minus': other.title,
                    'difference': gain.mean, 'low': gain.low, 'high': gain.high,
                    'images': gain.images,
                    'verdict': gain.verdict(options.get('better', 'higher') == 'higher'),
                }  # fmt: skip
                rows.append(row | ({'paper': one.paper} if any(e.paper for e in entries) else {}))
    return rows


def cost_rows(entries: Sequence[Entry], costs: Rows) -> Rows:
    """One row for each side and size: what it costs in use and in training (mean of seeds)."""
    rows = []
    for cost in costs:
        entry = next(e for e in entries if e.name == cost['side'])
        row = {**cost, 'side': entry.title}
        if entry.runs:
            runs, seeds = [r for phases in entry.runs for r in phases], len(entry.runs)
            row |= {
                'iterations': ' + '.join(str(r.iterations) for r in entry.runs[0]),
                'training_s': round(sum(r.iterations * r.seconds for r in runs) / seeds, 1),
                'training_TMACs': sum(r.iterations * r.macs for r in runs) / seeds / 1e12,
            }
        rows.append(row)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return [{key: row.get(key, float('nan')) for key in keys} for row in rows]


def curve_rows(entry: Entry, root: Path) -> Rows:
    """Validations of all trainings of a side, the phases one after the other."""
    rows = []
    for phases in entry.runs:
        iterations, seconds = 0, 0.0
        for run in phases:
            for row in validation_rows(root / 'experiments' / run.name):
                rows.append(
                    {
                        'side': entry.title, 'seed': run.seed, 'phase': run.phase + 1,
                        'set': row['set'], 'iteration': iterations + row['iteration'],
                        'seconds': round(seconds + row['iteration'] * run.seconds, 2),
                        'metric': row['metric'], 'value': row['value'],
                    }
                )  # fmt: skip
            iterations += run.iterations
            seconds += run.iterations * run.seconds
    return rows


def _check_inputs(entries: Sequence[Entry]) -> None:
    expected = [tuple(row[k] for k in KEYS) for row in entries[0].images[0]]
    for entry in entries:
        for rows in entry.images:
            if [tuple(row[k] for k in KEYS) for row in rows] != expected:
                raise ValueError(
                    f'{entry.title} and {entries[0].title} were not tested on the same degraded '
                    'images: remove the folder images of the report and start again.'
                )


# ---- pictures -------------------------------------------------------------------------------


def _plots(
    folder: Path,
    tables: Mapping[str, Rows],
    entries: Sequence[Entry],
    sets: Sequence[str],
    reference: str | None,
    metric: str,
) -> None:
    names = {'iteration': 'iterations', 'seconds': 'seconds of training steps'}
    shown = [row for row in tables['curves'] if row['metric'].rpartition('_')[2] == metric]
    for key, label in names.items():
        if shown:
            series = {e.title: _curve(shown, e.title, key, n) for n, e in enumerate(entries)}
            series = {title: line for title, line in series.items() if line.x}
            note = f'{shown[0]["set"]}; mean of seeds; hollow: prior taken from the truth'
            figure = curves(series, label, f'{metric} in validation', note)
            save_figure(figure, folder / f'quality_over_{key}.png')
    quality = {r['side']: r for r in tables['quality'] if r['set'] == sets[0]}
    styles = {entry.title: number for number, entry in enumerate(entries)}
    size = min((row['size'] for row in tables['costs']), default=0)
    for key, label in (('GMACs', 'GMACs'), ('latency_ms', 'latency in ms')):
        series = {
            row['side']: Series(
                [row[key]],
                [quality[row['side']][metric]],
                [] if np.isnan(s := quality[row['side']][f'{metric} spread']) else [s],
                style=styles[row['side']],
            )
            for row in tables['costs']
            if row['size'] == size and row[key] == row[key]
        }
        if series:
            note = f'{sets[0]}; cost at {size:g} x {size:g}; bars: spread of the seeds'
            save_figure(
                points(series, label, metric, note),
                folder / f'quality_against_{key.partition("_")[0]}.png',
            )
    base = next((e for e in entries if e.name == reference), entries[0])
    if len(entries) > 1:
        x = score_array(base, sets[0], metric).mean(0)
        series = {
            e.title: Series(
                x, score_array(e, sets[0], metric).mean(0) - x, style=styles[e.title]
            )
            for e in entries if e is not base
        }  # fmt: skip
        labels = f'{metric} of {base.title}', f'{metric} minus that of {base.title}'
        save_figure(scatter(series, *labels, f'{sets[0]}: one marker per image'),
                    folder / 'images.png')  # fmt: skip


def _curve(rows: Rows, title: str, key: str, style: int) -> Series:
    """Mean over the seeds at every validation."""
    own: dict[tuple, list] = {}
    first = rows[0]['set']
    for row in rows:
        if row['side'] == title and row['set'] == first:
            own.setdefault((row['phase'], row['iteration']), []).append(row)
    groups = list(own.values())
    return Series(
        [float(np.mean([r[key] for r in g])) for g in groups],
        [float(np.mean([r['value'] for r in g])) for g in groups],
        hollow=[g[0]['metric'].startswith('oracle') for g in groups],
        style=style,
    )


def most_disagreeing(entries: Sequence[Entry], name: str, metric: str) -> list[int]:
    """Places of the images on which the sides differ most (standard deviation of the scores)."""
    spread = np.std([score_array(e, name, metric).mean(0) for e in entries], axis=0)
    return [int(i) for i in np.argsort(-spread, kind='stable')[:CROPS]]


def disagreement_box(images: Sequence[np.ndarray], side: int) -> tuple[int, int, int, int]:
    """The square in which the images differ most (variance between them)."""
    variance = np.var(np.stack(images).astype(np.float32), axis=0).mean(-1)
    side = min(side, *variance.shape)
    total = cv2.boxFilter(variance, -1, (side, side), anchor=(0, 0), normalize=False)
    total = total[: variance.shape[0] - side + 1, : variance.shape[1] - side + 1]
    top, left = np.unravel_index(int(np.argmax(total)), total.shape)
    return int(top), int(left), side, side


def _crops(folder: Path, entries: Sequence[Entry], name: str, metric: str) -> None:
    """Crops side by side where the sides disagree most."""
    rows, captions = [], []
    names = [row['image'] for row in entries[0].images[0] if row['set'] == name]
    for place in most_disagreeing(entries, name, metric):
        file = f'{name}/{names[place]}.png'
        own = [read_picture(e.pictures / file).pixels for e in entries]
        degraded, truth = (
            read_picture(folder / 'restored' / kind / file).pixels for kind in (DEGRADED, TRUTH)
        )
        box = disagreement_box(own, max(32, min(truth.shape[:2]) // 4))
        rows.append([crop(image, box) for image in (degraded, *own, truth)])
        values = [entries[0].images[0][place][f'{DEGRADED} {metric}']]
        values += [score_array(e, name, metric)[0, place] for e in entries]
        captions.append([*(f'{value:.2f}' for value in values), names[place][:18]])
    grid = comparison_grid(
        rows, [DEGRADED, *(e.title for e in entries), TRUTH], captions, cell_width=220,
        footer=f'{name}: where the sides differ most; {metric} of the whole image',
    )  # fmt: skip
    save_picture(folder / 'crops.png', grid)


# ---- page -----------------------------------------------------------------------------------

_PLOTS = {
    'quality_over_seconds': 'Quality over training time',
    'quality_over_iteration': 'Quality over iterations',
    'quality_against_GMACs': 'Quality against multiply-accumulates',
    'quality_against_latency': 'Quality against latency',
    'images': 'Image by image',
    'crops': 'Where the sides differ most',
}


def render(folder: Path, place: str = '') -> str:
    """The page of a report, from its CSV files alone.

    Args:
        folder: of the report.
        place: of its pictures, seen from the page; with a slash at the end.
    """
    tables = {
        name: read_rows(folder / f'{name}.csv')
        for name in ('protocol', 'quality', 'differences', 'costs')
        if (folder / f'{name}.csv').exists()
    }
    protocol = {row['topic']: row['text'] for row in tables['protocol']}
    far = set(protocol.get('unseen', '').split(', '))
    parts = [f'## {protocol.pop("title")}\n']
    parts += [f'- {key}: {text}\n' for key, text in protocol.items() if text]
    for name in dict.fromkeys(row['set'] for row in tables['quality']):
        unseen = ', not seen in training' if name in far else ''
        parts.append(f'\n### {name}{unseen}\n\n')
        rows = [_without(row, 'set') for row in tables['quality'] if row['set'] == name]
        parts.append(markdown_table(_whole(rows), 'Means over images and seeds.'))
        rows = [
            _without(r, 'set') | {k: format_value(str(r['metric']), r[k]) for k in _GAINS}
            for r in tables.get('differences', ()) if r['set'] == name
        ]  # fmt: skip
        if rows:
            parts.append('\n' + markdown_table(_whole(rows), _statistics_note(len(rows))))
    if 'costs' in tables:
        parts.append('\n### Cost\n\n')
        parts.append(markdown_table(_whole(tables['costs']), protocol.get('cost', 'Cost.')))
    for name, title in _PLOTS.items():
        if (folder / f'{name}.png').exists():
            parts.append(f'\n### {title}\n\n![{title}]({place}{name}.png)\n')
    return ''.join(parts)


def render_all(folder: Path, page: Path | None = None) -> str:
    """Writes the page that shows every report below a folder.

    Args:
        folder: its folders are reports (their CSV files and pictures are enough).
        page: to write; None: beside the folder, under its name with ``.md``.

    Returns:
        One line that says where the page is.

    Raises:
        ValueError: no reports there.
    """
    reports = sorted(file.parent for file in folder.glob('*/protocol.csv'))
    if not reports:
        raise ValueError(f'{folder}: no folder there with the protocol.csv of a report.')
    page = page or folder.with_suffix('.md')
    command = f'unfoldldm report --render {folder}'
    parts = [f'# Results\n\nRendered by `{command}` from the CSV files of real runs.\n\n']
    parts += [f'{render(path, f"{folder.name}/{path.name}/")}\n' for path in reports]
    write_bytes_atomic(page, ''.join(parts).encode())
    return f'Written: {page}'


def _statistics_note(count: int) -> str:
    return (
        'Differences are paired by image and averaged over seeds; 95 % intervals over images by '
        f'bootstrap (BCa). Comparisons: {count}; without any true difference about '
        f'{0.05 * count:.1f} of them would leave zero out.'
    )


def _without(row: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k != key}


def _whole(rows: Iterable[Mapping[str, Any]]) -> Rows:
    """Counts as whole numbers, and no column that says nothing."""
    rows = [
        {k: int(v) if isinstance(v, float) and k in _COUNTS and v == v else v for k, v in r.items()}
        for r in rows
    ]
    empty = {k for k in rows[0] if all(r[k] != r[k] or r[k] == '' for r in rows)}
    return [{k: v for k, v in row.items() if k not in empty} for row in rows]


_COUNTS = ('images', 'seeds', 'size', 'iterations')
_GAINS = ('difference', 'low', 'high')


def machine(threads: int) -> str:
    """Processor or GPU, threads and the version of torch."""
    name = platform.processor() or platform.machine()
    info = Path('/proc/cpuinfo')
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    elif info.exists():
        lines = [s for s in info.read_text().splitlines() if s.startswith('model name')]
        name = lines[0].partition(':')[2].strip() if lines else name
    return f'{name}, {threads} CPU thread{"s" * (threads > 1)}, torch {torch.__version__}'
