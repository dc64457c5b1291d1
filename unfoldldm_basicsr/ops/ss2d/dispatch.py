"""Choice of the scan backend.

    torch    pure PyTorch, every device and dtype; slow on a GPU (one launch per column and step)
    triton   kernels compiled at run time; comes with the CUDA builds of PyTorch on Linux
    mamba    ``selective_scan_cuda``, the compiled extension of mamba-ssm

CPU tensors and float64 always use ``torch``. For other CUDA tensors the first usable of mamba,
triton, torch is taken, once per process and with one line in the log. The environment variable
UNFOLDLDM_SCAN or :func:`set_scan_backend` names one instead. "Usable" means more than installed:
the backend has scanned a small image on this GPU, and its output and gradients agreed with
``torch``.
"""

import functools
import importlib
import logging
import os
import subprocess
from types import ModuleType

import torch
from torch import Tensor

from unfoldldm_basicsr.common.suggest import check_choice
from unfoldldm_basicsr.ops.ss2d import _torch

BACKENDS = ('mamba', 'triton', 'torch')  # in the order of preference
ENVIRONMENT = 'UNFOLDLDM_SCAN'
_INSTALL_HINT = {
    'mamba': 'MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation --no-deps mamba-ssm',
    'triton': 'pip install triton (Linux; CUDA builds of PyTorch bring it along)',
}
# Triton builds its launcher with the C compiler of the system
_BUILD_HINT = "it needs a C compiler and Python's headers: apt install gcc python3-dev"
_TOLERANCE = 5e-3  # relative to the largest value; a wrong layout or order is off by O(1)

_chosen: str | None = None  # by set_scan_backend


def set_scan_backend(name: str | None) -> None:
    """Names the backend for CUDA tensors, before UNFOLDLDM_SCAN; None: the automatic choice again.

    ValueError: unknown name, or a backend that is not usable here (with the reason).
    """
    global _chosen
    if name is not None:
        check_choice('set_scan_backend', name, BACKENDS)
        _require(name, 'set_scan_backend')
    _chosen = name
    _select.cache_clear()


def _require(name: str, source: str) -> None:
    if reason := _why_not(name):
        raise ValueError(f"{source}: scan backend '{name}' is not usable here: {reason}")


def disagreement(backend: ModuleType, device: torch.device) -> float:
    """Largest error of ``backend`` against ``torch`` on a small image, output and gradients."""
    generator, grid, parameters, d_state = torch.Generator().manual_seed(0), (2, 5, 7), (4, 8), 4
    states = (*grid, 4, d_state)
    shapes = (
        (*grid, 8), (*grid, 8), (*grid, *parameters), (*parameters, d_state), states, states,
        parameters, parameters,
    )  # fmt: skip
    gy, *inputs = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
    inputs[2] = -inputs[2].exp()  # A
    pairs = zip(
        (backend.forward(*inputs), *backend.backward(gy, *inputs)),
        (_torch.forward(*inputs), *_torch.backward(gy, *inputs)),
        strict=True,
    )
    return torch.stack([(a - b).abs().max() / b.abs().max() for a, b in pairs]).max().item()


@functools.cache
def _why_not(name: str) -> str:
    """Why ``name`` cannot be used for CUDA tensors in this process; empty when it can."""
    if name == 'torch':
        return ''
    try:
        backend = importlib.import_module(f'unfoldldm_basicsr.ops.ss2d._{name}')
        if not torch.cuda.is_available():
            return 'no CUDA device'
        with torch.no_grad(), torch.autocast('cuda', enabled=False):
            error = disagreement(backend, torch.device('cuda'))
    except Exception as failure:  # noqa: BLE001  (a compiled extension may break in any way)
        text = ' '.join(str(failure).split())[-300:]  # what a compiler says ends with the fault
        built = isinstance(failure, (subprocess.SubprocessError, FileNotFoundError))
        hint = _BUILD_HINT if built else f'to install: {_INSTALL_HINT[name]}'
        return f'{type(failure).__name__}: {text}; {hint}'
    if not error <= _TOLERANCE:
        return f'a trial run differs from the torch backend by {error:.1g} (relative)'
    return ''


def chosen_backend(kind: str) -> str:
    """Backend that tensors of a device type get, in float32 and lower precision.

    ValueError: UNFOLDLDM_SCAN names an unknown backend, or one that is not usable here.
    """
    named = os.environ.get(ENVIRONMENT, '').strip()
    if named:
        check_choice(ENVIRONMENT, named, BACKENDS)
    if kind != 'cuda':
        return 'torch'
    wanted = _chosen or named
    if wanted:
        _require(wanted, 'set_scan_backend' if _chosen else ENVIRONMENT)
        return wanted
    return next(name for name in BACKENDS if not _why_not(name))


@functools.cache
def _select(kind: str) -> str:
    """:func:`chosen_backend`, made and logged once."""
    name = chosen_backend(kind)
    logger = logging.getLogger('basicsr')
    asked = kind == 'cuda' and (_chosen or os.environ.get(ENVIRONMENT, '').strip())
    logger.info("Selective scan on %s: backend '%s'%s.", kind, name, ', as asked' if asked else '')
    if kind == 'cuda' and name == 'torch' and not asked:
        for other in BACKENDS[:-1]:
            logger.warning(
                "Selective scan: the faster backend '%s' is not usable: %s", other, _why_not(other)
            )
    return name


def backend_for(x: Tensor) -> ModuleType:
    """Module with ``forward`` and ``backward`` for tensors like ``x``; in fp64 always torch's."""
    name = _select(x.device.type)
    if name == 'torch' or x.dtype == torch.float64:
        return _torch
    return importlib.import_module(f'unfoldldm_basicsr.ops.ss2d._{name}')


def describe_backends() -> dict[str, str]:
    """For every backend 'usable' with its scope, or 'not usable: ' and the reason."""
    notes = {'torch': 'usable on every device'}
    for name in BACKENDS[:-1]:
        reason = _why_not(name)
        notes[name] = f'not usable: {reason}' if reason else 'usable on CUDA'
    return notes
