"""Where images come from: a folder or an LMDB in BasicSR's layout.

Both kinds list names in the same order (sorted by name without extension) and decode by the same
rules (:mod:`.images`), so that a folder and the LMDB made from it give equal batches. Objects
hold no open file and can be pickled; LMDB environments are opened on first use, one per database
and process (LMDB forbids a second one), and never cross a fork.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from unfoldldm_basicsr.common.suggest import did_you_mean
from unfoldldm_basicsr.data.images import EXTENSIONS, decode
from unfoldldm_basicsr.data.lmdb_integrity import check_lmdb_file
from unfoldldm_basicsr.data.pixels import with_three_channels

BACKENDS = ('disk', 'lmdb')

_META_SUFFIX = re.compile(r'\s+\(\s*(\d+)\s*,\s*(\d+)\s*(?:,\s*\d+\s*)?\)(?:\s+-?\d+)?\s*$')
_META_PAIR = re.compile(rf'^(.*?({"|".join(map(re.escape, EXTENSIONS))})),\s*(.+)$', re.I)


def without_extension(name: str) -> str:
    """``'a/b.v1.png'`` -> ``'a/b.v1'``: an image extension is cut, other dots stay."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in EXTENSIONS else name


def list_images(root: str | os.PathLike) -> list[str]:
    """Image files below a folder, recursively; hidden files and folders are skipped.

    Returns:
        Paths relative to ``root`` with forward slashes, sorted by name without extension.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it is a file, or holds no image.
    """
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(f'{root}: no such folder (current folder: {Path.cwd()}).')
    if not root.is_dir():
        raise ValueError(f'{root}: is a file, a folder of images is needed.')
    names, others = [], 0
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = [s for s in subfolders if not s.startswith('.')]
        relative = os.path.relpath(folder, root).replace(os.sep, '/')
        for file in files:
            if file.startswith('.') or not file.lower().endswith(EXTENSIONS):
                others += 1
                continue
            names.append(file if relative == '.' else f'{relative}/{file}')
    if not names:
        raise ValueError(
            f'{root}: no image in it ({others} other files). '
            f'Extensions looked for: {" ".join(EXTENSIONS)}.'
        )
    return sorted(names, key=lambda name: (without_extension(name), name))


