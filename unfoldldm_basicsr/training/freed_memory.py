"""Memory of freed CPU tensors, kept for the next ones."""

from __future__ import annotations

import ctypes
import os
import sys

# Each of them says that the user has decided how glibc treats freed memory.
VARIABLES = (
    'MALLOC_MMAP_MAX_', 'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_', 'GLIBC_TUNABLES',
)  # fmt: skip
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of mallopt, from glibc's malloc.h
_NEVER = -1


def keep_freed_memory() -> bool:
    """Has glibc keep what this process frees, unless the environment or the system rules it out.

    By default every tensor above 32 MiB goes back to Linux when it is freed, and the next one is
    filled with zeros page by page: two fifths of a training step at 256 x 256. A training needs the
    same memory again in its next iteration; its peak stays the same, or grows where recomputed
    blocks leave gaps (docs/speed.md).

    Returns:
        Whether it does from now on.
    """
    if sys.platform != 'linux' or any(name in os.environ for name in VARIABLES):
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # glibc has it, musl has not
    return mallopt is not None and all(
        mallopt(parameter, value)
        for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER))
    )
