"""Training, validation and checkpoints of a restoration network under BasicSR's trainer."""

import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from unfoldldm_basicsr.common.errors import on_rank_0
from unfoldldm_basicsr.ops.ss2d import set_scan_backend
from unfoldldm_basicsr.options.run import typed
from unfoldldm_basicsr.training import optimisation
from unfoldldm_basicsr.training.batches import Batch, prepare, to_device
from unfoldldm_basicsr.training.checkpointer import Checkpointer, set_rng_state
from unfoldldm_basicsr.training.evaluation import Evaluator
from unfoldldm_basicsr.training.interruption import stop_request
from unfoldldm_basicsr.training.memory import keep_freed_memory
from unfoldldm_basicsr.training.networks import Restored, TrainedNetwork, restore_image
from unfoldldm_basicsr.training.options import RULES, SECTIONS
from unfoldldm_basicsr.training.progress import progress
from unfoldldm_basicsr.training.resume import run_options
from unfoldldm_basicsr.training.schedules import LearningRate
from unfoldldm_basicsr.training.step import Losses, TrainingStep, memory_advice, peak_memory
from unfoldldm_basicsr.training.validation_report import ImageResult, averages, validation_sets
from unfoldldm_basicsr.weights.checkpoint import ARCH_KEY, MAY_LACK, network_meta
from unfoldldm_basicsr.weights.loading import load_weights


