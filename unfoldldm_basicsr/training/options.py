"""What the models of this package read from an option file, and what must fit together in it."""

import inspect
from typing import Annotated, Literal

from basicsr.utils.registry import ARCH_REGISTRY
from pydantic import Field

from unfoldldm_basicsr.common import sections
from unfoldldm_basicsr.common.contract import check_tile, contract_of, needed_inputs
from unfoldldm_basicsr.common.declaration import Problem, Problems, count
from unfoldldm_basicsr.common.registration import registered
from unfoldldm_basicsr.common.sections import Positive
from unfoldldm_basicsr.options.run import Run, section_values
from unfoldldm_basicsr.training.batches import MixingOptions, ProgressiveOptions
from unfoldldm_basicsr.training.optimisation import GradientClipper
from unfoldldm_basicsr.training.schedules import check_schedule

Limit = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]


class TopOptions(sections.BasicTop):
    """The top level of an option file."""

    scan_backend: Literal['auto', 'torch', 'triton', 'mamba'] | None = None
    """Selective scan on GPUs; goes before the variable UNFOLDLDM_SCAN."""


class TrainOptions(sections.BasicTrain):
    """``train``."""

    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay of the averaged weights; 0: none."""
    use_grad_clip: bool = False
    """Limit the gradient norm of each parameter group."""
    grad_clip_norm: Limit | dict[str, Limit] | None = None
    """The limit: one for all groups, or one per group; ~: 0.01, and 1 for PI' and f_theta."""
    decay_all: bool = False
    """Weight decay on biases and gains too, as in BasicSR and its forks."""
    accum_iter: Positive = 1
    """Slices of the batch whose gradients are added up in one step; at most one for each image."""
    amp: Literal['bf16'] | None = None
    """Mixed precision; ~: fp32 (fp16 would need loss scaling)."""
    progressive: ProgressiveOptions | None = None
    """Patch and batch sizes that change during training."""
    mixing_augs: MixingOptions | None = None
    """Mixed pairs."""
    max_nonfinite: Positive = 10
    """Steps in a row that may be skipped for NaN before the training stops."""
    apply_new_schedule: bool = False
    """A resumed run takes optim_g, scheduler and warmup_iter from the option file."""
    use_compile: bool = False
    """Compile the network with torch.compile."""
    use_cuda_graphs: bool = False
    """Replay forward and backward pass as CUDA graphs on one GPU; no effect on a CPU."""
    use_channels_last: bool = False
    """Channels-last memory format."""


class ValOptions(sections.BasicVal):
    """``val``."""

    tile: Positive | Share | None = None
    """Restore in overlapping tiles of this size; below 1: of this share of the longer side."""
    tile_overlap: count(ge=0) = 32
    """Overlap of the tiles in pixels."""
    use_image: bool = True
    """Metrics on 8-bit images, as they are saved; false: on the unrounded result."""
    trace: bool = False
    """Write the PSNR of every stage to stage_psnr_DATASET.csv, of images that need no tiles."""


class LoggerOptions(sections.BasicLogger):
    """``logger``."""

    keep_checkpoints: Positive | None = None
    """Newest checkpoints to keep; ~: all."""
    keep_best: bool = False
    """Keep the weights of the best validation, net_g_best_METRIC.pth."""
    tb_images: count(ge=0) = 2
    """Images of a validation that TensorBoard shows: input, stages (val.trace), output, truth."""


SECTIONS = {
    '': TopOptions,
    'train': TrainOptions,
    'val': ValOptions,
    'path': sections.BasicPath,
    'logger': LoggerOptions,
}


# ---- rules --------------------------------------------------------------------------------------


def tiles_fit(run: Run) -> Problems:
    """Tiles and the size that the network works at."""
    val = run.val
    if val.tile is not None and val.tile >= 1:
        net = run.networks.get('network_g')
        multiple = 1 if net is None else contract_of(net).size_multiple
        try:
            check_tile(val.tile, val.tile_overlap, multiple)
        except ValueError as error:
            yield Problem('val.tile', str(error))


def forward_inputs(run: Run) -> dict[str, inspect.Parameter]:
    """Arguments of the forward pass of ``network_g``, whether it can be built or not."""
    cls = registered(ARCH_REGISTRY, run.network_sections['network_g'].get('type'))
    return dict(list(inspect.signature(cls.forward).parameters.items())[1:]) if cls else {}


