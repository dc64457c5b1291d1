"""UnfoldLDM, Phase II: the diffusion learns to generate the priors that PI takes from the truth.

    II-a (iterations 1..prior_warmup_iter)   L = L_diff; only PI' and f_theta are trained, the rest
                                             runs without gradient, guided by the target prior
    II-b                                     L = L_rec + lambda_isda L_ISDA + L_diff, guided by the
                                             generated prior

PI is the frozen teacher in both. The network is always called through ``forward``, so that under
DistributedDataParallel the gradients of both sub-phases are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from unfoldldm_basicsr.common.registration import register
from unfoldldm_basicsr.common.suggest import did_you_mean
from unfoldldm_basicsr.models.unfoldldm_phase1_model import (
    UnfoldLDMPhase1Model,
    check_loss_type,
    check_unfolding_options,
    validation_prior,
)
from unfoldldm_basicsr.training.model_options import (
    OPTIONAL,
    Problems,
    is_training,
    is_whole,
    merged,
    section_of,
)
from unfoldldm_basicsr.training.restoration_model import Losses
from unfoldldm_basicsr.weights.loading import load_phase1_weights

NEW_IN_PHASE2 = ('condition_encoder', 'denoiser')
PRIOR_SOURCES = ('generated', 'oracle', 'null', 'shuffled')
PHASE1_COMMAND = 'python -m unfoldldm_basicsr.train -opt YOUR_PHASE1.yml'


@register(MODEL_REGISTRY)
class UnfoldLDMPhase2Model(UnfoldLDMPhase1Model):
    """Trains ``UnfoldLDM(phase=2)`` from the weights of Phase I (``path.pretrain_network_phase1``).

    ``network_g.phase: joint`` trains everything from scratch instead (ablation).
    ``val.prior_source`` replaces the generated prior for ablations; the metrics then carry its
    name.
    """

    option_keys = merged(
        UnfoldLDMPhase1Model.option_keys,
        {
            'train': {
                'diffusion_opt': ((dict,), 'LatentDiffusionLoss and its arguments'),
                'prior_warmup_iter': ((int,), 'iterations of II-a; 0: start with II-b'),
            },
            'path': {
                'pretrain_network_phase1': ((str, OPTIONAL), 'weights that Phase I wrote'),
            },
            'val': {'prior_source': ((str, OPTIONAL), ' | '.join(PRIOR_SOURCES))},
        },
    )

    default_prior_source = 'generated'
    new_modules = NEW_IN_PHASE2

    def __init__(self, opt: dict[str, Any]):
        self.prior_warmup_iter = (opt.get('train') or {}).get('prior_warmup_iter') or 0
        self.warming_up = opt['is_train'] and self.prior_warmup_iter > 0
        self.neighbour: dict[str, Tensor] = {}
        super().__init__(opt)
        if self.warming_up:
            get_root_logger().info(
                f"II-a for {self.prior_warmup_iter} iterations: PI' and f_theta are trained by "
                'l_diff alone; l_pix and l_isda are not computed and logged as 0.'
            )

    @classmethod
    def check_options(cls, opt: Mapping[str, Any]) -> Problems:
        problems = check_unfolding_options(opt, cls.network_inputs)
        network, val = section_of(opt, 'network_g'), section_of(opt, 'val')
        phase = network.get('phase', 2)
        if not network.get('use_ldm', True):
            problems.append(
                (
                    'network_g.use_ldm',
                    'without the diffusion there is no Phase II; train use_ldm: false with '
                    'UnfoldLDMPhase1Model.',
                )
            )
        source = validation_prior(opt, 'generated')
        if source not in PRIOR_SOURCES:
            problems.append(
                ('val.prior_source', f"'{source}' is unknown.{did_you_mean(source, PRIOR_SOURCES)}")
            )
        elif val.get('tile') and source in ('oracle', 'shuffled'):
            problems.append(('val.tile', f'prior_source: {source} needs whole images.'))
        if is_training(opt):
            problems += _check_training(opt, phase)
        elif phase not in (2, 'joint', 'inference'):
            problems.append(('network_g.phase', f'must be 2 or inference, got {phase!r}.'))
        return problems

    # ---- starting from Phase I ----------------------------------------------------------------

    def load_initial_weights(self, net: nn.Module) -> None:
        super().load_initial_weights(net)
        path = self.opt['path']
        if not self.is_train or path.get('pretrain_network_g'):
            return
        if path.get('pretrain_network_phase1'):
            load_phase1_weights(
                net, path['pretrain_network_phase1'], NEW_IN_PHASE2, self.opt['network_g']
            )
        elif self.opt['network_g'].get('phase', 2) != 'joint':
            raise ValueError(f'path.pretrain_network_phase1 is empty. {_first_phase1()}')

    def model_to_device(self, net: nn.Module) -> nn.Module:
        # Before wrapping: DistributedDataParallel expects a gradient for all that require one.
        if self.is_train:
            for _, parameter in self.groups['restoration']:
                parameter.requires_grad_(not self.warming_up)
        return super().model_to_device(net)

    def default_grad_clip_norm(self) -> dict[str, float]:
        # L_diff starts near 0.8 and L_rec near 0.02: one norm for both would stop the restoration.
        return {'restoration': 0.01, 'prior': 1.0}

    # ---- training -----------------------------------------------------------------------------

    def init_losses(self) -> None:
        super().init_losses()
        self.cri_diff = self.build_optional_loss('diffusion_opt')
        if self.cri_diff is None:
            raise ValueError(
                'train.diffusion_opt is missing: set it, for example type: LatentDiffusionLoss.'
            )

    def update_learning_rate(self, current_iter: int, warmup_iter: int | None = -1) -> None:
        super().update_learning_rate(current_iter, warmup_iter)
        # The iteration alone decides, so a resumed run is right on both sides of the switch.
        if self.warming_up and current_iter > self.prior_warmup_iter:
            self._start_joint_training(current_iter)

    def _start_joint_training(self, current_iter: int) -> None:
        """Unfreezes the restoration part and wraps the network anew, on all ranks."""
        get_root_logger().info(f'II-b from iteration {current_iter}: everything but PI is trained.')
        self.warming_up = False
        bare = self.get_bare_model(self.net_g)
        self.net_g = None  # the old wrapper takes its gradient hooks with it
        self.net_g = self.model_to_device(bare)
        self.net_g.train()

    def compute_losses(self, batch: Mapping[str, Any], current_iter: int) -> tuple[Losses, Losses]:
        lq, gt = batch['lq'], batch['gt']
        mode = 'warmup' if self.warming_up else 'restore'
        with self.autocast():
            trace = self.net_g(
                lq, gt, mode=mode, **self.network_arguments(batch), return_trace=True
            )
        if self.warming_up:
            names = ['l_pix', 'l_isda', 'l_stage']
            present = [True, self.cri_isda is not None, self.stage_loss_weight > 0]
            losses = {n: lq.new_zeros(()) for n, p in zip(names, present, strict=True) if p}
        else:
            losses = self.trace_losses(trace, gt)
        losses['l_diff'] = self.cri_diff(
            [stage.generated.float() for stage in trace.stages], trace.target_prior
        )
        return losses, self.trace_figures(trace, lq, current_iter)

    # ---- evaluation ---------------------------------------------------------------------------

    def prepare_item(self, dataloader, index: int, data: Mapping[str, Any]) -> None:
        """For the shuffled prior: the next image of the set, cut or padded to this one's size."""
        if self.prior_source != 'shuffled':
            return
        dataset = dataloader.dataset
        if len(dataset) < 2:
            raise ValueError('val.prior_source: shuffled needs at least two validation images.')
        other = dataloader.collate_fn([dataset[(index + 1) % len(dataset)]])
        other['lq'] = fit_to(other['lq'], *data['lq'].shape[-2:])
        self.neighbour = {
            key: value.to(self.device) for key, value in other.items() if isinstance(value, Tensor)
        }

    def inference_arguments(self) -> dict[str, Any]:
        if self.prior_source != 'oracle':
            return {'prior_source': self.prior_source}
        return super().inference_arguments()

    def _restore(self, net: nn.Module) -> Tensor:
        if self.prior_source != 'shuffled':
            return super()._restore(net)
        # The network guides each item by the prior of its neighbour in the batch.
        own, pair = self.batch, dict(self.batch)
        for key in ('lq', 'degradation'):
            if key in own:
                pair[key] = torch.cat([own[key], self.neighbour[key]])
        self.batch, self.lq = pair, pair['lq']
        output = super()._restore(net)[:1]
        self.batch, self.lq = own, own['lq']
        return output


