"""Miniatures of the published data sets, made from their own declarations.

A pair is told by its pixels: a clean image is as bright as its number, the degraded one of it 100
brighter.
"""

import re
from pathlib import Path

import numpy as np

from unfoldldm_basicsr.data.images import Picture, write_picture
from unfoldldm_basicsr.preparing.layouts import Layout, fields_of
from unfoldldm_basicsr.preparing.lmdb_writer import SubImages
from unfoldldm_basicsr.preparing.prepare import plan, write
from unfoldldm_basicsr.preparing.sets import SETS, DataSet, Source

PAIRS = 3
PER_CLEAN = 2  # degraded images of one clean one, where there are several
BLOCKS = 2  # in a file


def shrunk(dataset: DataSet, size: tuple[int, int]) -> DataSet:
    """The declaration with the counts and sizes of the miniature."""
    squares = SubImages(min(size), min(size) // 2)
    parts = {
        name: part._replace(
            sources=tuple(_shrunk(source, size) for source in part.sources),
            squares=part.squares and squares,
        )
        for name, part in dataset.parts.items()
    }
    return dataset._replace(parts=parts)


def _shrunk(source: Source, size: tuple[int, int]) -> Source:
    halves = slice(PAIRS), slice(PAIRS, None)
    layouts = tuple(
        layout._replace(share=layout.share and halves[layout.share.start > 0])
        for layout in source.layouts
    )
    many = any(own_fields(layout) for layout in layouts)
    count = PAIRS * (PER_CLEAN if many else 1) * (BLOCKS if source.read else 1)
    return source._replace(
        layouts=layouts, size=source.size and size, count=source.count and count,
        clean=source.clean and PAIRS,
    )  # fmt: skip


def own_fields(layout: Layout) -> list[str]:
    """What only names of degraded images have."""
    if layout.gt is None or layout.lq is None:
        return []
    return [name for name in fields_of(layout.lq) if name not in fields_of(layout.gt)]


def num_layouts(dataset: DataSet) -> int:
    return max(len(s.layouts) for part in dataset.parts.values() for s in part.sources)


def build(dataset: DataSet, root: Path, number: int = 0, size: tuple[int, int] = (12, 16)) -> None:
    """Writes the files of a set in one of its layouts, below a folder of another name."""
    for part in dataset.parts.values():
        for source in part.sources:
            layout = source.layouts[min(number, len(source.layouts) - 1)]
            pairs = PAIRS * 2 if layout.share else PAIRS
            if source.read is not None:
                _write_mat(root, layout, size)
                continue
            for index in range(pairs):
                if layout.gt:
                    border = 2 * source.border
                    sides = (size[0] + border, size[1] + border)
                    _write(root / fill(layout.gt, index), index, sides)
                for own in range(PER_CLEAN if own_fields(layout) else 1):
                    if layout.lq:
                        _write(root / fill(layout.lq, index, own), index + 100, size)


def fill(template: str, index: int, own: int = 0) -> str:
    """The path of an image, with an ending; frames of two scenes have the same names."""
    several = len([name for name in fields_of(template) if name != 'haze']) > 1

    def value(token: re.Match) -> str:
        name, star, either = token.groups()
        if either:
            choices = either.split('|')
            return choices[index % len(choices)]
        if star:
            return f'x{index % 2}' if token.start() and template[token.start() - 1] == '/' else 'x'
        if name == 'haze':
            return f'0.8_0.{own + 1}'
        number = (index // 2 if name == 'scene' else index % 2) if several else index
        return f'{name}{number:03d}'

    return re.sub(r'\{(\w+)\}|(\*)|\[([^\]]+)\]', value, template) + '.png'


def _write(path: Path, value: int, size: tuple[int, int]) -> None:
    write_picture(path, Picture(np.full((*size, 3), value, np.uint8)))


def _write_mat(root: Path, layout: Layout, size: tuple[int, int]) -> None:
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    if layout.gt is None:  # DND
        (root / 'images_srgb').mkdir()
        boxes = np.empty((PAIRS, 1), object)
        for index in range(PAIRS):
            photo = np.zeros((2 * size[0], size[1] + 5, 3), np.float32)
            photo[: size[0], 2 : size[1] + 2] = (index + 100) / 255
            photo[size[0] :, 3 : size[1] + 3] = (index + 150) / 255
            boxes[index, 0] = np.array(
                [[1, 3, size[0], size[1] + 2], [size[0] + 1, 4, 2 * size[0], size[1] + 3]], float
            )
            savemat(root / 'images_srgb' / f'{index + 1:04d}.mat', {'InoisySRGB': photo})
        savemat(root / 'info.mat', {'info': {'boundingboxes': boxes}})
        return
    for path, more in ((layout.gt, 0), (layout.lq, 100)):
        blocks = np.arange(PAIRS * BLOCKS, dtype=np.uint8).reshape(PAIRS, BLOCKS, 1, 1, 1) + more
        blocks = np.broadcast_to(blocks, (PAIRS, BLOCKS, *size, 3))
        savemat(root / path, {path.removesuffix('.mat'): blocks})


def prepare_all(root: Path, names: list[str], size: tuple[int, int] = (40, 56)) -> Path:
    """``root/datasets`` with these sets, as ``unfoldldm prepare`` writes them; returns ``root``."""
    for name in names:
        dataset = shrunk(SETS[name], size)
        build(dataset, root / 'unpacked' / name, size=size)
        for part, found in plan(dataset, root / 'unpacked' / name).items():
            assert found.problems == [], (name, part)
            write(dataset.parts[part], found, root / 'datasets' / name / part)
    return root