def network_takes_what_it_gets(run: Run) -> Problems:
    """The network's forward pass and what the model gives it with every image."""
    inputs, kind = forward_inputs(run), run.network_sections['network_g'].get('type')
    if not inputs:
        return
    given = run.model.network_inputs
    missing = [name for name in needed_inputs(inputs) if name not in given]
    unused = [name for name in given if name not in inputs]
    if missing:
        message = f'{kind} also needs {", ".join(missing)} with every image, which this model_type '
        hint = ' Use model_type: VLUNetModel.' if missing == ['degradation'] else ''
        yield Problem('network_g.type', f'{message}does not provide.{hint}')
    elif unused:
        message = f'{kind} takes no {", ".join(unused)}, which this model_type is for; '
        yield Problem('network_g.type', f'{message}use model_type: RestorationModel.')
    elif run.val.trace and not {'return_trace', 'prior_source'} <= inputs.keys():
        yield Problem('val.trace', f'{kind} has no stages to trace; remove it.')


def schedule_fits(run: Run) -> Problems:
    """Learning rate and schedule."""
    if not run.is_train:
        return
    if run.train.optim_g.get('lr') is None:
        yield Problem('train.optim_g.lr', 'a learning rate is needed, for example 2e-4.')
    for key, *rest in check_schedule(run.train.scheduler, run.train.total_iter):
        yield Problem(f'train.scheduler.{key}', *rest)
    if (run.train.warmup_iter or 0) > run.train.total_iter:
        message = f'is longer than the training ({run.train.total_iter}), which never reaches lr.'
        yield Problem('train.warmup_iter', message, 'warning')


def something_is_trained(run: Run) -> Problems:
    """There must be a loss."""
    if run.is_train and not run.train.pixel_opt and not run.train.perceptual_opt:
        yield Problem('train.pixel_opt', 'no loss: set pixel_opt, for example type: L1Loss.')


def clipping_fits(run: Run) -> Problems:
    """Limits of the gradient norm, and the groups that they name."""
    limits = run.train.grad_clip_norm if run.is_train else None
    if limits is None:
        return
    if not run.train.use_grad_clip:
        yield Problem('train.grad_clip_norm', 'has no effect without use_grad_clip: true.')
    elif isinstance(limits, dict) and None not in run.networks.values():
        try:
            GradientClipper(run.model.trained_groups(run.networks), limits)
        except ValueError as error:
            yield Problem('train.grad_clip_norm', str(error))


def progressive_fits(run: Run) -> Problems:
    """Sizes for every phase, and none above what the loader gives."""
    if not run.is_train or run.train.progressive is None:
        return
    sizes = run.train.progressive
    data = section_values(section_values(run.opt, 'datasets'), 'train')
    for key, limit in (('gt_sizes', 'gt_size'), ('mini_batch_sizes', 'batch_size_per_gpu')):
        values, largest, place = getattr(sizes, key), data.get(limit), f'train.progressive.{key}'
        if not values or len(values) != len(sizes.iters):
            yield Problem(place, 'is not as long as iters, or empty.')
        elif isinstance(largest, int) and max(values) > largest:
            message = f'{max(values)} is more than datasets.train.{limit} ({largest}).'
            severity = 'fault' if key == 'gt_sizes' else 'warning'  # as Restormer's trainer
            yield Problem(place, message, severity)


def best_is_known(run: Run) -> Problems:
    """Weights are compared by the metrics of validations."""
    if run.is_train and run.logger.keep_best and not run.val.metrics:
        yield Problem('logger.keep_best', 'keeps nothing without val.metrics.', 'warning')


def graphs_fit(run: Run) -> Problems:
    """What a captured step cannot hold."""
    if run.is_train and run.train.use_cuda_graphs and run.processes > 1:
        message = 'is for one process: gradients of several are averaged in the backward pass.'
        yield Problem('train.use_cuda_graphs', message)


RULES = (
    tiles_fit,
    network_takes_what_it_gets,
    schedule_fits,
    something_is_trained,
    clipping_fits,
    progressive_fits,
    best_is_known,
    graphs_fit,
)
