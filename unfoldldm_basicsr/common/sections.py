"""What BasicSR reads from an option file: one declaration for each of its sections.

Models of this package declare ``sections``, derived from these; other models go by them as they
stand, and may read more: ``also`` tells the keys that BasicSR's own classes read beside. What is
read whatever the model or data set is a base of its own, which one of somebody else goes by.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationInfo,
    field_validator,
)

from unfoldldm_basicsr.common.declaration import Options, Tuple, count


def _switched(value: Any) -> Any:
    """As BasicSR asks: nothing (~) and 0 are false, 1 is true."""
    known = value is None or (isinstance(value, int) and value in (0, 1))
    return bool(value) if known else value


def _with_type(value: Any) -> dict[str, Any]:
    """The sections in it that name a class."""
    values = value if isinstance(value, dict) else {}
    return {k: v for k, v in values.items() if isinstance(v, dict) and 'type' in v}


def _harmless(backend: Any) -> Any:
    kind = backend.get('type') if isinstance(backend, dict) else None
    if kind == 'memcached':
        raise ValueError('must not be memcached, which imports code from a folder named here')
    if kind in ('disk', 'lmdb') and len(backend) > 1:  # keys would go to lmdb.open
        raise ValueError(f'of type {kind} has no other keys')
    return backend


Section = dict[str, Any] | None
Switch = Annotated[bool, BeforeValidator(_switched)]
Positive = count(ge=1)


def _words(text: str) -> re.Pattern:
    """Keys that a class of BasicSR reads: names, and patterns of names that are free."""
    return re.compile('|'.join(text.split()))


def _becomes(what: str, allowed: str) -> AfterValidator:
    """A text that becomes ``what``, where there is one, and matches ``allowed``."""

    def check(text: str | None) -> str | None:
        if text is not None and not re.fullmatch(allowed, text):
            raise ValueError(f'{text!r} becomes {what}.')
        return text

    return AfterValidator(check)


_FOLDER = _becomes('a folder: it cannot hold / or \\', r'(?![. ]*$|~$)[^/\\\0]+')
_PART = _becomes('part of a file name: it cannot hold / or \\', r'[^/\\\0]*')


class DistOptions(Options):
    """``dist_params``: settings of the process group."""

    backend: Literal['nccl', 'gloo'] = 'nccl'
    """Communication library."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port of the first process (slurm only)."""


class AnyTop(Options):
    """The top level of an option file, whatever the model."""

    also = _words(
        r'scale network_\w+ \w*(noise|jpeg|blur|resize|poisson|gray)\w*_(prob|range)2? '
        r'second_blur_prob gt_size queue_size (l1_|percep_|gan_)?gt_usm high_order_degradation'
    )

    name: Annotated[str, _FOLDER]
    """Name of the experiment, also of its folder."""
    model_type: str
    """Registered model."""
    num_gpu: Annotated[int, Field(ge=0)] | Literal['auto'] = 'auto'
    """Number of GPUs, 0 for the CPU."""
    manual_seed: Annotated[int, Field(ge=0, le=2**31)] | None = None
    """Seed of all random numbers; ~: one is drawn."""
    datasets: dict[str, Any] = {}
    """Sections train, val, val_2, ... or test, test_2, ..."""
    path: Section = None
    """Weights to start from."""
    train: Section = None
    """Settings of the training."""
    val: Section = None
    """Settings of the validation."""
    logger: Section = None
    """Settings of the log."""
    dist_params: DistOptions | None = None
    """Settings of the process group."""
    find_unused_parameters: Switch = False
    """For DistributedDataParallel."""


class BasicTop(AnyTop):
    """The top level of an option file."""

    scale: Annotated[float, Field(gt=0)] = 1
    """Size of the output relative to the input."""
    network_g: dict[str, Any]
    """Type and arguments of the network."""


