"""Images inside MATLAB files: the validation blocks of SIDD and the crops of DND."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

Images = dict[str, Callable[[], np.ndarray]]


def read_mat(path: Path) -> dict[str, np.ndarray]:
    """Variables of a MATLAB file, version 5 or 7.3 (HDF5), with the axes as MATLAB has them.

    Cell arrays of version 7.3 come as arrays of objects.

    Raises:
        ImportError: version 7.3 without the package h5py.
        ValueError: no MATLAB file, or a damaged one.
    """
    with path.open('rb') as file:
        header = file.read(128)
    if not header.startswith(b'MATLAB 7.3'):
        from scipy.io import loadmat

        try:
            return {k: v for k, v in loadmat(path).items() if not k.startswith('__')}
        except (ValueError, TypeError, OSError, NotImplementedError) as error:
            raise ValueError(f'{path}: no MATLAB file, or a damaged one ({error}).') from error
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f'{path}: is HDF5 (MATLAB 7.3): pip install h5py.') from error
    try:
        with h5py.File(path, 'r') as file:
            return {name: _array(file, item) for name, item in _datasets(file)}
    except OSError as error:
        raise ValueError(f'{path}: a damaged MATLAB 7.3 file ({error}).') from error


def _datasets(file: object) -> list:
    """Variables, those of a struct under ``struct.field``."""
    found = []
    for name, item in file.items():
        if name.startswith('#'):  # where cells are kept
            continue
        inner = item.items() if hasattr(item, 'items') else [('', item)]
        found += [(f'{name}.{field}' if field else name, value) for field, value in inner]
    return [(name, item) for name, item in found if hasattr(item, 'dtype')]


def _array(file: object, item: object) -> np.ndarray:
    if item.dtype != object:
        return item[()].T
    cells = np.empty(item.shape, object)
    for place in np.ndindex(*item.shape):
        cells[place] = file[item[place]][()].T
    return cells.T


def sidd_blocks(path: Path) -> Images:
    """``ValidationNoisyBlocksSrgb.mat`` and its truth: scene and block -> 256 x 256 RGB."""
    name = path.stem
    blocks = read_mat(path).get(name)
    if blocks is None or blocks.ndim != 5 or blocks.dtype != np.uint8 or blocks.shape[-1] != 3:
        raise ValueError(
            f'{path}: needs the variable {name}, uint8 (scenes, blocks, height, width, 3).'
        )
    places = np.ndindex(*blocks.shape[:2])
    return {f'{s + 1:04d}_{b + 1:02d}': partial(blocks.__getitem__, (s, b)) for s, b in places}


def dnd_crops(path: Path) -> Images:
    """A photo of DND: its boxes, listed in ``info.mat`` one folder above, rounded to 8 bits."""
    info = path.parent.parent / 'info.mat'
    if not info.is_file():
        raise ValueError(f'{info}: is missing; it lists the boxes that DND is measured in.')
    noisy = read_mat(path).get('InoisySRGB')
    if noisy is None or noisy.ndim != 3:
        raise ValueError(f'{path}: has no variable InoisySRGB (height, width, 3).')
    boxes = _boxes(info)[int(path.stem) - 1]
    return {
        f'{path.stem}_{number:02d}': partial(_crop, noisy, box)
        for number, box in enumerate(boxes, 1)
    }


def _boxes(info: Path) -> list[np.ndarray]:
    """Per photo (boxes, 4): first row, first column, last row, last column, counted from 1."""
    variables = read_mat(info)
    cells = variables.get('info.boundingboxes')
    if cells is None:  # version 5 keeps the struct as one record
        cells = variables['info']['boundingboxes'][0, 0]
    return [np.asarray(cell).astype(int) for cell in cells.ravel()]


def _crop(noisy: np.ndarray, box: np.ndarray) -> np.ndarray:
    top, left, bottom, right = box
    return (noisy[top - 1 : bottom, left - 1 : right].clip(0, 1) * 255).round().astype(np.uint8)
