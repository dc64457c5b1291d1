"""One step of a training: gradients of the slices of a batch, the optimiser, the memory."""

import hashlib
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from basicsr.utils import get_root_logger
from torch import Tensor, nn
from torch.optim import Optimizer

from unfoldldm_basicsr.common.errors import OutputWriteError, RunFailure
from unfoldldm_basicsr.options.run import Run
from unfoldldm_basicsr.training.batches import Batch, slices_of
from unfoldldm_basicsr.training.checkpointer import save_atomic
from unfoldldm_basicsr.training.cuda_graphs import GradientGraphs, Losses
from unfoldldm_basicsr.training.interruption import stop_request
from unfoldldm_basicsr.training.networks import running_statistics
from unfoldldm_basicsr.training.optimisation import GradientClipper

MEMORY_ADVICE = (  # from the cheapest remedy to the dearest, as in docs/training.md
    'In this order: raise train.accum_iter, up to the batch size; set network_g.use_checkpoint: '
    'true where the network has that key and it is off, which saves the most memory, for about a '
    'quarter more time and the same result; set train.amp: bf16; lower datasets.train.gt_size.'
)


class TrainingStep:
    """Makes steps of the optimiser on all ranks alike; ``net`` is the bare network.

    Steps with values that are not finite are skipped; ``skipped`` counts them. After
    ``train.max_nonfinite`` in a row the training stops; as many batches of a run are kept.
    """

    def __init__(
        self, run: Run, net: nn.Module, optimizer: Optimizer, clip_gradients: GradientClipper
    ):
        train = run.train
        self.opt, self.seed, self.optimizer = run.opt, run.top.manual_seed or 0, optimizer
        self.clip_gradients, self.accum_iter = clip_gradients, train.accum_iter
        self.skipped, self.max_nonfinite = {'total': 0, 'in_a_row': 0}, train.max_nonfinite
        # A forward pass changes them at once: a NaN would stay in them for good.
        self.statistics = running_statistics(net)
        self.graphs, self.print_freq = None, run.logger.print_freq
        if train.use_cuda_graphs and next(net.parameters()).is_cuda:
            parameters = (p for group in optimizer.param_groups for p in group['params'])
            self.graphs = GradientGraphs(parameters, self.statistics)

    def __call__(
        self,
        batch: Batch,
        current_iter: int,
        compute_losses: Callable[[Batch, int], tuple[Losses, Losses]],
        wrapped: Sequence[nn.Module],
    ) -> tuple[OrderedDict[str, float], bool, bool]:
        """One step on a batch that is on the device.

        Args:
            compute_losses: (slice, iteration) -> losses, whose sum is minimised, and figures.
            wrapped: the networks whose gradients DistributedDataParallel averages.

        Returns:
            Losses, figures and gradient norms, means over the ranks; whether all were finite, else
            the step is skipped; whether a signal asks this rank or another to stop.

        Raises RunFailure: too many skipped steps in a row.
        """
        self.optimizer.zero_grad(set_to_none=True)
        statistics = [buffer.clone() for buffer in self.statistics]
        accumulate = partial(self._accumulate, current_iter, compute_losses, wrapped)
        random = partial(step_rng, self.seed, current_iter, self.opt['rank'])
        with memory_advice(MEMORY_ADVICE):
            if self.graphs is not None:
                is_logged = current_iter % self.print_freq == 0  # computes figures, too
                values = self.graphs(batch, accumulate, random, is_logged)
            else:
                with random():
                    values = accumulate(batch)
        norms = {f'grad_norm_{name}': norm for name, norm in self.clip_gradients().items()}
        log, stop = _reduce(values | norms, self.opt, batch['lq'].device)
        bad = [name for name, value in log.items() if not math.isfinite(value)]
        if not bad:
            self.optimizer.step()
            self.skipped['in_a_row'] = 0
        else:
            for buffer, before in zip(self.statistics, statistics, strict=True):
                buffer.copy_(before)
            here = self.opt['rank'] == 0 or not all(map(torch.isfinite, values.values()))
            self._report_skipped(current_iter, ', '.join(bad), batch, keep_batch=here)
        return log, not bad, stop

    def _accumulate(
        self, current_iter: int, compute_losses: Callable, wrapped: Sequence, batch: Batch
    ) -> dict[str, Tensor]:
        """Adds up the gradients of the batch's slices; returns their weighted losses.

        The gradients are averaged over the ranks in the backward pass of the last slice only.
        """
        totals: dict[str, Tensor] = {}
        slices = list(slices_of(batch, self.accum_iter))
        for index, (part, share) in enumerate(slices, start=1):
            with ExitStack() as stack:
                if index < len(slices) and self.opt['dist']:
                    for net in wrapped:
                        stack.enter_context(net.no_sync())
                losses, figures = compute_losses(part, current_iter)
                (sum(losses.values()) * share).backward()
            for name, value in (losses | figures).items():
                totals[name] = totals.get(name, 0) + value.detach().float() * share
        return totals

    def _report_skipped(
        self, current_iter: int, names: str, batch: Batch, *, keep_batch: bool
    ) -> None:
        """Counts, logs and, in ``nonfinite/iter_N_rank_R.pth``, keeps; or ends the run."""
        counts, rank = self.skipped, self.opt['rank']
        counts.update(total=counts['total'] + 1, in_a_row=counts['in_a_row'] + 1)
        paths = ', '.join(map(str, batch.get('lq_path', [])))
        get_root_logger().error(
            f'Iteration {current_iter}: {names} not finite; the step is skipped '
            f'({counts["in_a_row"]} in a row, {counts["total"]} in all). Batch of rank {rank}: '
            f'{paths}'
        )
        folder = Path(self.opt['path']['log']) / 'nonfinite'
        if keep_batch and len(list(folder.glob('*.pth'))) < self.max_nonfinite:
            kept = {'iter': current_iter, 'names': names.split(', '), 'lq_path': paths}
            kept |= {key: batch[key].cpu() for key in ('lq', 'gt')}
            try:
                save_atomic(kept, folder / f'iter_{current_iter}_rank_{rank}.pth')
            except OutputWriteError as error:
                get_root_logger().error(f'The batch of this step is not kept: {error}')
        if counts['in_a_row'] >= self.max_nonfinite:
            raise RunFailure(
                f'{names} not finite at iteration {current_iter}, {counts["in_a_row"]} iterations '
                'in a row (train.max_nonfinite): training stopped. The weights were not changed by '
                'these iterations and the last checkpoint is untouched. Lower optim_g.lr, switch '
                'on use_grad_clip, or look at the saved batches in the folder nonfinite of the '
                'experiment.'
            )


