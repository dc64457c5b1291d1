"""Trainings on the CPU keep the memory of freed tensors, nothing else does; what is free."""

import platform
import sys

import pytest
import torch
from helpers import run_python

from unfoldldm_basicsr.common import cost
from unfoldldm_basicsr.training import memory

GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='another C library')
RESIDENT = """
import runpy, sys, torch
keep_freed_memory = runpy.run_path(sys.argv[1])['keep_freed_memory']
def kept():
    before = resident()
    x = torch.ones(2**26)
    assert resident() - before > 200
    del x
    return resident() - before > 200
def resident():
    return int(open('/proc/self/status').read().split('VmRSS:')[1].split()[0]) / 2**10
torch.ones(2**18)
print(kept(), keep_freed_memory(), kept())
"""


@pytest.fixture(autouse=True)
def _undecided(monkeypatch):
    for name in memory.GLIBC_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@GLIBC
def test_memory_of_a_freed_tensor_stays_with_the_process_where_asked():
    result = run_python('-c', RESIDENT, memory.__file__)
    assert result.stdout.split() == ['False', 'True', 'True'], result.stderr


def test_the_environment_decides_first(monkeypatch):
    monkeypatch.setattr(memory.ctypes, 'CDLL', None)  # would raise
    for name in memory.GLIBC_VARIABLES:
        monkeypatch.setenv(name, '65536')
        assert memory.keep_freed_memory() is False
        monkeypatch.delenv(name)


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory.ctypes, 'CDLL', lambda name: object())
    assert memory.keep_freed_memory() is False
    monkeypatch.setattr(sys, 'platform', 'win32')
    monkeypatch.setattr(memory.ctypes, 'CDLL', None)  # would raise
    assert memory.keep_freed_memory() is False


@pytest.mark.parametrize(
    ('limit', 'available', 'free'), [('1000', 4, 400), ('9999', 4, 4096), ('max', 9, 9216)]
)
def test_a_container_gives_its_page_cache_back_where_memory_is_wanted(
    tmp_path, monkeypatch, limit, available, free
):
    monkeypatch.setattr(cost, 'Path', lambda path: tmp_path / path[1:])
    files = {
        'proc/meminfo': f'MemFree: 1 kB\nMemAvailable: {available} kB',
        'sys/fs/cgroup/memory.max': limit,
        'sys/fs/cgroup/memory.current': '900',
        'sys/fs/cgroup/memory.stat': 'anon 7\ninactive_file 300',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cost.free_memory(torch.device('cpu')) == free
