"""Checks of what an option file says about GPUs, and of the scan backend that it names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import nn

from unfoldldm_basicsr.archs.layers.vss import SS2D
from unfoldldm_basicsr.common.suggest import did_you_mean
from unfoldldm_basicsr.ops.ss2d import describe_backends
from unfoldldm_basicsr.ops.ss2d.dispatch import BACKENDS
from unfoldldm_basicsr.options.devices import one_gpu_per_process
from unfoldldm_basicsr.options.problems import Problems
from unfoldldm_basicsr.options.values import show

AUTO = 'auto'


def check_gpus(problems: Problems, options: Mapping, launcher: str | None) -> None:
    """Compares ``num_gpu`` with the GPUs of this machine and with how the run is started.

    Args:
        problems: gets what is found.
        options: the option dict.
        launcher: as on the command line; None where nothing is started.
    """
    wanted, present = options['num_gpu'], torch.cuda.device_count()
    if not isinstance(wanted, int) or launcher not in (None, 'none'):
        return
    if wanted > present:
        problems.add(
            'num_gpu',
            f'{wanted} asked for, but torch sees {present} here. '
            "Write 'auto' for what there is, or 0 for the CPU.",
        )
    elif launcher == 'none' and wanted > 1 and one_gpu_per_process(options):
        problems.add(
            'num_gpu',
            f'is {wanted}, but one process was started, which uses one GPU. Start with torchrun '
            f'--nproc_per_node={wanted} ... --launcher pytorch, or set num_gpu: 1.',
        )


def check_scan_backend(
    problems: Problems, options: Mapping, network: nn.Module | None, *, gpus: object, here: bool
) -> None:
    """Checks the top-level key ``scan_backend``.

    Args:
        problems: gets what is found.
        options: the option dict.
        network: ``network_g``, None if it cannot be built.
        gpus: how many are used, 'auto' where that depends on the machine.
        here: whether the backend must be usable on this machine; it is tried then.
    """
    name, place = options.get('scan_backend', AUTO), 'scan_backend'
    if problems.covers(place) or name == AUTO:
        return
    if name not in BACKENDS:
        known = (AUTO, *BACKENDS)
        problems.add(place, f'unknown value {show(name)}.{did_you_mean(name, known)}')
    elif network is not None and not any(isinstance(m, SS2D) for m in network.modules()):
        problems.add(place, f'has no effect: {type(network).__name__} has no selective scan.')
    elif name != 'torch' and gpus == 0:
        problems.add(place, f"'{name}' needs a GPU; on the CPU the backend is always torch.")
    elif name != 'torch' and here:
        with _own_gpu():
            answer = describe_backends()[name]
        if answer.startswith('not usable'):
            problems.add(place, f"'{name}' is {answer}.")


def _own_gpu():
    """Inside, GPU work goes to the GPU of this process, as it will in the run."""
    rank = os.environ.get('LOCAL_RANK', os.environ.get('SLURM_LOCALID', ''))
    if rank.isdigit() and int(rank) < torch.cuda.device_count():
        return torch.cuda.device(int(rank))
    return nullcontext()