def fit_to(image: Tensor, height: int, width: int) -> Tensor:
    """Crops an image (B,c,h,w) to a size, repeating it by reflection where it is smaller."""
    for axis, size in ((-2, height), (-1, width)):
        while image.shape[axis] < size:
            missing = min(size - image.shape[axis], image.shape[axis] - 1)
            if missing == 0:
                raise ValueError('an image one pixel wide cannot be reflected.')
            pad = (0, 0, 0, missing) if axis == -2 else (0, missing)
            image = F.pad(image, pad, mode='reflect')
    return image[..., :height, :width]


def _first_phase1() -> str:
    return (
        f'Phase II starts from the weights of Phase I: run {PHASE1_COMMAND} first and name its '
        'experiments/NAME/models/net_g_latest.pth.'
    )


def _check_training(opt: Mapping[str, Any], phase: object) -> Problems:
    problems: Problems = []
    train, path = section_of(opt, 'train'), section_of(opt, 'path')
    start, warmup = path.get('pretrain_network_phase1'), train.get('prior_warmup_iter', 0)
    if phase not in (2, 'joint'):
        problems.append(('network_g.phase', f'Phase II trains phase: 2 (or joint), got {phase!r}.'))
    if not train.get('diffusion_opt'):
        problems.append(('train.diffusion_opt', 'missing: type: LatentDiffusionLoss.'))
    problems += check_loss_type(train, 'diffusion_opt', 'LatentDiffusionLoss')
    total = train.get('total_iter')
    if not is_whole(warmup, 0) or (is_whole(total, 1) and warmup >= total):
        problems.append(
            ('train.prior_warmup_iter', f'must lie in [0, total_iter), got {warmup!r}.')
        )
    if phase == 'joint':
        if start:
            problems.append(('path.pretrain_network_phase1', 'phase: joint starts from scratch.'))
        if warmup:
            problems.append(
                ('train.prior_warmup_iter', 'phase: joint has no trained PI to warm up against.')
            )
    elif not start and not path.get('pretrain_network_g'):
        problems.append(('path.pretrain_network_phase1', _first_phase1()))
    elif start and not Path(str(start)).expanduser().is_file():
        problems.append(
            ('path.pretrain_network_phase1', f'{start}: no such file. {_first_phase1()}')
        )
    return problems
