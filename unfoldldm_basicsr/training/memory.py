"""Memory of CPU tensors: large pages, and what is freed kept for the next ones; needs no torch."""

import ctypes
import os
import sys

VARIABLE = 'THP_MEM_ALLOC_ENABLE'
# Each of them says that the user has decided how glibc treats freed memory.
GLIBC_VARIABLES = (
    'MALLOC_MMAP_MAX_', 'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_', 'GLIBC_TUNABLES',
)  # fmt: skip
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of mallopt, from glibc's malloc.h
_NEVER = -1


def prefer_huge_pages() -> None:
    """Has torch ask Linux for pages of 2 MiB where a CPU tensor fills one, unless the user decided.

    A forward pass at full resolution allocates tensors of many MiB, and with pages of 4 KiB a third
    of its time goes into page faults (docs/speed.md). torch reads the variable at its first
    allocation; processes started from this one inherit it. Costs memory: up to 2 MiB for a tensor.
    """
    os.environ.setdefault(VARIABLE, '1')


def keep_freed_memory() -> bool:
    """Has glibc keep what this process frees, unless the environment or the system rules it out.

    By default every tensor above 32 MiB goes back to Linux when it is freed, and the next one is
    filled with zeros page by page: two fifths of a training step at 256 x 256. A training needs the
    same memory again in its next iteration; its peak stays the same, or grows where recomputed
    blocks leave gaps (docs/speed.md). Returns whether it does from now on.
    """
    if sys.platform != 'linux' or any(name in os.environ for name in GLIBC_VARIABLES):
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # glibc has it, musl has not
    return bool(mallopt and mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _NEVER))
