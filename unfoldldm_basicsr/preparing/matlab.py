"""Images inside MATLAB files: the validation blocks of SIDD and the crops of DND."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

Images = dict[str, Callable[[], np.ndarray]]


def read_mat(path: Path) -> dict[str, Any]:
    """Variables of a MATLAB file, version 5 or 7.3 (HDF5), with the axes as MATLAB has them.

    Raises ImportError: version 7.3 without pymatreader; ValueError: no MATLAB file, or damaged.
    """
    with path.open('rb') as file:
        is_hdf5 = file.read(10) == b'MATLAB 7.3'
    try:
        if not is_hdf5:
            return loadmat(path, simplify_cells=True)
        from pymatreader import read_mat as read_hdf5

        return read_hdf5(path)
    except ImportError as error:
        raise ImportError(f'{path}: is HDF5 (MATLAB 7.3): pip install pymatreader.') from error
    except (ValueError, TypeError, OSError, NotImplementedError, MatReadError) as error:
        raise ValueError(f'{path}: no MATLAB file, or a damaged one ({error}).') from error


def sidd_blocks(path: Path) -> Images:
    """``ValidationNoisyBlocksSrgb.mat`` and its truth: scene and block -> 256 x 256 RGB."""
    name = path.stem
    blocks = np.asarray(read_mat(path).get(name))
    if blocks.ndim != 5 or blocks.dtype != np.uint8 or blocks.shape[-1] != 3:
        raise ValueError(
            f'{path}: needs the variable {name}, uint8 (scenes, blocks, height, width, 3).'
        )
    places = np.ndindex(*blocks.shape[:2])
    return {f'{s + 1:04d}_{b + 1:02d}': partial(blocks.__getitem__, (s, b)) for s, b in places}


def dnd_crops(path: Path) -> Images:
    """A photo of DND: its boxes, listed in ``info.mat`` one folder above, rounded to 8 bits.

    They are cut at once: fifty photos of floats would not fit into memory.
    """
    info = path.parent.parent / 'info.mat'
    if not info.is_file():
        raise ValueError(f'{info}: is missing; it lists the boxes that DND is measured in.')
    noisy = np.asarray(read_mat(path).get('InoisySRGB'))
    if noisy.ndim != 3 or noisy.shape[-1] != 3 or noisy.dtype.kind != 'f':
        raise ValueError(f'{path}: needs the variable InoisySRGB, floats (height, width, 3).')
    try:
        boxes = read_mat(info)['info']['boundingboxes'][int(path.stem) - 1]
        boxes = np.asarray(boxes).astype(int).reshape(-1, 4)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f'{info}: has no info.boundingboxes for {path.name}.') from error
    if (boxes < 1).any() or (boxes[:, 2:] > noisy.shape[:2]).any():
        raise ValueError(f'{path}: is smaller than its boxes in {info}.')
    crops = {}
    for number, (top, left, bottom, right) in enumerate(boxes, 1):  # from 1, the last one included
        crop = noisy[top - 1 : bottom, left - 1 : right].clip(0, 1) * 255
        crops[f'{path.stem}_{number:02d}'] = partial(np.copy, crop.round().astype(np.uint8))
    return crops
