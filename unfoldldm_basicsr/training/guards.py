"""What guards a training: steps that are not finite, and memory that runs out."""

import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.registry import ARCH_REGISTRY

from unfoldldm_basicsr.common.errors import OutputWriteError, RunFailure
from unfoldldm_basicsr.training.checkpointer import save_atomic

VALIDATION_ADVICE = 'Set val.tile (for example 512) to restore large images in parts.'


class NonFiniteGuard:
    """Says which steps are skipped, keeps their batches, and ends a run of nothing else.

    After ``limit`` such steps in a row the training stops; as many batches of a run are kept.
    """

    def __init__(self, opt: Mapping[str, Any], limit: int):
        self.opt, self.limit, self.in_a_row, self.total = opt, limit, 0, 0

    def passes(
        self, current_iter: int, names: list[str], batch: Mapping[str, Any], *, keep_batch: bool
    ) -> bool:
        """Whether the step of an iteration is made, in which the values ``names`` were not finite.

        With ``keep_batch`` that of this rank is then written to ``nonfinite/iter_N_rank_R.pth``.

        Raises RunFailure: the limit is reached.
        """
        if not names:
            self.in_a_row = 0
            return True
        self.in_a_row += 1
        self.total += 1
        rank, paths = self.opt['rank'], ', '.join(map(str, batch.get('lq_path', [])))
        get_root_logger().error(
            f'Iteration {current_iter}: {", ".join(names)} not finite; the step is skipped '
            f'({self.in_a_row} in a row, {self.total} in all). Batch of rank {rank}: {paths}'
        )
        folder = Path(self.opt['path']['log']) / 'nonfinite'
        if keep_batch and len(list(folder.glob('*.pth'))) < self.limit:
            kept = {'iter': current_iter, 'names': names, 'lq_path': paths}
            kept |= {key: batch[key].cpu() for key in ('lq', 'gt')}
            try:
                save_atomic(kept, folder / f'iter_{current_iter}_rank_{rank}.pth')
            except OutputWriteError as error:
                get_root_logger().error(f'The batch of this step is not kept: {error}')
        if self.in_a_row >= self.limit:
            raise RunFailure(
                f'{", ".join(names)} not finite at iteration {current_iter}, '
                f'{self.in_a_row} iterations in a row (train.max_nonfinite): training stopped. '
                'The weights were not changed by these iterations and the last checkpoint is '
                'untouched. Lower optim_g.lr, switch on use_grad_clip, or look at the saved '
                'batches in the folder nonfinite of the experiment.'
            )
        return False


def training_advice(opt: Mapping[str, Any]) -> str:
    """What to do where memory runs out in a training with these options."""
    network = opt['network_g']
    option = inspect.signature(ARCH_REGISTRY.get(network['type'])).parameters.get('use_checkpoint')
    recompute = ''
    if option is not None and not network.get('use_checkpoint', option.default):
        recompute = (
            ' set network_g.use_checkpoint: true, which saves the most memory, for about a quarter '
            'more time and the same result;'
        )
    # from the cheapest remedy to the dearest, as in docs/training.md
    return (
        f'In this order: raise train.accum_iter, up to the batch size;{recompute} set train.amp: '
        'bf16; lower datasets.train.gt_size.'
    )


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Adds ``advice`` to the RuntimeError of a GPU that runs out of memory inside."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise RuntimeError(f'Out of GPU memory. {advice} ({error})') from error


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peak memory in GiB: of the GPU, or of this process on a CPU (empty where unknown)."""
    if device.type == 'cuda':
        return {'peak_memory_gib': torch.cuda.max_memory_allocated() / 2**30}
    if sys.platform not in ('linux', 'darwin'):
        return {}
    import resource  # does not exist on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {'peak_memory_gib': peak * (1024 if sys.platform == 'linux' else 1) / 2**30}