@contextmanager
def step_rng(seed: int, current_iter: int, rank: int) -> Iterator[None]:
    """Torch random numbers inside (prior dropout, diffusion noise) depend on the arguments only.

    Outside nothing changes, so an interruption changes neither.
    """
    digest = hashlib.blake2b(f'{seed}/{current_iter}/{rank}'.encode(), digest_size=8).digest()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        # torch.manual_seed would note the call stack for GPUs not in use: a millisecond each time.
        draw = int.from_bytes(digest, 'big') >> 1
        torch.default_generator.manual_seed(draw)
        if devices:
            torch.cuda.manual_seed(draw)
        yield


def _reduce(
    values: Mapping[str, Tensor], opt: Mapping[str, Any], device: torch.device
) -> tuple[OrderedDict[str, float], bool]:
    """Means over the ranks, and whether a signal asks any of them to stop.

    All ranks get the same answer, so that all skip or stop together. One wait for the device.
    """
    stop = torch.tensor(float(bool(stop_request.signum)))
    packed = torch.stack([v.detach().float().to(device) for v in (*values.values(), stop)])
    if opt['dist']:
        torch.distributed.all_reduce(packed)
        packed /= opt['world_size']
    *means, stop = packed.tolist()
    return OrderedDict(zip(values, means, strict=True)), stop > 0


# ---- memory --------------------------------------------------------------------------------------


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