class AnyPath(Options):
    """``path``, whatever the model."""

    also = _words(r'\w*(pretrain_network|strict_load|param_key|resume)\w*')

    resume_state: str | None = None
    """Training state to go on from."""
    ignore_resume_networks: list[Any] | str | None = None
    """Networks that a resumed run does not load."""


class BasicPath(AnyPath):
    """``path``."""

    pretrain_network_g: str | None = None
    """Weights to start from, or to test."""
    param_key_g: str | None = None
    """Which weights of that file: params or params_ema."""
    strict_load_g: Switch = True
    """Every weight must fit."""


class AnyTrain(Options):
    """``train``, whatever the model."""

    also = _words(
        r'ema_decay scheduler optim_\w+ \w+_opt net_d_iters net_d_init_iters net_[gd]_reg_every '
        'r1_reg_weight lr_flow path_reg_weight path_batch_shrink mixing_prob fix_flow '
        '(flow|dcn)_lr_mul tsa_iter'
    )

    total_iter: count(ge=1, le=1e9)
    """Number of training steps."""
    warmup_iter: count(ge=-1) | None = None
    """Steps of linear warm-up of the learning rate."""


class BasicTrain(AnyTrain):
    """``train``."""

    ema_decay: Annotated[float, Field(ge=0, le=1)] | None = None
    """Decay of the averaged weights; 0: none."""
    optim_g: dict[str, Any]
    """Type and arguments of the optimiser."""
    scheduler: dict[str, Any]
    """Type and arguments of the learning-rate schedule."""
    pixel_opt: Section = None
    """Pixel loss: type and its arguments."""
    perceptual_opt: Section = None
    """BasicSR's perceptual loss."""


class AnyVal(Options):
    """``val``, whatever the model."""

    also = _words('flip_seq center_frame_only num_val_samples')

    val_freq: Positive = 5000
    """Steps between validations."""
    save_img: Switch = False
    """Write the restored images."""
    metrics: Annotated[dict[str, Any] | None, BeforeValidator(_with_type)] = None
    """What names a registered metric."""


class BasicVal(AnyVal):
    """``val``."""

    pbar: Switch = False
    """Progress bar."""
    suffix: Annotated[str | None, _PART] = None
    """Ending of the names of restored images in a test."""
    metrics: dict[str, Any] | None = None
    """Name: {type, arguments, better: higher or lower}."""


class WandbOptions(Options):
    """``logger.wandb``: Weights & Biases."""

    model_config = ConfigDict(extra='allow')  # BasicSR reads two of its keys

    project: str | None = None
    """Name of the project."""
    resume_id: str | None = None
    """Run to go on with."""


class BasicLogger(Options):
    """``logger``."""

    print_freq: Positive = 100
    """Steps between lines of the log."""
    save_checkpoint_freq: Positive = 5000
    """Steps between checkpoints."""
    use_tb_logger: Switch = False
    """Write TensorBoard files."""
    wandb: WandbOptions | None = None
    """Project and resume_id of Weights & Biases."""


class IoBackend(Options):
    """``io_backend``: other backends of BasicSR import code from a folder named in the file."""

    type: Literal['disk', 'lmdb']
    """Folder or LMDB."""