@MODEL_REGISTRY.register()
class RestorationModel(SRModel):
    """Trains any restoration network; the base of the other models and used as is by the baselines.

    Subclasses say what differs: losses, arguments of the network, phases. The rest (optimiser
    groups, warm-up, accumulation, clipping, averaging, validation, files) is common.

    Attributes:
        sections: declarations of the sections of an option file.
        rules: what must fit together in them; each takes the typed run and gives problems.
        network_inputs: what a subclass's :meth:`network_arguments` gives.
        run: typed options.
    """

    sections = SECTIONS
    rules = RULES
    network_inputs: tuple[str, ...] = ()
    one_gpu_per_process = True

    def __init__(self, opt: dict[str, Any]):
        BaseModel.__init__(self, opt)
        for key, value in (('dist', False), ('rank', 0), ('world_size', 1), ('val', None)):
            opt.setdefault(key, value)
        self.run = typed(type(self), opt)
        scan = self.run.top.scan_backend
        if scan is not None:  # without the key, what was chosen before stays
            set_scan_backend(None if scan == 'auto' else scan)
        if self.is_train and self.device.type == 'cpu':
            keep_freed_memory()
        self.seed = self.run.top.manual_seed or 0
        self.current_iter = 0
        net = build_network(opt['network_g'])
        self.groups = self.trained_groups({'network_g': net})
        self.load_initial_weights(net)
        count = sum(parameter.numel() for parameter in net.parameters())
        get_root_logger().info(f'Network: {type(net).__name__}, with parameters: {count:,d}')
        self.network = self.trained_network(net)
        self.evaluator = self.build_evaluator()
        if self.is_train:
            self.init_training_settings()

    @classmethod
    def trained_groups(cls, networks: Mapping[str, nn.Module]) -> optimisation.Groups:
        """Named parameter groups that a model of these bare ``network_*`` trains."""
        return optimisation.parameter_groups(networks['network_g'])

    # ---- network ------------------------------------------------------------------------------

    @property
    def net_g(self) -> nn.Module:
        return self.network.net

    @property
    def net_g_ema(self) -> nn.Module | None:
        return self.network.average

    @property
    def networks(self) -> dict[str, TrainedNetwork]:
        """All networks of the run by the names of their weight files."""
        return {'net_g': self.network}

    def trained_network(self, bare: nn.Module) -> TrainedNetwork:
        """Subclasses freeze parameters before."""
        return TrainedNetwork(bare, self.device, self.run, trained=self.is_train)

    def load_initial_weights(self, net: nn.Module) -> None:
        """Loads ``path.pretrain_network_g`` into the bare network, before it is wrapped.

        Without ``param_key_g`` a training takes ``params`` and a test ``params_ema``, each only
        where the file has them.
        """
        path, training = self.run.path, self.is_train
        file, key, strict = path.pretrain_network_g, path.param_key_g, path.strict_load_g
        if file:
            kind = key or ('params' if training else None)
            how = {'fallback': key in MAY_LACK, 'strict': strict, 'allow_missing': training}
            load_weights(net, file, kind, **how, arguments=self.run.network_sections['network_g'])

    # ---- training -----------------------------------------------------------------------------

    def init_training_settings(self) -> None:
        train = self.run.train
        if train.ema_decay:
            self.start_averages()
        self.init_losses()
        self.optimizer_g = optimisation.build_optimizer(
            self.groups, train.optim_g, decay_all=train.decay_all
        )
        self.optimizers = [self.optimizer_g]
        self.learning_rate = LearningRate(self.optimizer_g, self.opt['train'])
        self.schedulers = [self.learning_rate]
        limit = train.grad_clip_norm or self.default_grad_clip_norm()
        clip = optimisation.GradientClipper(self.groups, limit if train.use_grad_clip else None)
        self.step = TrainingStep(self.run, self.network.bare, self.optimizer_g, clip)
        self.checkpointer = Checkpointer(self.run, self.weight_files, self.training_state)
        self.logged = 0, 0.0  # iteration and time of the last line of the log
        stop_request.install()

    def start_averages(self) -> None:
        """Averages from here on, from the averaged weights of a file where there is one."""
        self.network.start_average()
        file, strict = self.run.path.pretrain_network_g, self.run.path.strict_load_g
        if file:
            load_weights(self.network.average, file, strict=strict)

    def init_losses(self) -> None:
        self.cri_pix = self.build_optional_loss(self.run.train.pixel_opt)
        self.cri_perceptual = self.build_optional_loss(self.run.train.perceptual_opt)

    def build_optional_loss(self, section: Mapping[str, Any] | None) -> nn.Module | None:
        return build_loss(dict(section)).to(self.device) if section else None

    def default_grad_clip_norm(self) -> float | dict[str, float]:
        """Limit of the gradient norm when ``use_grad_clip`` comes without ``grad_clip_norm``."""
        return 0.01

    def update_learning_rate(self, current_iter: int, warmup_iter: int | None = -1) -> None:
        """The warm-up is that of the option file, or of the state that the run goes on from."""
        self.current_iter = current_iter
        if current_iter > 1:
            self.learning_rate.step()

    def get_current_learning_rate(self) -> list[float]:
        """Learning rate of each named group that is trained."""
        return list({g['group']: g['lr'] for g in self.optimizer_g.param_groups}.values())

    def feed_data(self, data: Batch) -> None:
        """Takes a batch to the device: ``lq``, usually ``gt``, (B,c,H,W) in [0, 1], and others."""
        self.batch = to_device(data, self.device)
        if self.is_train:
            place = self.seed, self.current_iter, self.opt['rank']
            self.batch = prepare(self.batch, self.run.train, *place)

    def network_arguments(self, batch: Batch) -> dict[str, Any]:
        """What the network's forward pass needs besides ``lq``, in training and evaluation."""
        return {}

    def compute_losses(self, batch: Batch, current_iter: int) -> tuple[Losses, Losses]:
        """Runs the network on a batch or a slice of one.

        Returns:
            Losses (names starting ``l_``; their sum is minimised; the same names on every rank and
            in every iteration) and figures that are only logged.
        """
        with self.autocast():
            outputs = self.net_g(batch['lq'], **self.network_arguments(batch))
        # of several, NAFNet's trainer compares all and takes the last for the result
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        losses, output, gt = {}, outputs[-1].float(), batch['gt']
        if self.cri_pix is not None:
            losses['l_pix'] = sum(self.cri_pix(output.float(), gt) for output in outputs)
        if self.cri_perceptual is not None:
            both = zip(('l_percep', 'l_style'), self.cri_perceptual(output, gt), strict=True)
            losses |= {name: value for name, value in both if value is not None}
        return losses, {}

    def autocast(self) -> AbstractContextManager:
        """bf16 autocast around the network where ``train.amp`` asks for it."""
        enabled = self.run.train.amp == 'bf16'
        return torch.autocast(self.device.type, torch.bfloat16) if enabled else nullcontext()

    def optimize_parameters(self, current_iter: int) -> None:
        """One step on the batch of :meth:`feed_data`; skipped when a value is not finite.

        Raises:
            RunFailure: too many skipped steps in a row.
            SystemExit: a signal asked to stop; the run has been saved.
        """
        nets = [network.net for network in self.networks.values() if network.trained]
        self.log_dict, applied, stop = self.step(
            self.batch, current_iter, self.compute_losses, nets
        )
        if applied and self.run.train.ema_decay:
            self.model_ema(self.run.train.ema_decay)
        if stop:
            self.checkpointer.save_and_stop(current_iter)

    def model_ema(self, decay: float = 0.999) -> None:
        for network in self.networks.values():
            network.update_average(decay)

    def get_current_log(self) -> OrderedDict[str, float]:
        """Losses, norms, speed and peak memory; for TensorBoard also the learning rates."""
        log, (last, then), now = OrderedDict(self.log_dict), self.logged, time.monotonic()
        self.logged = self.current_iter, now
        if 0 < last < self.current_iter:
            log['it_per_s'] = (self.current_iter - last) / (now - then)
        log |= peak_memory(self.device)
        if self.run.logger.use_tb_logger:
            log |= {f'lr_{g["group"]}': g['lr'] for g in self.optimizer_g.param_groups}
        return log

    # ---- evaluation ---------------------------------------------------------------------------

    def build_evaluator(self, **settings: Any) -> Evaluator:
        extras = self.validation_extras
        return Evaluator(self.opt, self.device, self.restore, extras=extras, **settings)

    def validation_extras(self, dataset: Dataset, index: int, batch: Batch) -> Batch:
        """Entries that the batch of a validation item gets beside those of its data set."""
        return {}

    @torch.no_grad()
    def restore(self, batch: Batch) -> Restored:
        """Restores ``batch['lq']`` in fp32 with the averaged weights where there are any."""
        advice = 'Set val.tile (for example 512) to restore large images in parts.'
        with self.network.evaluating() as net, memory_advice(advice):
            return self.restore_with(net, batch)

    def restore_with(self, net: nn.Module, batch: Batch) -> Restored:
        return restore_image(net, batch['lq'], self.network_arguments(batch), self.run.val)

    def test(self) -> None:
        """As BasicSR's models; validation itself goes through :meth:`restore`."""
        self.output = self.restore(self.batch).output

    def get_current_visuals(self) -> OrderedDict[str, Tensor]:
        images = {'lq': self.batch['lq'], 'result': self.output, 'gt': self.batch.get('gt')}
        return OrderedDict((k, v.detach().cpu()) for k, v in images.items() if v is not None)

    @property
    def best_metric_results(self) -> dict[str, Any]:
        return self.evaluator.best

    def dist_validation(
        self, dataloader: DataLoader, current_iter: int | str, tb_logger: Any, save_img: bool
    ) -> None:
        if self.is_train and current_iter > self.run.train.total_iter:  # BasicSR, at the end
            start = progress.resumed.state['iter'] if progress.resumed else 0
            current_iter = max(self.run.train.total_iter, start)
            if current_iter % self.run.val.val_freq == 0:  # validated in the last step
                return
        for network in self.networks.values():
            network.share_statistics()
        results = self.evaluator.evaluate(dataloader, str(current_iter), save_img)
        if len(results) < len(dataloader.dataset):  # a signal asks a rank to stop
            self.checkpointer.save_and_stop(current_iter)  # resuming makes up for this validation
        name, best = dataloader.dataset.opt['name'], []
        self.metric_results = averages(results)
        if self.is_train:
            best = self.evaluator.update_best(name, self.metric_results, current_iter)
        on_rank_0(self.opt, lambda: self.report(name, results, current_iter, tb_logger))
        if self.is_train:
            several = len(validation_sets(self.opt)) > 1
            best = best if self.run.logger.keep_best else []
            labels = [f'{name}_{metric}' if several else metric for metric in best]
            self.checkpointer.note_validation(name, current_iter, self.evaluator.best, labels)

    nondist_validation = dist_validation

    def report(
        self, dataset: str, results: list[ImageResult], current_iter: int | str, tb_logger: Any
    ) -> None:
        self.evaluator.report(dataset, results, current_iter, tb_logger)

    # ---- checkpoints --------------------------------------------------------------------------

    def save(self, epoch: int, current_iter: int) -> None:
        self.checkpointer.save(epoch, current_iter)

    def weight_files(self) -> dict[str, dict[str, Any]]:
        """Content of the weight files ``net_*``, in BasicSR's format."""
        files = {}
        for name, network in self.networks.items():
            meta = network_meta(self.network_options(name.replace('net_', 'network_')))
            files[name] = network.states() | {ARCH_KEY: meta}
        files['net_g'] |= self.checkpoint_extras()
        return files

    def network_options(self, key: str) -> Mapping[str, Any]:
        """Type and arguments of ``network_g`` and the like, as the weight files tell them."""
        return self.opt[key]

    def checkpoint_extras(self) -> dict[str, Any]:
        """Further entries of ``net_g_*.pth`` beside the weights: plain values and tensors."""
        return {}

    def training_state(self) -> dict[str, Any]:
        """Everything but weights and generators that the run needs to go on with the same bits."""
        return {
            'optimizers': [self.optimizer_g.state_dict()],
            'schedulers': [self.learning_rate.state_dict()],
            'best_metric_results': self.best_metric_results,
            'nonfinite': dict(self.step.skipped),
            'train_options': self.learning_rate.settings,
            'options': run_options(self.opt),
            'data': progress.data,
        }

    def resume_training(self, resume_state: Mapping[str, Any]) -> None:
        """Continues from a state; one written by plain BasicSR works too.

        A validation that the interruption cut off is made up for.

        Raises ResumeError: the state belongs to another network or optimiser.
        """
        self.learning_rate.resume(resume_state)
        self.evaluator.best = resume_state.get('best_metric_results', {})
        self.step.skipped |= resume_state.get('nonfinite', {})
        generators = resume_state.get('rng', [])
        if self.opt['rank'] < len(generators):
            set_rng_state(generators[self.opt['rank']])
        self.checkpointer.go_on(resume_state)
        manifest, iteration = resume_state.get('manifest'), resume_state['iter']
        if manifest is None or iteration % self.run.val.val_freq:
            return
        for loader in progress.val_loaders:
            if loader.dataset.opt['name'] not in manifest.get('validated', []):
                self.validation(loader, iteration, None, self.run.val.save_img)
