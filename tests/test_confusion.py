"""Confusion matrices: counts, colours of the picture's cells, the table."""

from __future__ import annotations

import numpy as np
import pytest

from unfoldldm_basicsr.pictures.confusion import (
    confusion_matrix,
    confusion_picture,
    write_confusion_csv,
)
from unfoldldm_basicsr.pictures.drawing import PAPER, SECOND

NAMES = ['noise', 'rain', 'haze']


def corners(picture: np.ndarray, number: int) -> np.ndarray:
    """A pixel near the corner of every cell, where no text is: (number, number, 3)."""
    coloured = (np.abs(picture.astype(int) - SECOND).sum(2) == 0).nonzero()
    first = coloured[0].min(), coloured[1].min()  # the first cell is the darkest
    cell = next(n for n in range(40, 400) if tuple(picture[first[0], first[1] + n]) != SECOND) + 1
    steps = np.arange(number) * cell + 4
    return picture[first[0] + steps][:, first[1] + steps]


def test_pairs_are_counted_by_row_and_column():
    counts = confusion_matrix([(0, 0), (0, 2), (0, 2), (2, 1)], 3)
    assert counts.tolist() == [[1, 0, 2], [0, 0, 0], [0, 1, 0]]
    with pytest.raises(ValueError, match=r'\(0, 3\) is no pair of classes 0 to 2'):
        confusion_matrix([(0, 3)], 3)


def test_cells_are_as_dark_as_their_share_of_the_row():
    counts = np.array([[10, 0, 0], [0, 3, 1], [0, 0, 0]])
    picture = confusion_picture(counts, NAMES, '13 of 14 right', 'held out')
    assert picture.dtype == np.uint8
    found = corners(picture, 3)
    assert tuple(found[0, 0]) == SECOND
    for row, column in ((0, 1), (1, 0), (2, 2)):
        assert tuple(found[row, column]) == PAPER
    for column, share in ((1, 0.75), (2, 0.25)):
        mixed = [round(p + (s - p) * share) for p, s in zip(PAPER, SECOND, strict=True)]
        assert found[1, column].tolist() == mixed


def test_the_page_grows_with_names_title_and_footer():
    small = confusion_picture(np.eye(2), ['a', 'b'], 'x').shape
    assert confusion_picture(np.eye(3), ['a', 'b', 'c'], 'x').shape[0] > small[0]
    long = confusion_picture(np.eye(2), ['a', 'a long name of a class'], 'x').shape
    assert long[0] > small[0]  # square cells as wide as the names above them
    assert long[1] - small[1] > long[0] - small[0]  # and a margin for the names beside them
    assert confusion_picture(np.eye(2), ['a', 'b'], 'title ' * 20).shape[1] > small[1]
    assert confusion_picture(np.eye(2), ['a', 'b'], 'x', 'footer').shape[0] > small[0]


def test_names_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r'shape \(3, 3\) does not go with 2 names'):
        confusion_picture(np.eye(3), ['a', 'b'], 'x')


def test_a_class_without_items_has_no_accuracy(tmp_path):
    write_confusion_csv(np.array([[1, 1], [0, 0]]), ['a', 'b'], tmp_path / 'new' / 'c.csv')
    lines = (tmp_path / 'new' / 'c.csv').read_text(encoding='utf-8').splitlines()
    assert lines == ['true class,a,b,items,accuracy', 'a,1,1,2,0.5000', 'b,0,0,0,']
