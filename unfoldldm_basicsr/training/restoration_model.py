"""Training, validation and checkpoints of a restoration network under BasicSR's trainer."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unfoldldm_basicsr.common.registration import register
from unfoldldm_basicsr.ops.ss2d import set_scan_backend
from unfoldldm_basicsr.options.parse import start
from unfoldldm_basicsr.training.checkpoint_mixin import CheckpointMixin
from unfoldldm_basicsr.training.ema import update_ema
from unfoldldm_basicsr.training.evaluation_mixin import EvaluationMixin
from unfoldldm_basicsr.training.freed_memory import keep_freed_memory
from unfoldldm_basicsr.training.interruption import stop_request
from unfoldldm_basicsr.training.lr_schedulers import advance, build_scheduler
from unfoldldm_basicsr.training.mixing import build_mixing
from unfoldldm_basicsr.training.model_options import BASE_OPTION_KEYS, check_base_options
from unfoldldm_basicsr.training.nonfinite import NonFiniteGuard, RunningStatistics
from unfoldldm_basicsr.training.optimisation import (
    GradientClipper,
    Groups,
    ProgressiveBatches,
    build_optimizer,
    parameter_groups,
    slices_of,
)
from unfoldldm_basicsr.training.resources import peak_memory, training_memory
from unfoldldm_basicsr.training.rng import step_rng
from unfoldldm_basicsr.weights.loading import load_weights

Losses = dict[str, Tensor]


@register(MODEL_REGISTRY)
class RestorationModel(CheckpointMixin, EvaluationMixin, SRModel):
    """Trains any restoration network; the base of the other models and used as is by the baselines.

    Subclasses override :meth:`compute_losses`, :meth:`network_arguments`,
    :meth:`inference_arguments` and, where the way a network is evaluated makes its scores no plain
    result, ``metric_prefix``. The rest (optimiser
    groups, warm-up, accumulation, clipping, averaging, guards, validation, checkpoints) is common.
    """

    option_keys = BASE_OPTION_KEYS
    network_inputs: tuple[str, ...] = ()  # what network_arguments gives to the forward pass
    one_gpu_per_process = True

    def __init__(self, opt: dict[str, Any]):
        BaseModel.__init__(self, opt)
        for key, value in (('dist', False), ('rank', 0), ('world_size', 1), ('val', None)):
            opt.setdefault(key, value)
        self._check_device()
        self._choose_scan_backend()
        if self.is_train and self.device.type == 'cpu':
            keep_freed_memory()
        self.val_opt = opt['val'] or {}
        self.train_opt = opt.get('train') or {}
        self.seed = opt.get('manual_seed') or 0
        self.current_iter = 0
        self.validating = False
        self.trace = None
        net = build_network(opt['network_g'])
        self.groups = self.trained_groups({'network_g': net})
        self.load_initial_weights(net)
        self.net_g = self.model_to_device(net)
        self.print_network(self.net_g)
        self.init_companions()
        if self.is_train:
            self.init_training_settings()

    @classmethod
    def check_options(cls, opt: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Problems of an option dict as (key path, message), found before anything is built."""
        return check_base_options(opt, cls.network_inputs)

    @classmethod
    def trained_groups(cls, networks: Mapping[str, nn.Module]) -> Groups:
        """Named parameter groups that a model of these bare ``network_*`` trains."""
        return parameter_groups(networks['network_g'])

    # ---- network ------------------------------------------------------------------------------

    def _check_device(self) -> None:
        if self.opt['num_gpu'] != 0 and not torch.cuda.is_available():
            raise ValueError(
                f'num_gpu is {self.opt["num_gpu"]} but torch sees no CUDA device: set num_gpu: 0 '
                'or num_gpu: auto to run on the CPU.'
            )
        if self.opt['num_gpu'] > 1 and not self.opt.get('dist'):
            raise ValueError(
                f'num_gpu is {self.opt["num_gpu"]} but one process was started. Use torchrun '
                f'--nproc_per_node={self.opt["num_gpu"]} -m unfoldldm_basicsr.train -opt FILE '
                '--launcher pytorch, or set num_gpu: 1.'
            )
        idle = start().idle_gpus
        if idle and not self.opt.get('dist'):
            entry = 'train' if self.is_train else 'test'
            get_root_logger().info(
                f'num_gpu: auto: one process uses one of the {idle + 1} GPUs. For all of them: '
                f'torchrun --nproc_per_node={idle + 1} -m unfoldldm_basicsr.{entry} -opt FILE '
                '--launcher pytorch'
            )

    def _choose_scan_backend(self) -> None:
        """Raises ValueError, with the reason, for a backend that is not usable here."""
        name = self.opt.get('scan_backend')
        if name is not None:  # without the key, what was chosen before stays
            set_scan_backend(None if name == 'auto' else name)

    def init_companions(self) -> None:
        """Builds networks beside ``net_g``; what they train goes to ``self.groups``."""

    def load_initial_weights(self, net: nn.Module) -> None:
        """Loads ``path.pretrain_network_g`` into the bare network, before it is wrapped.

        Raises:
            ValueError: a test without weights, which would score a random network.
        """
        path = self.opt['path']
        if path.get('pretrain_network_g'):
            strict = path.get('strict_load_g', True)
            self.load_network(net, path['pretrain_network_g'], strict, path.get('param_key_g'))
        elif not self.is_train:
            raise ValueError(
                'path.pretrain_network_g is empty, so the test would score a randomly initialised '
                'network. Name the weights, for example experiments/NAME/models/net_g_latest.pth.'
            )

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = None
    ) -> None:
        """Loads weights; see :func:`.weights.load_weights` for what is refused.

        Without ``param_key`` a training takes ``params`` and a test ``params_ema``, each only where
        the file has them.
        """
        load_weights(
            self.get_bare_model(net),
            load_path,
            param_key or ('params' if self.is_train else None),
            fallback=not param_key,
            strict=strict,
            allow_missing=self.is_train,
        )

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Moves a bare network to the device, and wraps it for several processes and for compile.

        Parameters that need no gradient in this part of the training must be frozen before.
        """
        net = net.to(self.device)
        if self.train_opt.get('use_channels_last'):
            net = net.to(memory_format=torch.channels_last)
        if self.opt['dist'] and self.is_train:
            devices = [torch.cuda.current_device()] if self.device.type == 'cuda' else None
            net = DistributedDataParallel(net, device_ids=devices)
        if self.is_train and self.train_opt.get('use_compile'):
            net = torch.compile(net)
        return net

    def get_bare_model(self, net: nn.Module) -> nn.Module:
        """The network without ``torch.compile`` and DistributedDataParallel around it."""
        while True:
            if hasattr(net, '_orig_mod'):
                net = net._orig_mod
            elif isinstance(net, DistributedDataParallel):
                net = net.module
            else:
                return net

    # ---- training -----------------------------------------------------------------------------

    def init_training_settings(self) -> None:
        opt = self.train_opt
        self.net_g.train()
        self.ema_decay = opt.get('ema_decay') or 0
        if self.ema_decay > 0:
            self.net_g_ema = self._build_ema()
        self.init_losses()
        self.setup_optimizers()
        self.setup_schedulers()
        self.accum_iter = opt.get('accum_iter') or 1
        self.guard = NonFiniteGuard(opt.get('max_nonfinite') or 10)
        self.statistics = RunningStatistics(self.get_bare_model(self.net_g))
        self.progressive = None
        if opt.get('progressive'):
            self.progressive = ProgressiveBatches(
                **opt['progressive'], seed=self.seed, rank=self.opt['rank']
            )
        self.mixing = build_mixing(opt.get('mixing_augs'), self.seed, self.opt['rank'])
        self._rate_mark = (0, time.monotonic())
        self._remove_leftovers()
        stop_request.install()

    def _build_ema(self) -> nn.Module:
        ema = deepcopy(self.get_bare_model(self.net_g)).eval().requires_grad_(False)
        path = self.opt['path'].get('pretrain_network_g')
        if path:
            strict = self.opt['path'].get('strict_load_g', True)
            load_weights(ema, path, None, strict=strict, allow_missing=True)
        return ema

    def init_losses(self) -> None:
        """Builds the losses of the option file: ``train.pixel_opt``, ``train.perceptual_opt``."""
        self.cri_pix = self.build_optional_loss('pixel_opt')
        self.cri_perceptual = self.build_optional_loss('perceptual_opt')
        if self.cri_pix is None and self.cri_perceptual is None:
            raise ValueError(
                'train: neither pixel_opt nor perceptual_opt is set; nothing to train.'
            )

    def build_optional_loss(self, key: str) -> nn.Module | None:
        """The loss of ``train.<key>``, or None where the option file has none."""
        return build_loss(self.train_opt[key]).to(self.device) if self.train_opt.get(key) else None

    def setup_optimizers(self) -> None:
        self.optimizer_g = build_optimizer(self.groups, self.train_opt['optim_g'])
        self.optimizers.append(self.optimizer_g)
        limit = None
        if self.train_opt.get('use_grad_clip'):
            limit = self.train_opt.get('grad_clip_norm', self.default_grad_clip_norm())
        self.clip_gradients = GradientClipper(self.groups, limit)

    def default_grad_clip_norm(self) -> float | dict[str, float]:
        """Limit of the gradient norm when ``use_grad_clip`` comes without ``grad_clip_norm``."""
        return 0.01

    def setup_schedulers(self) -> None:
        total = int(self.train_opt['total_iter'])
        self.schedulers = [
            build_scheduler(optimizer, self.train_opt['scheduler'], total)
            for optimizer in self.optimizers
        ]

    def update_learning_rate(self, current_iter: int, warmup_iter: int | None = -1) -> None:
        """First call of every iteration of BasicSR's trainer."""
        self.current_iter = current_iter
        if self.kept_warmup_iter is not None:
            warmup_iter = self.kept_warmup_iter
        for scheduler in self.schedulers:
            advance(scheduler, current_iter, warmup_iter)

    def get_current_learning_rate(self) -> list[float]:
        """Learning rate of each named group that is trained."""
        rates = OrderedDict((g['group'], g['lr']) for g in self.optimizer_g.param_groups)
        return list(rates.values())

    def feed_data(self, data: Mapping[str, Any]) -> None:
        """Takes a batch to the device; in training also cuts it to the progressive sizes.

        Args:
            data: ``lq`` and usually ``gt``, (B,c,H,W) in [0, 1]; other entries are kept beside.
        """
        batch = {
            key: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in data.items()
        }
        if self.is_train and not self.validating:
            if 'gt' not in batch:
                raise ValueError('datasets.train gives no gt; training needs pairs.')
            if batch['lq'].shape != batch['gt'].shape:
                raise ValueError(
                    f'lq {tuple(batch["lq"].shape)} and gt {tuple(batch["gt"].shape)} differ in '
                    'size; restoration needs equal sizes (scale: 1).'
                )
            if self.progressive is not None:
                batch = self.progressive(batch, self.current_iter)
            if self.mixing is not None:
                batch = self.mixing(batch, self.current_iter)
            if self.train_opt.get('use_channels_last'):
                for key in ('lq', 'gt'):
                    batch[key] = batch[key].contiguous(memory_format=torch.channels_last)
        self.batch = batch
        self.lq = batch['lq']
        self.__dict__.pop('gt', None)
        if 'gt' in batch:
            self.gt = batch['gt']

    def network_arguments(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the network's forward pass needs besides ``lq``, in training and evaluation."""
        return {}

    def compute_losses(self, batch: Mapping[str, Any], current_iter: int) -> tuple[Losses, Losses]:
        """Runs the network on a batch or a slice of one.

        Returns:
            Losses (names starting ``l_``; their sum is minimised; the same names on every rank and
            in every iteration) and figures that are only logged.
        """
        with self.autocast():
            output = self.net_g(batch['lq'], **self.network_arguments(batch))
        return self.image_losses(output.float(), batch['gt']), {}

    def image_losses(self, output: Tensor, gt: Tensor) -> Losses:
        """Losses of a restored batch (B,c,H,W) against the truth, in fp32."""
        losses = {}
        if self.cri_pix is not None:
            losses['l_pix'] = self.cri_pix(output, gt)
        if self.cri_perceptual is not None:
            values = self.cri_perceptual(output, gt)
            for name, value in zip(('l_percep', 'l_style'), values, strict=True):
                if value is not None:
                    losses[name] = value
        return losses

    def autocast(self) -> AbstractContextManager:
        """bf16 autocast around the network where ``train.amp`` asks for it."""
        if self.train_opt.get('amp') == 'bf16':
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def optimize_parameters(self, current_iter: int) -> None:
        """One step on the batch of :meth:`feed_data`; skipped when a value is not finite.

        Raises:
            NonFiniteTrainingError: too many skipped steps in a row.
            SystemExit: a signal asked to stop; the run has been saved.
        """
        self.optimizer_g.zero_grad(set_to_none=True)
        self.statistics.remember()
        with training_memory(self.opt), step_rng(self.seed, current_iter, self.opt['rank']):
            values = self._accumulate_gradients(current_iter)
        norms = {f'grad_norm_{name}': norm for name, norm in self.clip_gradients().items()}
        self.log_dict, stop = self._reduce(values | norms)
        bad = [name for name, value in self.log_dict.items() if not math.isfinite(value)]
        if self.guard.passes(bad):
            self.optimizer_g.step()
            if self.ema_decay > 0:
                self.model_ema(self.ema_decay)
        else:
            self.statistics.put_back()
            keep = self.opt['rank'] == 0 or not all(v.isfinite() for v in values.values())
            self.guard.report(current_iter, bad, self.batch, self.opt, keep_batch=keep)
            self.guard.stop_if_exhausted(current_iter, bad)
        if stop:
            self.save_and_stop(current_iter)

    def _accumulate_gradients(self, current_iter: int) -> dict[str, Tensor]:
        """Adds up the gradients of the batch's slices; returns their weighted losses."""
        totals: dict[str, Tensor] = {}
        for index, (batch, share) in enumerate(slices_of(self.batch, self.accum_iter), start=1):
            with self._gradient_sync(index == self.accum_iter):
                losses, figures = self.compute_losses(batch, current_iter)
                (sum(losses.values()) * share).backward()
            for name, value in (losses | figures).items():
                totals[name] = totals.get(name, 0) + value.detach().float() * share
        return totals

    def _gradient_sync(self, last: bool) -> AbstractContextManager:
        """DDP averages the gradients over the ranks in the backward pass of the last slice only."""
        return nullcontext() if last or not self.opt['dist'] else self.net_g.no_sync()

    def _reduce(self, values: dict[str, Tensor]) -> tuple[OrderedDict[str, float], bool]:
        """Means over the ranks, and whether a signal asks any of them to stop.

        All ranks get the same answer, so that all skip or stop together. One wait for the device.
        """
        stop = torch.tensor(float(bool(stop_request.signum)))
        packed = torch.stack([v.detach().float().to(self.device) for v in (*values.values(), stop)])
        if self.opt['dist']:
            torch.distributed.all_reduce(packed)
            packed /= self.opt['world_size']
        *means, stop = packed.tolist()
        return OrderedDict(zip(values, means, strict=True)), stop > 0

    def model_ema(self, decay: float = 0.999) -> None:
        update_ema(self.net_g_ema, self.get_bare_model(self.net_g), decay)

    def get_current_log(self) -> OrderedDict[str, float]:
        """Losses and norms of the last iteration, with speed and peak memory since the last log.

        With TensorBoard also the learning rates (``lr_GROUP``), which BasicSR leaves out there.
        """
        (last_iter, last_time), now = self._rate_mark, time.monotonic()
        log = OrderedDict(self.log_dict)
        if last_iter and self.current_iter > last_iter:
            log['it_per_s'] = (self.current_iter - last_iter) / (now - last_time)
        self._rate_mark = (self.current_iter, now)
        log |= peak_memory(self.device)
        if (self.opt.get('logger') or {}).get('use_tb_logger'):
            log |= {f'lr_{g["group"]}': g['lr'] for g in self.optimizer_g.param_groups}
        return log
