"""Large CPU tensors on large pages of memory."""

from __future__ import annotations

import os

VARIABLE = 'THP_MEM_ALLOC_ENABLE'


def prefer_huge_pages() -> None:
    """Has torch ask Linux for pages of 2 MiB where a CPU tensor fills one, unless the user decided.

    A forward pass at full resolution allocates tensors of many MiB, and with pages of 4 KiB a third
    of its time goes into page faults (docs/speed.md). torch reads the variable at its first
    allocation; processes started from this one inherit it. Costs memory: up to 2 MiB for a tensor.
    """
    os.environ.setdefault(VARIABLE, '1')


def kernel_mode() -> str:
    """'always', 'madvise' (on demand), 'never', or '' where the system knows no such pages."""
    try:
        with open('/sys/kernel/mm/transparent_hugepage/enabled', encoding='ascii') as file:
            return file.read().partition('[')[2].partition(']')[0]
    except OSError:
        return ''


def state() -> str:
    """What becomes of it here, for ``unfoldldm doctor``."""
    if os.environ.get(VARIABLE, '0') == '0':
        return f'off ({VARIABLE}=0)'
    mode = kernel_mode()
    if mode == 'never':
        return (
            'refused by the kernel; trainings and restorations on the CPU are slower: '
            'echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (as root)'
        )
    return f'on (kernel: {mode})' if mode else 'not on this system'
