"""Trainings on the CPU keep the memory of freed tensors, and nothing else does."""

import platform
import sys

import pytest
from helpers import run_python

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
