"""Result tables: one list of rows, as Markdown for people and LaTeX for papers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

Row = Mapping[str, object]
DECIMALS = {  # by the first word of a column's name
    'psnr': 2, 'ssim': 4, 'lpips': 4, 'db': 2, 'params_m': 3, 'training_tmacs': 3,
    'latency_ms': 1, 'peak_mib': 1, 'training_s': 1,
}  # fmt: skip


def mean_row(rows: Sequence[Row], label_column: str, label: str = 'mean') -> dict[str, object]:
    """A row with the mean of every column that holds numbers only.

    Args:
        rows: rows with the same columns.
        label_column: the column that names a row.
        label: what it says in the new row.
    """
    result: dict[str, object] = {}
    for column in _columns(rows):
        values = [row[column] for row in rows]
        numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        result[column] = math.fsum(values) / len(values) if numeric else ''
    result[label_column] = label
    return result


def markdown_table(
    rows: Sequence[Row], protocol: str, *, best: Mapping[str, Sequence[str]] | None = None
) -> str:
    """A Markdown table under a line that says how the numbers were made.

    Args:
        rows: rows with the same columns, in order. Numbers are aligned to the right.
        protocol: data, degradation, metric, training: what a reader needs to repeat the numbers.
        best: groups of columns that compete; the largest number of each row and group is bold.

    Returns:
        Markdown that ends with a newline.

    Raises:
        ValueError: no rows, rows with different columns, an unknown column in ``best``, or no
            protocol.
    """
    columns = _columns(rows)
    if not protocol.strip():
        raise ValueError('A table needs a protocol: how were these numbers made?')
    unknown = {c for group in (best or {}).values() for c in group} - set(columns)
    if unknown:
        raise ValueError(f'best: unknown columns {sorted(unknown)}; the table has {columns}.')
    numeric = [any(isinstance(row[c], int | float) for row in rows) for c in columns]
    lines = [_line(columns), _line('---:' if n else '---' for n in numeric)]
    for row in rows:
        cells = {c: format_value(c, row[c]) for c in columns}
        for group in (best or {}).values():
            scores = {c: row[c] for c in group if isinstance(row[c], int | float)}
            if scores:
                winner = max(scores.values())
                for column in scores:
                    if cells[column] == format_value(column, winner):
                        cells[column] = f'**{cells[column]}**'
        lines.append(_line(cells.values()))
    return f'{protocol.strip()}\n\n' + '\n'.join(lines) + '\n'


def latex_table(rows: Sequence[Row]) -> str:
    """The same table for a paper (package booktabs)."""
    columns = _columns(rows)
    numeric = [any(isinstance(row[c], int | float) for row in rows) for c in columns]
    lines = [
        f'\\begin{{tabular}}{{{"".join("r" if n else "l" for n in numeric)}}}',
        '\\toprule',
        _latex_line(columns),
        '\\midrule',
        *(_latex_line(format_value(c, row[c]) for c in columns) for row in rows),
        '\\bottomrule',
        '\\end{tabular}',
    ]
    return '\n'.join(lines) + '\n'


def format_value(column: str, value: object) -> str:
    """A cell as text: the usual number of decimals of PSNR and SSIM, '-' for a missing number."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return '-'
    if isinstance(value, float):
        words = column.lower().replace('(', ' ').replace(')', ' ').split()
        decimals = next((DECIMALS[w] for w in words if w in DECIMALS), 2)
        return f'{value:.{decimals}f}'
    return str(value).replace('|', '\\|').replace('\n', ' ')


def _columns(rows: Sequence[Row]) -> list[str]:
    if not rows:
        raise ValueError('A table needs at least one row.')
    columns = list(rows[0])
    for number, row in enumerate(rows):
        if list(row) != columns:
            raise ValueError(f'Row {number} has the columns {list(row)}, the first {columns}.')
    return columns


def _latex_line(cells) -> str:
    escaped = (re.sub(r'([&%$#_{}])', r'\\\1', cell) for cell in cells)
    return ' & '.join(escaped) + r' \\'


def _line(cells) -> str:
    return '| ' + ' | '.join(cells) + ' |'
