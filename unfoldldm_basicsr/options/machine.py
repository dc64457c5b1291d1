"""The machine and the way of a start: processes and GPUs, before any of them is used."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

_COUNT_OF = {'pytorch': 'WORLD_SIZE', 'slurm': 'SLURM_NTASKS'}


@dataclass(frozen=True)
class Machine:
    """Where and how a run is started.

    Attributes:
        here: whether data, weights and GPUs of this machine belong to it.
        launcher: that of the command line; None where no run is started.
        resuming: whether the run goes on from a state.
        gpus: how many are used; 'auto' where that depends on another machine.
    """

    here: bool
    launcher: str | None
    resuming: bool
    gpus: int | Literal['auto']

    @property
    def processes(self) -> int:
        return process_count(self.launcher)

    @property
    def replicas(self) -> int:
        """Batches of ``batch_size_per_gpu`` that each process draws, as DataParallel does."""
        alone = self.launcher in (None, 'none') and isinstance(self.gpus, int)
        return max(self.gpus, 1) if alone else 1


def process_count(launcher: str | None) -> int:
    """Processes of the whole run, as the launcher's environment tells; 1 without a launcher.

    The variables alone mean nothing: inside a Slurm allocation every single process has them.
    """
    text = os.environ.get(_COUNT_OF.get(launcher or '', ''), '')
    return max(int(text), 1) if text.isdigit() else 1


def forgotten_launcher(launcher: str) -> str:
    """What is wrong with a start by torchrun without ``--launcher pytorch``; '' for others."""
    count = process_count('pytorch')
    if launcher != 'none' or count == 1:
        return ''
    return (
        f'{count} processes were started (WORLD_SIZE is {count}), but without a launcher each '
        'would run alone, all of them in the same folder: add --launcher pytorch to the command. '
        'For a single process, start it without torchrun, or unset WORLD_SIZE.'
    )


def gpu_count(options: Mapping, model: type | None, launcher: str | None) -> int | str:
    """``num_gpu``, with 'auto' as what it means here.

    A model of this package uses one GPU in each process; BasicSR's own split batches over several.
    """
    if options['num_gpu'] != 'auto':
        return options['num_gpu']
    alone = launcher in (None, 'none') and getattr(model, 'one_gpu_per_process', False)
    present = torch.cuda.device_count()
    return min(present, 1) if alone else present
