"""The report of a comparison: tables, plots, and the page that is rendered from them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from unfoldldm_basicsr.common.files import write_bytes_atomic
from unfoldldm_basicsr.comparing.runs import Run
from unfoldldm_basicsr.comparing.single import PRIORS, validations
from unfoldldm_basicsr.comparing.statistics import paired_difference
from unfoldldm_basicsr.comparing.tables import latex, markdown, read_csv, signed, write_csv
from unfoldldm_basicsr.comparing.testing import DEGRADED, KEYS, TRUTH
from unfoldldm_basicsr.data.images import read_picture
from unfoldldm_basicsr.pictures import plots
from unfoldldm_basicsr.pictures.drawing import Box, comparison_grid, crop, fullest_box, save_picture

TABLES = ('protocol', 'images', 'quality', 'differences', 'costs', 'curves')
CROPS = 3  # images in the picture of crops
FIGURES = {
    'quality_over_seconds': 'Quality over training time',
    'quality_over_iteration': 'Quality over iterations',
    'quality_against_GMACs': 'Quality against multiply-accumulates',
    'quality_against_latency_ms': 'Quality against latency',
    'images': 'Image by image',
    'crops': 'Where the sides differ most',
}
PICTURES = [f'{name}.png' for name in FIGURES]
STATISTICS = (
    'Differences are paired by image and averaged over seeds; 95 % intervals over images by '
    'bootstrap (BCa). Comparisons in this report: {}; without any true difference about {:.1f} of '
    'them would leave zero out.'
)
OVERVIEW = 'Differences on the first test set of each report; all others, and how, below.'


@dataclass(frozen=True)
class Entry:
    """One side of a report."""

    name: str  # of its files
    title: str  # in tables and plots
    paper: str | None  # what the paper says about it (none in a comparison)
    seeds: Sequence[int]
    tests: Sequence[Mapping[str, Any]]  # for each seed the option file of its test
    runs: Sequence[Sequence[Run]]  # for each seed its phases; none for plain weights


Scores = Mapping[tuple[str, int], pd.DataFrame]
Metrics = Mapping[str, Mapping[str, Any]]


def build(
    folder: Path,
    entries: Sequence[Entry],
    scores: Scores,
    protocol: Mapping[str, str],
    costs: pd.DataFrame,
    metrics: Metrics,
    reference: str | None = None,
) -> None:
    """Writes all files of a report; ValueError: the sides saw other degraded images.

    ``scores``: (title, seed) -> table of the test; ``protocol``: topic -> how the numbers were
    made; ``costs`` of each side and size; the first of ``metrics`` (as in ``val``) is drawn.
    """
    images = image_table(scores)
    protocol = {**protocol, 'left out': not_finite(images, metrics)}
    images = images.replace([np.inf, -np.inf], np.nan)
    tables = {
        'protocol': pd.DataFrame(protocol.items(), columns=['topic', 'text']),
        'images': images,
        'quality': quality_table(images, list(metrics)),
        'differences': difference_table(images, entries, metrics, reference),
        'costs': cost_table(entries, costs),
        'curves': pd.concat([curve_table(entry) for entry in entries]),
    }
    for name in (*(f'{n}.{kind}' for n in TABLES for kind in ('csv', 'tex')), *PICTURES):
        (folder / name).unlink(missing_ok=True)  # of an earlier report
    for name, table in tables.items():
        if len(table):
            write_csv(table, folder / f'{name}.csv')
        if len(table) and name in ('quality', 'differences', 'costs'):
            shown = signed(table) if name == 'differences' else table
            write_bytes_atomic(folder / f'{name}.tex', latex(shown).encode())
    metric, style = next(iter(metrics)), plots.looks(entry.title for entry in entries)
    base = next((e.title for e in entries if e.name == reference), entries[0].title)
    _curves(folder, tables['curves'], metric, style)
    _plots(folder, tables, metric, style, base)
    _crops(folder, images, entries, metric)
    write_bytes_atomic(folder / 'report.md', render(folder).encode(errors='backslashreplace'))


# ---- tables -----------------------------------------------------------------------------------


def image_table(scores: Scores) -> pd.DataFrame:
    """A row for each side, seed and image; checks that all saw the same degraded images."""
    first = next(iter(scores.values()))
    for (title, _), table in scores.items():
        if not table[KEYS].equals(first[KEYS]):
            raise ValueError(
                f'{title} and {next(iter(scores))[0]} were not tested on the same degraded images: '
                'remove the folder images of the report and start again.'
            )
    own = [c for c in first if not c.startswith(f'{DEGRADED} ')]
    metrics = own[len(KEYS) :]
    before = first.reindex(columns=[*KEYS, *(f'{DEGRADED} {metric}' for metric in metrics)])
    # smaller images have none
    before = before.set_axis(own, axis=1).dropna(subset=metrics, how='all')
    tables = {(DEGRADED, 0): before, **{key: table[own] for key, table in scores.items()}}
    rows = [table.assign(side=side, seed=seed) for (side, seed), table in tables.items()]
    return pd.concat(rows, ignore_index=True)


def not_finite(images: pd.DataFrame, metrics: Iterable[str]) -> str:
    """Which scores means and differences leave out: of exact copies of the truth, or undefined."""
    counts = [
        (int((~np.isfinite(own[metric])).sum()), len(own), metric, name)
        for (name, own), metric in product(images.groupby('set', sort=False), metrics)
    ]
    return ', '.join(f'{n} of {of} scores of {metric} on {at}' for n, of, metric, at in counts if n)


def quality_table(images: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """Mean of each metric over images and seeds, with the standard deviation over the seeds."""
    by = ['set', 'side']
    counts = images.groupby(by, sort=False)[['image', 'seed']].nunique().add_suffix('s')
    seeds = images.groupby([*by, 'seed'], sort=False)[metrics].mean().groupby(by, sort=False)
    return counts.join(seeds.mean()).join(seeds.std().add_suffix(' spread')).reset_index()


def by_image(images: pd.DataFrame, name: str, metric: str) -> pd.DataFrame:
    """Scores on one test set, mean over seeds: a row for each image, a column for each side."""
    own = images[images['set'] == name].groupby(['image', 'side'], sort=False)
    return own[metric].mean().unstack('side', sort=False)


def difference_table(
    images: pd.DataFrame, entries: Sequence[Entry], metrics: Metrics, reference: str | None
) -> pd.DataFrame:
    """Every side against the reference, or every pair: paired by image, mean over seeds."""
    base = [entry for entry in entries if entry.name == reference]
    pairs = [(e, base[0]) for e in entries if e not in base] if base else combinations(entries, 2)
    rows = []
    for name, metric, (one, other) in product(images['set'].unique(), metrics, pairs):
        scores = by_image(images, name, metric)
        gain = paired_difference(scores[one.title] - scores[other.title])
        rows.append(
            {
                'set': name, 'metric': metric, 'side': one.title, 'minus': other.title,
                'difference': gain.mean, 'low': gain.low, 'high': gain.high,
                'verdict': gain.verdict(metrics[metric].get('better', 'higher') == 'higher'),
                'paper': one.paper or np.nan,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def cost_table(entries: Sequence[Entry], costs: pd.DataFrame) -> pd.DataFrame:
    """Costs in use of each side and size, and of its training (mean of the seeds)."""
    training = []
    for entry in entries:
        row = {'side': entry.title}
        if entry.runs:
            runs, seeds = [run for phases in entry.runs for run in phases], len(entry.runs)
            row['iterations'] = ' + '.join(str(run.iterations) for run in entry.runs[0])
            row['training_s'] = sum(r.iterations * r.seconds for r in runs) / seeds
            row['training_TMACs'] = sum(r.iterations * r.macs for r in runs) / seeds / 1e12
        training.append(row)
    return costs.merge(pd.DataFrame(training), on='side')


def curve_table(entry: Entry) -> pd.DataFrame:
    """Validations of all trainings of a side, the phases one after the other."""
    frames = []
    for seed, phases in zip(entry.seeds, entry.runs, strict=False):  # weights have no runs
        iterations, seconds = 0, 0.0
        for phase, run in enumerate(phases):
            frame = validations(run.folder)
            own = {'side': entry.title, 'seed': seed, 'phase': phase + 1}
            time = (seconds + frame['iteration'] * run.seconds).round(2)
            frame['iteration'] += iterations
            frames.append(frame.assign(**own, seconds=time))
            iterations += run.iterations
            seconds += run.iterations * run.seconds
    return pd.concat(frames) if frames else pd.DataFrame()


# ---- pictures ---------------------------------------------------------------------------------


def _curves(folder: Path, lines: pd.DataFrame, metric: str, style: Mapping[str, dict]) -> None:
    """Validations on the first validation set."""
    if len(lines):  # Phase I reports its metrics as oracle_psnr
        lines = lines[lines['metric'].isin([metric, *(f'{prior}_{metric}' for prior in PRIORS)])]
    if lines.empty:  # other networks (VLU-Net's embedding) have no such metric
        return
    lines = lines[lines['set'] == lines['set'].iloc[0]]
    note = f'{lines["set"].iloc[0]}; mean of seeds'
    means = lines.groupby(['side', 'phase', 'iteration', 'metric'], sort=False)
    means = means[['seconds', 'value']].mean().reset_index()
    means['hollow'] = means['metric'].str.startswith('oracle')
    note += '; hollow: prior taken from the truth' if means['hollow'].any() else ''
    for key, x in (('iteration', 'iterations'), ('seconds', 'seconds of training steps')):
        file = folder / f'quality_over_{key}.png'
        with plots.figure(file, x, f'{metric} in validation', note) as axes:
            plots.curves(axes, means, key, style)


def _plots(
    folder: Path,
    tables: Mapping[str, pd.DataFrame],
    metric: str,
    style: Mapping[str, dict],
    base: str,
) -> None:
    """Quality against cost, and image by image, on the first test set."""
    name, costs = tables['images']['set'].iloc[0], tables['costs']
    quality = tables['quality'][tables['quality']['set'] == name]
    quality = quality.rename(columns={metric: 'value', f'{metric} spread': 'spread'})
    size = costs['size'].iloc[0]
    table = costs[costs['size'] == size].merge(quality, on='side')
    note = f'{name}; cost at {size} x {size}'
    note += '; bars: standard deviation of the seeds' if table['spread'].notna().any() else ''
    for key, x in (('GMACs', 'GMACs'), ('latency_ms', 'latency in ms')):
        with plots.figure(folder / f'quality_against_{key}.png', x, metric, note) as axes:
            plots.points(axes, table, key, style)
    scores = by_image(tables['images'], name, metric).drop(columns=DEGRADED, errors='ignore')
    if len(scores.columns) > 1:
        words = f'{metric} of {base}', f'{metric} minus that of\n{base}'  # names of runs are long
        with plots.figure(folder / 'images.png', *words, f'{name}: one marker per image') as axes:
            plots.scatter(axes, scores, base, style)


def most_disagreeing(scores: pd.DataFrame) -> list[str]:
    """Names of the images on which the sides differ most (standard deviation of the scores)."""
    spread = scores.drop(columns=DEGRADED, errors='ignore').std(axis=1, ddof=0)
    return list(spread.sort_values(ascending=False, kind='stable').index[:CROPS])


def disagreement_box(images: Sequence[np.ndarray], side: int) -> Box:
    """The square in which the images differ most (variance between them)."""
    return fullest_box(np.var(np.stack(images).astype(np.float32), axis=0).mean(-1), side)


def _crops(folder: Path, images: pd.DataFrame, entries: Sequence[Entry], metric: str) -> None:
    images = images.drop_duplicates(['set', 'side', 'seed', 'image'])  # the first time is shown
    name = images['set'].iloc[0]
    places = {DEGRADED: DEGRADED, **{e.title: e.tests[0]['name'] for e in entries}, TRUTH: TRUTH}
    scores, rows, captions = by_image(images, name, metric), [], []
    if DEGRADED not in scores:  # smaller than the others
        del places[DEGRADED]
    for image in most_disagreeing(scores):
        files = [folder / 'restored' / place / name / f'{image}.png' for place in places.values()]
        shown = [read_picture(file).pixels for file in files]
        sides = shown[-1 - len(entries) : -1]
        box = disagreement_box(sides, max(32, min(shown[-1].shape[:2]) // 4))
        rows.append([crop(picture, box) for picture in shown])
        captions.append([*(f'{scores[title][image]:.2f}' for title in [*places][:-1]), image[:18]])
    footer = f'{name}: where the sides differ most; {metric} of the whole image'
    footer += ', mean of the seeds' if images['seed'].nunique() > 1 else ''
    grid = comparison_grid(rows, [*places], captions, cell_width=220, footer=footer)
    save_picture(folder / 'crops.png', grid)


# ---- page -------------------------------------------------------------------------------------


def render(folder: Path, place: str = '') -> str:
    """The page of a report, from its CSV files alone; ``place`` of its pictures ends with ``/``."""
    files = {name: folder / f'{name}.csv' for name in TABLES if name != 'images'}
    tables = {name: read_csv(file) for name, file in files.items() if file.exists()}
    protocol = tables['protocol'].fillna('').set_index('topic')['text'].to_dict()
    unseen, cost = protocol.get('unseen', '').split(', '), protocol.pop('cost', 'Cost.')
    parts = [f'## {folder.name}\n\n']
    parts += [f'- {topic}: {text}\n' for topic, text in protocol.items() if text]
    for name, table in tables['quality'].groupby('set', sort=False):
        parts.append(f'\n### {name}{", not seen in training" * (name in unseen)}\n\n')
        parts.append(markdown(table.drop(columns='set'), 'Means over images and seeds.'))
        if 'differences' in tables:
            gains = tables['differences'][tables['differences']['set'] == name].drop(columns='set')
            count = len(tables['differences'])
            parts.append('\n' + markdown(signed(gains), STATISTICS.format(count, 0.05 * count)))
    if 'costs' in tables:
        parts.append(f'\n### Cost\n\n{markdown(tables["costs"], cost)}')
    drawn = [name for name in FIGURES if (folder / f'{name}.png').exists()]
    parts += ['\n### Pictures\n\n'] * bool(drawn)
    parts += [f'![{FIGURES[name]}]({place}{name}.png)\n' for name in drawn]
    return ''.join(parts)


def overview(reports: Sequence[Path]) -> str:
    """One table of all reports: differences in the first metric on the first test set."""
    rows = []
    for file in [report / 'differences.csv' for report in reports]:
        if file.exists():
            table = read_csv(file)
            first = (table[['set', 'metric']] == table[['set', 'metric']].iloc[0]).all(axis=1)
            link = f'[{file.parent.name}](#{file.parent.name})'
            rows.append(table[first].drop(columns='paper', errors='ignore'))
            rows[-1].insert(0, 'report', link)
    return markdown(signed(pd.concat(rows)), OVERVIEW) if rows else ''


def write_page(page: Path, reports: Sequence[Path], crops: bool = True) -> str:
    """Writes the page of all reports in the folder beside it, which has its name without ``.md``;
    tables and pictures of ``reports`` are copied there first. ValueError: no report there.
    """
    folder = page.with_suffix('')
    for report in reports:
        if not (report / 'protocol.csv').is_file():
            raise ValueError(f'{report}: no report of compare or ablate (no protocol.csv there).')
        pictures = [name for name in PICTURES if crops or name != 'crops.png']
        for name in (*(f'{table}.csv' for table in TABLES), *pictures):
            if (report / name).is_file():
                write_bytes_atomic(folder / report.name / name, (report / name).read_bytes())
    places = sorted(file.parent for file in folder.glob('*/protocol.csv'))
    if not places:
        raise ValueError(f'{folder}: no folder there with the protocol.csv of a report.')
    command = f'unfoldldm report --page {page}'
    parts = [f'# Results\n\nRendered by `{command}` from the CSV files of real runs.\n\n']
    parts.append(f'{overview(places)}\n')
    parts += [f'{render(place, f"{folder.name}/{place.name}/")}\n' for place in places]
    write_bytes_atomic(page, ''.join(parts).encode(errors='backslashreplace'))
    return f'Written: {page}'
