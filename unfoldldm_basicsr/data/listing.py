"""Which files a folder or a list names: one rule for datasets, LMDBs and ``restore``."""

import codecs
import logging
import os
import re
from collections import Counter
from pathlib import Path

from unfoldldm_basicsr.data.images import EXTENSIONS

_NOT_OURS = ('__MACOSX', '@eaDir', '$RECYCLE.BIN', 'System Volume Information', 'lost+found',
             'Thumbs.db', 'desktop.ini')  # fmt: skip
_SIZE = re.compile(r'\s+\(\s*(\d+)\s*,\s*(\d+)\s*(?:,\s*\d+\s*)?\)(?:\s+-?\d+)?\s*$')
_FILE = f'.*?(?:{"|".join(map(re.escape, EXTENSIONS))})'
_PAIR = re.compile(rf'^({_FILE}),\s*(.+)$', re.I)
_MORE = re.compile(rf'^({_FILE})\s+(?!{_FILE}$)', re.I)  # fields that name no second image


def without_extension(name: str) -> str:
    """``'a/b.v1.png'`` -> ``'a/b.v1'``: an image extension is cut, other dots stay."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in EXTENSIONS else name


def key_of(name: str) -> str:
    """Key of a file: its name without extension, in ASCII and without dots.

    BasicSR cuts keys at the first dot and looks up no others; ``ä.1.png`` becomes ``_e4__1``.
    """
    stem = without_extension(name).replace('.', '_')
    return re.sub('[^ -~]', lambda found: f'_{ord(found[0]):x}_', stem)


def find_images(
    root: str | os.PathLike, *, recursive: bool = True, more: tuple[str, ...] = ()
) -> tuple[list[str], Counter[str]]:
    """Image files below a folder, told by their endings and ``more``; linked folders are entered.

    Hidden files and what systems leave in folders (``._*``, ``__MACOSX``, ...) do not count. Raises
    OSError where a folder cannot be listed, whose images would be missed without a word.

    Returns:
        Relative paths with forward slashes, sorted by key as LMDBs are; number of other files by
        ending.
    """

    def refuse(error: OSError) -> None:
        raise error

    names, others, chains = [], Counter(), {}
    for folder, subfolders, files in os.walk(Path(root), onerror=refuse, followlinks=True):
        status, above = os.stat(folder), chains.get(os.path.dirname(folder), ())
        chains[folder] = (*above, (status.st_dev, status.st_ino))
        if chains[folder][-1] in above:  # a link back
            subfolders.clear()
            continue
        subfolders[:] = sorted(s for s in subfolders if recursive and not _is_hidden(s))
        relative = os.path.relpath(folder, root).replace(os.sep, '/')
        for file in files:
            if _is_hidden(file):
                continue
            ending = os.path.splitext(file)[1].lower()
            if ending in EXTENSIONS or ending in more:
                names.append(file if relative == '.' else f'{relative}/{file}')
            else:
                others[ending or file] += 1
    return sorted(names, key=lambda name: (key_of(name), name)), others


def _is_hidden(name: str) -> bool:
    return name.startswith('.') or name in _NOT_OURS


def left_out(others: Counter[str]) -> str:
    """``'3 files are left out, no images (.txt, .heic).'``"""
    endings = ', '.join(ending for ending, _ in others.most_common(5))
    count = others.total()
    noun = 'file is left out, it is no image' if count == 1 else 'files are left out, no images'
    return f'{count} {noun} ({endings}).'


def check_folder(root: str | os.PathLike) -> None:
    """FileNotFoundError: there is nothing; ValueError: it is a file."""
    if not os.path.exists(root):
        raise FileNotFoundError(f'{root}: no such folder (current folder: {Path.cwd()}).')
    if not os.path.isdir(root):
        raise ValueError(f'{root}: is a file, a folder of images is needed.')


def list_images(root: str | os.PathLike) -> list[str]:
    """Names of :func:`find_images`, at least one; what is left out is logged."""
    check_folder(root)
    names, others = find_images(root)
    if not names:
        raise ValueError(
            f'{root}: no image in it ({others.total()} other files). '
            f'Extensions looked for: {" ".join(EXTENSIONS)}.'
        )
    if others:
        logging.getLogger('basicsr').warning('%s: %s', root, left_out(others))
    return names


def read_lines(path: str | os.PathLike) -> list[str]:
    """Lines of a text in UTF-8 or UTF-16; other bytes stay what they are in file names."""
    content = Path(path).read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        if b'\0' in content and not wide:
            raise ValueError('it holds bytes of no text')
        errors = 'strict' if wide else 'surrogateescape'
        text = content.decode('utf-16' if wide else 'utf-8-sig', errors)
    except ValueError as error:
        raise ValueError(f'{path}: no text in UTF-8 or UTF-16: {error}.') from error
    return re.split('\r\n|\r|\n', text)


def split_size(line: str) -> tuple[str, tuple[int, int] | None]:
    """Name and (height, width) or None of a line ``name (h,w,c) level``; further fields go."""
    found = _SIZE.search(line)
    if found is None:
        more = _MORE.match(line.strip())
        return more[1] if more else line.strip(), None
    return line[: found.start()].strip(), (int(found.group(1)), int(found.group(2)))


def read_meta_info(path: str | os.PathLike) -> list[tuple[str, str | None]]:
    """(gt name, lq name or None) of each line of a list of images.

    A line is ``name``, ``name (h,w,c)``, ``name (h,w,c) level`` (BasicSR) or ``gt_name, lq_name``
    (Real-ESRGAN). Names may contain spaces; blank lines are skipped.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such meta_info_file (current folder: {Path.cwd()}).')
    entries = [entry for entry in map(read_entry, read_lines(path)) if entry[0]]
    if not entries:
        raise ValueError(f'{path}: the list of images is empty.')
    return entries


def read_entry(line: str) -> tuple[str, str | None]:
    """(gt name, lq name or None) of one line of such a list."""
    name = split_size(line)[0]
    pair = _PAIR.match(name)
    return pair.groups() if pair else (name, None)
