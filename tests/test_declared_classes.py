"""What the check knows of a class: its declaration, its signature, or what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY
from helpers import problems_at, put, warnings_at
from torch import nn
from torch.utils.data import Dataset

from unfoldldm_basicsr.common.declaration import OptionError, read
from unfoldldm_basicsr.options.declared import options_of
from unfoldldm_basicsr.options.preflight import preflight


@pytest.mark.parametrize(
    ('value', 'hint', 'ok'),
    [
        (1, float, True),
        (1.5, int, False),
        (True, int, False),
        (float('nan'), float, False),
        ([1, 2], Sequence[int], True),
        ([1, 'a'], Sequence[int], False),
        ([1, 2, 3], tuple[int, int], False),
        (None, int | None, True),
        ('1e-4', float | torch.Tensor, False),
        ([1, 'a'], int | list[int], False),
        ('l3', Literal['l1', 'l2'], False),
        ({}, dict[str, int], True),
        (3, Any, True),
        (3, Callable, True),
    ],
)
def test_values_are_compared_with_annotations(value, hint, ok):
    def build(*, x: hint): ...

    build.__annotations__['x'] = hint
    with nullcontext() if ok else pytest.raises(OptionError, match='build: x'):
        read(options_of(build), {'x': value}, 'build')


class UndeclaredDataset(Dataset):
    """A data set of somebody else."""

    def __init__(self, opt):
        self.opt, self.crop = opt, opt.get('crop_mode', 'centre')

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {}


def test_what_an_undeclared_class_reads_is_not_guessed(stock, monkeypatch):
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, 'UndeclaredDataset', UndeclaredDataset)
    data = {'type': 'UndeclaredDataset', 'crop_mode': 'x', 'batch_size_per_gpu': 2}
    stock = put(stock, 'datasets.train', data)
    assert preflight(stock, 'x.yml', True) == []
    assert 'left as it is' in warnings_at(stock, 'datasets.train.crop_mode')
    misspelt = put(stock, 'datasets.train.pin_memry', True)
    assert "Did you mean 'pin_memory'" in problems_at(misspelt, 'datasets.train.pin_memry')
    assert "Did you mean 'pin_memory'" in warnings_at(
        misspelt, 'datasets.train.pin_memry', strict=False
    )


class Refuses(nn.Module):
    def __init__(self, *, width: int = 3):
        super().__init__()
        raise ValueError(f'width: {width} is odd.')


def test_what_a_network_refuses_is_passed_on(stock, monkeypatch):
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'Refuses', Refuses)
    found = problems_at(put(stock, 'network_g', {'type': 'Refuses'}), 'network_g')
    assert found == 'Refuses cannot be built with these values: width: 3 is odd.'