def read_meta_info(path: str | os.PathLike) -> list[tuple[str, str | None]]:
    """Reads a list of images, one per line.

    A line is ``name``, ``name (h,w,c)``, ``name (h,w,c) level`` (BasicSR) or ``gt_name, lq_name``
    (Real-ESRGAN). Names may contain spaces; blank lines are skipped.

    Returns:
        (gt name, lq name or None) per line, in the order of the file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such meta_info_file (current folder: {Path.cwd()}).')
    pairs = []
    for line in path.read_text(encoding='utf-8').splitlines():
        line = _META_SUFFIX.sub('', line).strip()
        if not line:
            continue
        pair = _META_PAIR.match(line)
        pairs.append((pair.group(1), pair.group(3)) if pair else (line, None))
    if not pairs:
        raise ValueError(f'{path}: the list of images is empty.')
    return pairs


class FolderImages:
    """Images below a folder; names are paths relative to it.

    Args:
        root: the folder.
        names: use these files instead of listing the folder; each must exist.
    """

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
            if missing:
                raise FileNotFoundError(
                    f'{self.root}: {len(missing)} of the {len(names)} listed images do not '
                    f'exist, the first is {missing[0]}.'
                )
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

    def read(self, name: str) -> np.ndarray:
        """uint8 or uint16, H W 3 (RGB)."""
        path = self.origin(name)
        try:
            payload = Path(path).read_bytes()
        except OSError as error:
            raise type(error)(f'{path}: cannot be read: {error.strerror or error}.') from error
        return with_three_channels(decode(payload, path).opaque)


class LmdbImages:
    """Images in an LMDB of BasicSR's layout (``data.mdb`` and ``meta_info.txt``); names are keys.

    Args:
        root: the LMDB folder.
        names: use these keys (or file names, whose extension is cut) instead of all.

    Attributes:
        shapes: key -> (height, width) where ``meta_info.txt`` tells.
    """

    def __init__(self, root: str | os.PathLike, names: list[str] | None = None) -> None:
        self.root = str(root)
        self.shapes = read_lmdb_index(self.root)
        if names is None:
            self.names = sorted(self.shapes)
            return
        self.names = [without_extension(name) for name in names]
        missing = [name for name in self.names if name not in self.shapes]
        if missing:
            raise ValueError(
                f'{self.root}: {len(missing)} of the {len(names)} listed images are not in its '
                f'meta_info.txt, the first is {missing[0]}.'
            )

    def origin(self, name: str) -> str:
        return f'{self.root} (key {name})'

    def path(self, name: str) -> str:
        """What BasicSR reports as the path of an LMDB image: its key."""
        return name

    def size(self, name: str) -> tuple[int, int] | None:
        """(height, width) where ``meta_info.txt`` tells."""
        return self.shapes[name]

    def read(self, name: str) -> np.ndarray:
        """uint8 or uint16, H W 3 (RGB)."""
        payload = read_lmdb(self.root, name)
        if payload is None:
            raise ValueError(
                f'{self.origin(name)}: meta_info.txt lists this key but data.mdb lacks it. '
                f'Build the LMDB again with scripts/data/make_lmdb.py.'
            )
        return with_three_channels(decode(payload, self.origin(name)).opaque)


ImageSource = FolderImages | LmdbImages


def open_source(
    root: object, io_backend: dict | None, names: list[str] | None = None
) -> ImageSource:
    """The images of ``root`` as an option file describes them.

    Args:
        root: ``dataroot_*``; ``~`` is expanded.
        io_backend: ``{type: disk}`` (also for None) or ``{type: lmdb}``.
        names: only these images, see the classes.
    """
    if not isinstance(root, str | os.PathLike) or not str(root):
        raise ValueError(f'must name a folder or an LMDB, got {root!r}.')
    root = os.path.expanduser(root)
    kind = (io_backend or {}).get('type', 'disk')
    if kind not in BACKENDS:
        raise ValueError(f"io_backend type '{kind}' is unknown.{did_you_mean(kind, BACKENDS)}")
    return LmdbImages(root, names) if kind == 'lmdb' else FolderImages(root, names)


def read_lmdb_index(root: str) -> dict[str, tuple[int, int] | None]:
    """Keys of an LMDB from its ``meta_info.txt``, with (height, width) where given."""
    if not os.path.isdir(root):
        raise FileNotFoundError(f'{root}: no such LMDB folder (current folder: {Path.cwd()}).')
    for part in ('data.mdb', 'meta_info.txt'):
        if not os.path.isfile(os.path.join(root, part)):
            raise FileNotFoundError(
                f'{root}: has no {part}, so it is not an LMDB in the layout of BasicSR. '
                f'scripts/data/make_lmdb.py builds one from a folder.'
            )
    check_lmdb_file(root)
    index: dict[str, tuple[int, int] | None] = {}
    for line in Path(root, 'meta_info.txt').read_text(encoding='utf-8').splitlines():
        if not line.strip():
            continue
        shape = _META_SUFFIX.search(line)
        name = line[: shape.start()] if shape else line.strip()
        key = without_extension(name)
        index[key] = (int(shape.group(1)), int(shape.group(2))) if shape else None
    if not index:
        raise ValueError(f'{root}: meta_info.txt lists no image.')
    return index


# Open LMDB environments of this process. The lock covers every read, so that `close_lmdbs` never
# pulls an environment from under a reader in another thread.
_environments: dict[tuple[int, int], object] = {}
_lock = threading.Lock()


def read_lmdb(root: str, key: str) -> bytes | None:
    """The value of ``key``, or None; opens the database read-only on first use."""
    with _reading(root, f' on key {key}') as transaction:
        return transaction.get(key.encode('utf-8'))


def stored_keys(root: str) -> set[str]:
    """Every key in the database, whatever its ``meta_info.txt`` lists."""
    with _reading(root) as transaction:
        return {
            bytes(key).decode('utf-8', 'replace')
            for key in transaction.cursor().iternext(values=False)
        }


@contextmanager
def _reading(root: str, what: str = '') -> Iterator[Any]:
    """A read transaction of the database, with its errors explained."""
    import lmdb

    file = os.path.join(root, 'data.mdb')
    try:
        status = os.stat(file)
        with _lock:
            environment = _environments.get((status.st_dev, status.st_ino))
            if environment is None:
                environment = lmdb.open(
                    root, readonly=True, lock=False, readahead=False, create=False
                )
                _environments[status.st_dev, status.st_ino] = environment
            with environment.begin() as transaction:
                yield transaction
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{file}: the LMDB has disappeared.') from error
    except lmdb.Error as error:
        hint = ''
        if 'already open' in str(error):
            hint = (
                ' Another dataset class in this process has it open and LMDB allows one only: '
                'use the datasets of unfoldldm_basicsr for both, or workers for one of them.'
            )
        raise ValueError(f'{root}: LMDB error{what}: {error}.{hint}') from error


def close_lmdbs() -> None:
    """Closes every LMDB of this process; the next read opens it again."""
    with _lock:
        _close_all()


def _close_all() -> None:
    for environment in _environments.values():
        environment.close()
    _environments.clear()


def _before_fork() -> None:
    _lock.acquire()
    _close_all()


if hasattr(os, 'register_at_fork'):  # not on Windows, which cannot fork
    os.register_at_fork(
        before=_before_fork, after_in_parent=_lock.release, after_in_child=_lock.release
    )
