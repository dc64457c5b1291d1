"""Where images come from: a folder or an LMDB in BasicSR's layout.

Both kinds list names in the same order (sorted by name without extension) and decode by the same
rules (:mod:`.images`), so that a folder and the LMDB made from it give equal batches. Objects hold
no open file and can be pickled.
"""

import os
from collections.abc import Collection
from pathlib import Path

import numpy as np

from unfoldldm_basicsr.data.images import decode, read_picture, size_in_header
from unfoldldm_basicsr.data.listing import list_images, without_extension
from unfoldldm_basicsr.data.lmdbs import key_of, read_lmdb, read_lmdb_index


class FolderImages:
    """Images below a folder, all or the files ``names``; names are paths relative to it."""

    def __init__(self, root: str | os.PathLike, names: list[str] | None = None) -> None:
        self.root = str(root)
        if self.root.rstrip('/').endswith('.lmdb'):
            raise ValueError(f'{root}: looks like an LMDB; set io_backend: {{type: lmdb}}.')
        if names is None:
            names = list_images(root)
        elif not os.path.isdir(self.root):
            raise FileNotFoundError(f'{root}: no such folder (current folder: {Path.cwd()}).')
        else:
            missing = [n for n in names if not os.path.isfile(os.path.join(self.root, n))]
            _check_listed(self.root, missing, names, 'do not exist')
        self.names = names

    def origin(self, name: str) -> str:
        return os.path.join(self.root, name)

    path = origin

    def size(self, name: str) -> int:
        """Bytes of the file, -1 if it cannot be told."""
        try:
            return os.stat(self.origin(name)).st_size
        except OSError:
            return -1

    def shape(self, name: str) -> tuple[int, int] | None:
        """(height, width) by the header of the file, None where it does not tell."""
        return size_in_header(self.origin(name))

    def read(self, name: str) -> np.ndarray:
        """uint8 or uint16, H W (grey) or H W 3 (RGB)."""
        return read_picture(self.origin(name)).opaque


class LmdbImages:
    """Images in an LMDB of BasicSR's layout; names are keys (or file names, whose extension is
    cut).

    Attributes:
        shapes: key -> (height, width) where ``meta_info.txt`` tells.
    """

    def __init__(self, root: str | os.PathLike, names: list[str] | None = None) -> None:
        self.root = str(root)
        self.shapes = read_lmdb_index(self.root)
        if names is None:
            self.names = sorted(self.shapes)
        else:
            keys = [(without_extension(name), key_of(name)) for name in names]
            self.names = [stem if stem in self.shapes else key for stem, key in keys]
        missing = [name for name in self.names if name not in self.shapes]
        _check_listed(self.root, missing, self.names, 'are not in its meta_info.txt')

    def origin(self, name: str) -> str:
        return f'{self.root} (key {name})'

    def path(self, name: str) -> str:
        """What BasicSR reports as the path of an LMDB image: its key."""
        return name

    def size(self, name: str) -> tuple[int, int] | None:
        """(height, width) where ``meta_info.txt`` tells."""
        return self.shapes[name]

    shape = size

    def read(self, name: str) -> np.ndarray:
        payload = read_lmdb(self.root, name)
        if payload is None:
            raise ValueError(
                f'{self.origin(name)}: meta_info.txt lists this key but data.mdb lacks it. '
                f'Build the LMDB again: unfoldldm prepare.'
            )
        return decode(payload, self.origin(name)).opaque


ImageSource = FolderImages | LmdbImages


def _check_listed(root: str, missing: list[str], names: Collection[str], what: str) -> None:
    if missing:
        hint = ' Lists name folders with / instead of \\.' if '\\' in missing[0] else ''
        raise FileNotFoundError(
            f'{root}: {len(missing)} of the {len(names)} listed images {what}, the first is '
            f'{missing[0]}.{hint}'
        )


def open_source(root: str | os.PathLike, kind: str, names: list[str] | None = None) -> ImageSource:
    return (LmdbImages if kind == 'lmdb' else FolderImages)(os.path.expanduser(root), names)
