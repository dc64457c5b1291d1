"""Start of the process group: on CPU too, on the right GPU, and without a shell."""

import os
import re

import torch
from torch import distributed, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel


def init_dist_pytorch(backend: str, **kwargs) -> None:
    """Replaces ``basicsr.utils.dist_util._init_dist_pytorch``.

    BasicSR divides by the number of GPUs (zero on CPU), picks the GPU by global rank and leaves the
    backend at nccl. Here processes without a GPU use gloo, others the GPU of their LOCAL_RANK.

    Raises ValueError: not started by torchrun, or more processes than GPUs on this machine.
    """
    if 'RANK' not in os.environ:
        raise ValueError(
            '--launcher pytorch needs the variables that torchrun sets, and RANK is not there. '
            'Start with: torchrun --nproc_per_node=N -m unfoldldm_basicsr.train -opt FILE '
            '--launcher pytorch (one process without a launcher: leave --launcher out)'
        )
    local_rank = int(os.environ.get('LOCAL_RANK', os.environ['RANK']))
    backend = _select_device(backend, local_rank)
    attempt = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    if attempt != '0' and os.environ.get('GROUP_WORLD_SIZE') == '1':
        kwargs.update(_fresh_rendezvous(attempt))
    distributed.init_process_group(backend=backend, **kwargs)


def _fresh_rendezvous(attempt: str) -> dict:
    """Arguments of ``init_process_group`` that keep this attempt's keys from the one before.

    torchrun's store outlives the processes that it restarts, and torch 2.15 looks in it for the
    addresses of the others without regard to the attempt, so a fast process would connect to a dead
    one. On several machines the counts of their agents may differ, so they cannot be the prefix.
    """
    store, rank, size = next(rendezvous('env://'))
    store = distributed.PrefixStore(f'attempt_{attempt}', store)
    return {'store': store, 'rank': rank, 'world_size': size}


def init_dist_slurm(backend: str, port: int | None = None) -> None:
    """Replaces ``basicsr.utils.dist_util._init_dist_slurm``, which ran ``scontrol`` in a shell.

    The node list comes from the environment, so it must never reach a shell. MASTER_ADDR and
    MASTER_PORT are respected when set.

    Raises ValueError: not started by srun, or no list of hosts.
    """
    try:
        rank, tasks = int(os.environ['SLURM_PROCID']), int(os.environ['SLURM_NTASKS'])
    except KeyError as error:
        raise ValueError(
            f'--launcher slurm needs the variables that srun sets, and {error} is not there. '
            'Start with: srun ... python -m unfoldldm_basicsr.train -opt FILE --launcher slurm'
        ) from error
    local_rank = int(os.environ.get('SLURM_LOCALID', rank))
    if port is not None:
        os.environ['MASTER_PORT'] = str(port)
    os.environ.setdefault('MASTER_PORT', '29500')
    if 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = first_slurm_host()
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(tasks), LOCAL_RANK=str(local_rank))
    backend = _select_device(backend, local_rank)
    distributed.init_process_group(backend=backend)


def model_to_device(self, net: nn.Module) -> nn.Module:
    """Replaces ``BaseModel.model_to_device``, which asks for a GPU wherever there are processes."""
    if not self.opt['dist'] or self.device.type != 'cpu':
        return model_to_device.replaces(self, net)
    unused = self.opt.get('find_unused_parameters', False)
    return DistributedDataParallel(net.to(self.device), find_unused_parameters=unused)


def first_slurm_host() -> str:
    """Name of the first node of this job: ``rack[01-04,7]n[3-4],x`` begins with rack01n3.

    Raises ValueError: no node list, or one with characters that no host name has.
    """
    nodes = os.environ.get('SLURM_NODELIST') or os.environ.get('SLURM_JOB_NODELIST') or ''
    if not re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9_.,\[\]-]*', nodes):
        raise ValueError(
            f"SLURM_NODELIST is '{nodes}', not a list of hosts. Set MASTER_ADDR to the first host."
        )
    first = re.match(r'([^,[]|\[[^]]*\])+', nodes)[0]
    return re.sub(r'\[(\w+)[^]]*\]', r'\1', first)


def _select_device(backend: str, local_rank: int) -> str:
    """Chooses this process's GPU and returns the backend to use."""
    gpus = torch.cuda.device_count()
    if backend == 'gloo' or gpus == 0:
        return 'gloo'
    if local_rank >= gpus:
        raise ValueError(
            f'process {local_rank} of this machine has no GPU: there are {gpus}. '
            f'Start at most {gpus} per machine (torchrun --nproc_per_node={gpus}).'
        )
    torch.cuda.set_device(local_rank)
    return backend
