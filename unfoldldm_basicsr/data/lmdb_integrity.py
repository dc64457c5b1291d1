"""Is an LMDB whole? Found out before it is opened: LMDB maps the file into memory, and touching a
part that is not there kills the process (bus error) instead of raising an exception."""

from __future__ import annotations

import os
import struct
from pathlib import Path

_MAGIC = 0xBEEFC0DE
_HEADER = 16  # of a page, before the meta data
_META = struct.Struct('=IIQQ I44s 48s QQ')  # magic, version, address, size, 2 databases, last page
_SMALLEST_PAGE = 512


def check_lmdb_file(root: str | os.PathLike) -> None:
    """Compares the size of ``data.mdb`` with the pages that it says it has.

    Raises:
        ValueError: it is no LMDB, or its end is missing.
        OSError: it cannot be read.
    """
    file = Path(root, 'data.mdb')
    with open(file, 'rb') as stream:
        metas = [_read_meta(stream, 0)]
        if metas[0] is not None:
            metas.append(_read_meta(stream, metas[0][0]))
        size = stream.seek(0, os.SEEK_END)
    known = [meta for meta in metas if meta is not None]
    if not known:
        raise ValueError(
            f'{root}: LMDB error: data.mdb does not begin like an LMDB. Build it again.'
        )
    page_size, last_page, _ = max(known, key=lambda meta: meta[2])
    expected = (last_page + 1) * page_size
    if size < expected:
        raise ValueError(
            f'{root}: LMDB error: data.mdb is truncated: {size} of {expected} bytes are there. '
            'Copy or build it again.'
        )


def _read_meta(stream, offset: int) -> tuple[int, int, int] | None:
    """Page size, last page and transaction of the meta page at ``offset``."""
    stream.seek(offset + _HEADER)
    content = stream.read(_META.size)
    if len(content) < _META.size:
        return None
    magic, _, _, _, page_size, _, _, last_page, transaction = _META.unpack(content)
    if magic != _MAGIC or page_size < _SMALLEST_PAGE:
        return None
    return page_size, last_page, transaction
