"""Names and files of the images that a validation saves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset


class SavedImages:
    """Where the restored images of one validation go, no two to the same file.

    As in BasicSR, ``visualization/IMAGE/IMAGE_ITERATION.png`` in a training and
    ``visualization/DATASET/IMAGE_SUFFIX.png`` in a test. A training with several validation sets
    puts a folder of the set in between: ``visualization/DATASET/IMAGE/IMAGE_ITERATION.png``.
    IMAGE ends with the degradation where the set names one; in a set with two images of one name
    (``a.png`` and ``a.jpg``) all get their place in it behind that. ``label`` is the iteration of
    a training.
    """

    def __init__(self, opt: Mapping[str, Any], dataset: Dataset, label: str):
        folder, name = Path(opt['path']['visualization']), dataset.opt['name']
        self.training = bool(opt.get('is_train'))
        several = len(validation_sets(opt)) > 1
        self.folder = folder / name if several or not self.training else folder
        suffix = (opt.get('val') or {}).get('suffix') or opt['name']
        self.ending = label if self.training else suffix
        names = listed_names(dataset)
        self.numbered = len(set(names)) < len(names) == len(dataset)

    def path(self, index: int, name: str, degradation: str | None) -> Path:
        """File of the image at a place of the set, called ``name`` by :func:`image_name`."""
        parts = (name, degradation, str(index) if self.numbered else None)
        name = '_'.join(part for part in parts if part is not None)
        file = f'{name}_{self.ending}.png'
        return self.folder / name / file if self.training else self.folder / file


def validation_sets(opt: Mapping[str, Any]) -> list[str]:
    """Sections of ``datasets`` that a training validates on."""
    return [phase for phase in opt.get('datasets') or () if str(phase).split('_')[0] == 'val']


def image_name(path: str, options: Mapping[str, Any]) -> str:
    """Name of an image in reports and saved files, without extension.

    Images in folders inside the data root keep the names of these folders, since frames of
    different scenes are often called alike: ``GOPRO/test/S1/blur/1.png`` is ``S1_blur_1``.

    Args:
        path: of the image, or its key in an LMDB.
        options: of the data set; the roots of a mixture are those of its ``sets``.
    """
    image, sets = Path(path), (options, *options.get('sets', ()))
    roots = [part.get(key) for part in sets for key in ('dataroot_lq', 'dataroot_gt')]
    folders = [Path(root).expanduser() for root in roots if isinstance(root, str)]
    for folder in folders:
        if image.is_relative_to(folder):
            return '_'.join(image.relative_to(folder).with_suffix('').parts)
    if any(folder.suffix == '.lmdb' for folder in folders) and not image.is_absolute():
        return '_'.join(image.parts)
    return image.stem


def listed_names(dataset: Dataset) -> list[str]:
    """Names of all images without reading them, as far as the class of the set tells them."""
    options, parts = getattr(dataset, 'opt', {}), getattr(dataset, 'sets', [dataset])
    if all(hasattr(part, 'sources') for part in parts):
        return [
            f'{image_name(source.path(name), options)}_{part.degradation_name}'
            for part in parts
            for source, names in part.sources()[-1:]
            for name in names
        ]
    entries = getattr(dataset, 'paths', [])
    paths = [entry.get('lq_path') if isinstance(entry, Mapping) else entry for entry in entries]
    return [image_name(path, options) for path in paths if isinstance(path, str)]
