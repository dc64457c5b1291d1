"""Confusion matrices as pictures and tables; row i, column j: items of class i taken for j."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from unfoldldm_basicsr.common.files import write_bytes_atomic
from unfoldldm_basicsr.pictures.drawing import new_page, table


def write_confusion_csv(counts: np.ndarray, names: Sequence[str], path: str | Path) -> None:
    """Writes a line per true class: its counts, the number of its items and their accuracy."""
    rows = pd.DataFrame(counts, names, names)
    rows['items'] = counts.sum(1)
    rows['accuracy'] = counts.diagonal() / rows['items'].where(rows['items'] > 0)
    text = rows.to_csv(index_label='true class', float_format='%.4f', lineterminator='\n')
    write_bytes_atomic(path, text.encode())


def confusion_picture(
    counts: np.ndarray, names: Sequence[str], title: str, footer: str = ''
) -> Figure:
    """Draws a confusion matrix: a cell per pair with its count and share of the row."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    pairs = zip(counts.ravel(), shares.ravel(), strict=True)
    texts = [f'{n}\n{100 * share:.0f} %' if n else '' for n, share in pairs]
    side = max(420, (70 + 9 * max(map(len, names))) * len(names))
    fig, cells = new_page([side], side + 140, 1, title=title, footer=footer)
    axes = fig.add_subplot(cells[0, 0])
    table(axes, shares, np.reshape(texts, counts.shape), names, names)
    axes.set_ylabel('true')
    axes.set_xlabel('predicted')
    axes.xaxis.set_label_position('top')
    return fig
