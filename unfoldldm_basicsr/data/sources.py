"""Where images come from: a folder, or an LMDB in BasicSR's layout.

Both kinds list names in the same order (sorted by key) and decode by the same rules
(:mod:`.images`), so that a folder and the LMDB made from it give equal batches. Objects hold no
open file and can be pickled.

An LMDB is ``data.mdb`` with image files by key, listed in ``meta_info.txt``. Environments are
opened on first use, one per database and process (LMDB forbids a second one), and never cross a
fork.
"""

import os
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from unfoldldm_basicsr.common.errors import first_line
from unfoldldm_basicsr.data.images import decode, read_picture, size_in_header
from unfoldldm_basicsr.data.listing import (
    check_folder,
    key_of,
    list_images,
    read_lines,
    split_size,
    without_extension,
)

# Open environments of this process. The lock covers every read, so that `close_lmdbs` never pulls
# an environment from under a reader in another thread.
_environments: dict[tuple[int, int], Any] = {}
_lock = threading.RLock()

AS_LMDB = 'looks like an LMDB; set io_backend: {type: lmdb}.'


class FolderImages:
    """Images below a folder, all or the files ``names``; names are paths relative to it."""

    def __init__(self, root: str | os.PathLike, names: list[str] | None = None) -> None:
        self.root = str(root)
        if self.root.rstrip('/').endswith('.lmdb'):
            raise ValueError(f'{root}: {AS_LMDB}')
        if names is None:
            names = list_images(root)
        else:
            check_folder(root)
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
            self.names = sorted(self.shapes, key=key_of)
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
        with _reading(self.root, f' on key {name}') as transaction:
            payload = transaction.get(name.encode('utf-8', 'surrogateescape'))
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


# ---- LMDBs --------------------------------------------------------------------------------------


def read_lmdb_index(root: str) -> dict[str, tuple[int, int] | None]:
    """Keys of an LMDB from its ``meta_info.txt``, with (height, width) where given.

    Raises FileNotFoundError, ValueError: it is no LMDB, its end is missing, or it lists no image.
    """
    if not os.path.isdir(root):
        raise FileNotFoundError(f'{root}: no such LMDB folder (current folder: {Path.cwd()}).')
    for part in ('data.mdb', 'meta_info.txt'):
        if not os.path.isfile(os.path.join(root, part)):
            raise FileNotFoundError(
                f'{root}: has no {part}, so it is not an LMDB in the layout of BasicSR. '
                f'unfoldldm prepare folder builds one.'
            )
    with _reading(root):  # finds damage before a run
        pass
    close_lmdbs()
    lines = (split_size(line) for line in read_lines(Path(root, 'meta_info.txt')))
    index = {without_extension(name): size for name, size in lines if name}
    if not index:
        raise ValueError(f'{root}: meta_info.txt lists no image.')
    return index


def stored_keys(root: str) -> set[str]:
    """Every key in the database, whatever its ``meta_info.txt`` lists."""
    with _reading(root) as transaction:
        keys = transaction.cursor().iternext(values=False)
        return {bytes(key).decode('utf-8', 'surrogateescape') for key in keys}


@contextmanager
def _reading(root: str, what: str = '') -> Iterator[Any]:
    """A read transaction of the database, opened on first use, with its errors explained."""
    status = os.stat(os.path.join(root, 'data.mdb'))
    place = status.st_dev, status.st_ino
    try:
        with _lock:
            if place not in _environments:
                _environments[place] = _open(root, status.st_size)
            with _environments[place].begin() as transaction:
                yield transaction
    except lmdb.Error as error:
        hint = ''
        if 'already open' in str(error):
            hint = (
                ' Another dataset class in this process has it open and LMDB allows one only: '
                'use the datasets of unfoldldm_basicsr for both, or workers for one of them.'
            )
        raise ValueError(f'{root}: LMDB error{what}: {first_line(error)}.{hint}') from error


def _open(root: str, size: int) -> Any:
    """The environment; LMDB maps the file, and touching a missing part would kill the process."""
    environment = lmdb.open(root, readonly=True, lock=False, readahead=False, create=False)
    expected = (environment.info()['last_pgno'] + 1) * environment.stat()['psize']
    if size < expected:
        environment.close()
        raise ValueError(
            f'{root}: LMDB error: data.mdb is truncated: {size} of {expected} bytes are there. '
            'Copy or build it again.'
        )
    return environment


def close_lmdbs() -> None:
    """Closes every LMDB of this process; the next read opens it again."""
    with _lock:
        while _environments:
            _environments.popitem()[1].close()


def _before_fork() -> None:
    _lock.acquire()
    close_lmdbs()


if hasattr(os, 'register_at_fork'):  # not on Windows, which cannot fork
    os.register_at_fork(
        before=_before_fork, after_in_parent=_lock.release, after_in_child=_lock.release
    )
