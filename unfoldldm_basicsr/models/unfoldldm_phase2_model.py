"""UnfoldLDM, Phase II: the diffusion learns to generate the priors that PI takes from the truth.

    II-a (iterations 1..prior_warmup_iter)   L = L_diff; only PI' and f_theta are trained, the rest
                                             runs without gradient, guided by the target prior
    II-b                                     L = L_rec + lambda_isda L_ISDA + L_diff, guided by the
                                             generated prior

PI is the frozen teacher in both. The network is always called through ``forward``, so that under
DistributedDataParallel the gradients of both sub-phases are averaged.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn
from torch.utils.data import Dataset

from unfoldldm_basicsr.common.declaration import Problem, Problems, count
from unfoldldm_basicsr.common.sections import BasicPath
from unfoldldm_basicsr.models import unfoldldm_phase1_model as phase1
from unfoldldm_basicsr.options.run import Run
from unfoldldm_basicsr.training.batches import Batch
from unfoldldm_basicsr.training.networks import Restored, TrainedNetwork
from unfoldldm_basicsr.training.options import SECTIONS, ValOptions
from unfoldldm_basicsr.training.step import Losses
from unfoldldm_basicsr.weights.loading import load_phase1_weights


class Phase2Train(phase1.UnfoldingTrain):
    """``train``."""

    diffusion_opt: dict[str, Any]
    """LatentDiffusionLoss and its arguments."""
    prior_warmup_iter: count(ge=0) = 0
    """Iterations of II-a; 0: start with II-b."""


class Phase2Path(BasicPath):
    """``path``."""

    pretrain_network_phase1: str | None = None
    """Needed to train Phase II: experiments/NAME_phase1/models/net_g_latest.pth of Phase I."""


class Phase2Val(ValOptions):
    """``val``."""

    prior_source: Literal['generated', 'oracle', 'null', 'shuffled'] | None = None
    """Prior that guides the restoration, for ablations: shuffled is another photo's, oracle that of
    the truth (an upper bound, not a result)."""


# ---- what must fit together ---------------------------------------------------------------------


def is_phase2(run: Run) -> Problems:
    """Phase II of the network, and what the priors of ablations rule out."""
    phase, source = run.network_sections['network_g'].get('phase', 2), phase1.validation_prior(run)
    if not phase1.uses_ldm(run):
        message = 'without the diffusion there is no Phase II; train use_ldm: false with '
        yield Problem('network_g.use_ldm', f'{message}UnfoldLDMPhase1Model.')
    if run.val.tile and source in ('oracle', 'shuffled'):
        yield Problem('val.tile', f'prior_source: {source} needs whole images.')
    if phase == 'inference' and source == 'oracle':
        yield Problem('val.prior_source', 'oracle needs PI, which phase: inference leaves out.')
    known = (2, 'joint') if run.is_train else (2, 'joint', 'inference')
    if phase not in known:
        message = f'must be one of {", ".join(map(str, known))}, got {phase!r}.'
        yield Problem('network_g.phase', message)


FIRST_PHASE1 = (
    'Phase II starts from the weights of Phase I. First run python -m unfoldldm_basicsr.train -opt '
    'YOUR_PHASE1.yml; its result is experiments/NAME/models/net_g_latest.pth.'
)


def starts_from_phase1(run: Run) -> Problems:
    """Where the trained parts come from."""
    if not run.is_train:
        return
    train, path, place = run.train, run.path, 'path.pretrain_network_phase1'
    yield from phase1.loss_is(run, 'diffusion_opt', 'LatentDiffusionLoss')
    if train.prior_warmup_iter >= train.total_iter:
        message = f'must lie in [0, total_iter), got {train.prior_warmup_iter}.'
        yield Problem('train.prior_warmup_iter', message)
    if run.network_sections['network_g'].get('phase', 2) == 'joint':
        if path.pretrain_network_phase1:
            yield Problem(place, 'phase: joint starts from scratch.')
        if train.prior_warmup_iter:
            message = 'phase: joint has no trained PI to warm up against.'
            yield Problem('train.prior_warmup_iter', message)
    elif not path.pretrain_network_phase1 and not path.pretrain_network_g:
        yield Problem(place, f'is missing. {FIRST_PHASE1}')
    elif path.pretrain_network_phase1 and path.pretrain_network_g:
        message = 'is not read, the weights of path.pretrain_network_g are: remove one of them.'
        yield Problem(place, message, 'warning')
    elif path.pretrain_network_phase1 and not Path(path.pretrain_network_phase1).is_file():
        yield Problem(place, f'{path.pretrain_network_phase1}: no such file. {FIRST_PHASE1}')


@MODEL_REGISTRY.register()
class UnfoldLDMPhase2Model(phase1.UnfoldLDMPhase1Model):
    """Trains ``UnfoldLDM(phase=2)`` from the weights of Phase I (``path.pretrain_network_phase1``).

    ``network_g.phase: joint`` trains everything from scratch instead (ablation).
    ``val.prior_source`` replaces the generated prior for ablations; the metrics then carry its
    name.
    """

    sections = {**SECTIONS, 'train': Phase2Train, 'path': Phase2Path, 'val': Phase2Val}
    rules = (*phase1.UNFOLDING_RULES, is_phase2, starts_from_phase1)
    default_prior_source = 'generated'

    def load_initial_weights(self, net: nn.Module) -> None:
        super().load_initial_weights(net)
        path = self.run.path
        if self.is_train and path.pretrain_network_phase1 and not path.pretrain_network_g:
            load_phase1_weights(net, path.pretrain_network_phase1, self.opt['network_g'])

    def trained_network(self, bare: nn.Module) -> TrainedNetwork:
        self._warm_up(self.is_train and self.run.train.prior_warmup_iter > 0)
        if self.warming_up:
            get_root_logger().info(
                f"II-a for {self.run.train.prior_warmup_iter} iterations: PI' and f_theta are "
                'trained by l_diff alone; the other losses are not computed and logged as 0.'
            )
        return super().trained_network(bare)

    def _warm_up(self, warming_up: bool) -> None:
        # Before wrapping: DistributedDataParallel expects a gradient for all that require one.
        self.warming_up = warming_up
        for _, parameter in self.groups['restoration']:
            parameter.requires_grad_(not warming_up)

    def default_grad_clip_norm(self) -> dict[str, float]:
        # L_diff starts near 0.8 and L_rec near 0.02: one norm for both would stop the restoration.
        return {'restoration': 0.01, 'prior': 1.0}

    def init_losses(self) -> None:
        super().init_losses()
        self.cri_diff = self.build_optional_loss(self.run.train.diffusion_opt)

    def update_learning_rate(self, current_iter: int, warmup_iter: int | None = -1) -> None:
        super().update_learning_rate(current_iter, warmup_iter)
        # The iteration alone decides: of resumed runs, and of measured steps, which go back.
        warming_up = max(1, current_iter) <= self.run.train.prior_warmup_iter
        if warming_up != self.warming_up:
            part = 'II-a' if warming_up else 'II-b, all but PI is trained,'
            get_root_logger().info(f'{part} from iteration {current_iter}.')
            self._warm_up(warming_up)
            self.network.wrap()

    def compute_losses(self, batch: Batch, current_iter: int) -> tuple[Losses, Losses]:
        mode = 'warmup' if self.warming_up else 'restore'
        return super().compute_losses(batch, current_iter, mode=mode)

    def trace_losses(self, trace, gt: Tensor) -> Losses:
        if self.warming_up:
            names = ['l_pix', 'l_isda', 'l_stage']
            present = [True, self.cri_isda is not None, self.run.train.stage_loss_weight > 0]
            losses = {n: gt.new_zeros(()) for n, p in zip(names, present, strict=True) if p}
        else:
            losses = super().trace_losses(trace, gt)
        priors = [stage.generated.float() for stage in trace.stages]
        losses['l_diff'] = self.cri_diff(priors, trace.target_prior)
        return losses

    def validation_extras(self, dataset: Dataset, index: int, batch: Batch) -> Batch:
        """For the shuffled prior: the next image of the set, cut or padded to this one's size."""
        if self.prior_source != 'shuffled':
            return {}
        image_of, other = getattr(dataset, 'first_draw_of', int), (index + 1) % len(dataset)
        if image_of(index) == image_of(other):
            raise ValueError('val.prior_source: shuffled needs at least two validation images.')
        return {'neighbour': fit_to(dataset[other]['lq'][None], *batch['lq'].shape[-2:])}

    def restore_with(self, net: nn.Module, batch: Batch) -> Restored:
        if self.prior_source != 'shuffled':
            return super().restore_with(net, batch)
        # The network guides each item by the prior of its neighbour in the batch.
        pair = torch.cat([batch['lq'], batch['neighbour']])
        restored = super().restore_with(net, batch | {'lq': pair})
        return restored._replace(output=restored.output[:1])


def fit_to(image: Tensor, height: int, width: int) -> Tensor:
    """Crops an image (B,c,h,w) on the CPU to a size, going on by reflection where it is smaller."""
    rows, columns = max(0, height - image.shape[2]), max(0, width - image.shape[3])
    edges = [(0, 0), (0, 0), (0, rows), (0, columns)]
    padded = torch.from_numpy(np.pad(image.numpy(), edges, mode='reflect'))  # as often as needed
    return padded[..., :height, :width]