class AnyDataset(Options):
    """A data set as the loaders read it, whatever its class."""

    also = _words(
        'dataroot_gt dataroot_lq meta_info_file filename_tmpl gt_size use_hflip use_rot mean std '
        'meta_info color num_frame interval_list random_reverse test_mode val_partition padding '
        'flip_sequence use_duf_downsampling dataroot_flow (blur_)?kernel_(size|list|prob)2? '
        'blur_sigma2? beta[gp]_range2? (final_)?sinc_prob2? cache_data'
    )

    type: str
    """Registered data set."""
    name: Annotated[str, _FOLDER] = ''
    """Name in the log."""
    phase: Literal['train', 'val', 'test'] = 'train'
    """Set by BasicSR."""
    scale: Any = 1
    """Set by BasicSR from the top level."""
    io_backend: Annotated[Any, AfterValidator(_harmless)] = None
    """Of the class itself."""
    num_worker_per_gpu: count(ge=0, le=256) = 4
    """Loader processes per GPU, of a training."""
    batch_size_per_gpu: Positive | None = None
    """Batch size per GPU, of a training."""
    dataset_enlarge_ratio: Annotated[float, Field(ge=1)] = 1
    """Passes over the data per epoch."""
    use_shuffle: Switch = True
    """Of old files; training data are always shuffled."""
    prefetch_mode: Literal['cuda', 'cpu'] | None = None
    """How batches of a training are fetched ahead."""
    num_prefetch_queue: Positive = 1
    """Batches fetched ahead by prefetch_mode: cpu."""
    pin_memory: Switch = False
    """Page-locked memory, for GPUs."""
    persistent_workers: Switch = False
    """Keep the loader processes between epochs; of a training true unless set, but for data sets
    that a project may tell something between epochs."""
    on_error: Literal['raise', 'skip'] = 'raise'
    """What to do with unreadable images; skip takes the next one."""
    max_error_share: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of unreadable images that skip allows."""
    timeout: Annotated[float, Field(ge=0)] = 300
    """Seconds after which an image counts as unreadable; 0: never."""

    @field_validator('on_error')
    @classmethod
    def _measures_all(cls, policy: str, info: ValidationInfo) -> str:
        if policy == 'skip' and info.data.get('phase') in ('val', 'test'):
            raise ValueError('a validation measures every image: skip is for training.')
        return policy


class LoaderOptions(AnyDataset):
    """The same of a class that reads its files as BasicSR's do."""

    io_backend: IoBackend = Field({'type': 'disk'}, validate_default=True)
    """{type: disk} or {type: lmdb}."""


class BasicDataset(LoaderOptions):
    """A data set as BasicSR's data sets of pairs read it."""

    dataroot_gt: str | None = None
    """Folder or LMDB of clean images."""
    dataroot_lq: str | None = None
    """Folder or LMDB of degraded images."""
    meta_info_file: str | None = None
    """List of the images to use."""
    filename_tmpl: str = '{}'
    """Name of the degraded image."""
    gt_size: count(ge=1, le=4096) | None = None
    """Side of the training patches."""
    use_hflip: Switch = False
    """Random mirroring."""
    use_rot: Switch = False
    """Random turns by 90 degrees."""
    mean: Annotated[list[float], Strict(False)] | float | None = None
    """Subtracted from the images, one per channel or for all."""
    std: Annotated[list[float], Strict(False)] | float | None = None
    """Divides the images, one per channel or for all."""


class AnyMetric(Options):
    """What ``val.metrics`` may say about every metric."""

    better: Literal['higher', 'lower'] = 'higher'
    """Which values are better, for net_g_best_METRIC.pth and the verdicts of reports. Write lower
    for calculate_niqe, calculate_lpips and many of pyiqa: it is not guessed from the name."""


class MetricOptions(AnyMetric):
    """Arguments of BasicSR's metrics, which have no annotations and take any key."""

    crop_border: count(ge=0) = 0
    """Pixels left out at each border; these three metrics demand it."""
    input_order: Literal['HWC'] = 'HWC'
    """What validation gives."""
    test_y_channel: Switch = False
    """Compare the luminance only."""


class ScheduleOptions(Options):
    """Arguments of BasicSR's schedules that are taken as anything, and then without effect."""

    milestones: Tuple[float]
    """Iterations at which the learning rate changes; those of a text are its letters."""


SECTIONS: dict[str, type[Options]] = {
    '': BasicTop,
    'path': BasicPath,
    'train': BasicTrain,
    'val': BasicVal,
    'logger': BasicLogger,
}
ANY_SECTIONS = {**SECTIONS, '': AnyTop, 'path': AnyPath, 'train': AnyTrain, 'val': AnyVal}
