"""UnfoldLDM, Phase I: the network and the prior encoder PI are trained with the ground truth.

    L = L_rec + lambda_isda L_ISDA,   P = PI(x_gt) guides every stage

Whatever uses PI sees the answer in its input, so its scores are an upper bound for Phase II (an
oracle) and are named so everywhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY
from torch import Tensor

from unfoldldm_basicsr.common.registration import register
from unfoldldm_basicsr.common.suggest import did_you_mean
from unfoldldm_basicsr.models.unfolding_losses import StepWatch, restoration_losses, step_figures
from unfoldldm_basicsr.training.model_options import (
    NUMBER,
    OPTIONAL,
    OptionKeys,
    Problems,
    check_base_options,
    is_number,
    is_training,
    is_whole,
    merged,
    section_of,
)
from unfoldldm_basicsr.training.restoration_model import Losses, RestorationModel

GROUPS = ('restoration', 'prior')

UNFOLDING_OPTION_KEYS: OptionKeys = {
    'train': {
        'isda_opt': ((dict, OPTIONAL), 'ISDALoss and its arguments'),
        'stage_loss_weight': (NUMBER, 'weight of the pixel loss of the stages before the last (0)'),
    }
}

SOURCE_NOTES = {
    'oracle': 'ORACLE: the prior is computed from the ground truth; an upper bound, not a result',
    'null': "ablation: learned null prior in place of the image's own",
    'shuffled': 'ablation: prior of another image',
}


def check_unfolding_options(
    opt: Mapping[str, Any], network_inputs: tuple[str, ...] = ()
) -> Problems:
    """Problems of the options that both phases share, as (key path, message)."""
    problems = check_base_options(opt, network_inputs)
    train = section_of(opt, 'train')
    weight = train.get('stage_loss_weight', 0)
    if not is_number(weight) or weight < 0:
        problems.append(('train.stage_loss_weight', f'must be >= 0, got {weight!r}.'))
    if is_training(opt) and not train.get('pixel_opt'):
        message = 'both phases need a pixel loss, for example type: L1Loss.'
        problems = [p for p in problems if p[0] != 'train.pixel_opt']
        problems.append(('train.pixel_opt', message))
    if train.get('perceptual_opt'):
        problems.append(('train.perceptual_opt', 'not part of the two phases; remove it.'))
    problems += check_loss_type(train, 'isda_opt', 'ISDALoss')
    problems += _check_isda_start(train, section_of(opt, 'network_g'))
    limits = train.get('grad_clip_norm')
    groups = (*GROUPS, 'embedding') if network_inputs else GROUPS
    for group in limits if isinstance(limits, Mapping) else ():
        if group not in groups:
            message = f"no parameter group '{group}'.{did_you_mean(group, groups)}"
            problems.append(('train.grad_clip_norm', message))
    network, val = section_of(opt, 'network_g'), section_of(opt, 'val')
    known = dict(iter(ARCH_REGISTRY)).get(network.get('type'))
    has_phases = known is None or 'gt' in inspect.signature(known.forward).parameters
    if not has_phases and 'network_g.type' not in (key for key, _ in problems):
        problems.append(
            ('network_g.type', f'{network["type"]} has no phases: UnfoldLDM and VLUNetPrior do.')
        )
    if network.get('use_ldm', True) is False:
        for key, section in (('network_g', network), ('val', val)):
            if section.get('prior_source') not in (None, 'auto', 'null'):
                problems.append(
                    (f'{key}.prior_source', 'has no effect with network_g.use_ldm: false.')
                )
    return problems


def _check_isda_start(train: Mapping[str, Any], network: Mapping[str, Any]) -> Problems:
    """Without a stage from ``start`` on, the loss would always be 0."""
    isda, known = train.get('isda_opt'), dict(iter(ARCH_REGISTRY)).get(network.get('type'))
    if not isinstance(isda, Mapping) or known is None:
        return []
    stages = inspect.signature(known).parameters.get('num_stages')
    if stages is None:
        return []
    count, start = network.get('num_stages', stages.default), isda.get('start', 2)
    if not is_whole(count, 1) or not is_whole(start, count + 1):
        return []
    message = f'is {start}, but network_g.num_stages is {count}, so the loss would be 0: lower it'
    return [('train.isda_opt.start', f'{message}, or remove isda_opt.')]


def check_loss_type(train: Mapping[str, Any], key: str, kind: str) -> Problems:
    """The loss under ``key`` is called like ``kind``: it must be that class or derive from it."""
    section = train.get(key)
    if not isinstance(section, Mapping) or 'type' not in section:
        return []
    registered = dict(iter(LOSS_REGISTRY)).get(section['type'])
    if registered is None or kind in (c.__name__ for c in registered.__mro__):
        return []
    return [(f'train.{key}.type', f'{section["type"]} is no {kind}, which belongs here.')]


def validation_prior(opt: Mapping[str, Any], default: str) -> str:
    """``val.prior_source``, else the network's own unless that is 'auto', else ``default``."""
    own = section_of(opt, 'network_g').get('prior_source', 'auto')
    return section_of(opt, 'val').get('prior_source') or (own if own != 'auto' else default)


@register(MODEL_REGISTRY)
class UnfoldLDMPhase1Model(RestorationModel):
    """Trains ``UnfoldLDM(phase=1)`` on L1 and the intra-stage consistency.

    Validation uses the ground truth for the prior and reports ``oracle_<metric>``;
    ``val.prior_source: null`` validates with the learned null prior instead (``null_<metric>``).
    With ``network_g.use_ldm: false`` (ablation) no ground truth is used and the scores are plain
    results.
    """

    option_keys = merged(
        RestorationModel.option_keys,
        UNFOLDING_OPTION_KEYS,
        {'val': {'prior_source': ((str, OPTIONAL), 'oracle (default) or null')}},
    )

    default_prior_source = 'oracle'

    def __init__(self, opt: dict[str, Any]):
        source = validation_prior(opt, self.default_prior_source)
        if not opt['network_g'].get('use_ldm', True):
            source = 'null'  # the only prior there is, hence a plain result
        elif source != 'generated':
            self.metric_prefix = f'{source}_'
            self.validation_note = f' ({SOURCE_NOTES[source]})'
        self.prior_source = source
        super().__init__(opt)

    @classmethod
    def check_options(cls, opt: Mapping[str, Any]) -> Problems:
        problems = check_unfolding_options(opt, cls.network_inputs)
        network, val = section_of(opt, 'network_g'), section_of(opt, 'val')
        if network.get('phase', 2) != 1:
            problems.append(
                ('network_g.phase', f'{cls.__name__} trains phase: 1; the default is 2.')
            )
        source = validation_prior(opt, 'oracle')
        if source not in ('oracle', 'null'):
            problems.append(
                ('val.prior_source', f"'{source}' is not known in Phase I: oracle or null.")
            )
        if val.get('tile') and source != 'null' and network.get('use_ldm', True):
            problems.append(
                ('val.tile', 'the oracle prior belongs to the whole image; remove val.tile.')
            )
        return problems

    def init_losses(self) -> None:
        self.cri_pix = self.build_optional_loss('pixel_opt')
        self.cri_isda = self.build_optional_loss('isda_opt')
        self.stage_loss_weight = self.train_opt.get('stage_loss_weight') or 0
        self.step_watch = StepWatch()
        if self.cri_pix is None:
            raise ValueError('train.pixel_opt is missing: set it, for example type: L1Loss.')

    def compute_losses(self, batch: Mapping[str, Any], current_iter: int) -> tuple[Losses, Losses]:
        with self.autocast():
            trace = self.net_g(
                batch['lq'], batch['gt'], **self.network_arguments(batch), return_trace=True
            )
        losses = self.trace_losses(trace, batch['gt'])
        return losses, self.trace_figures(trace, batch['lq'], current_iter)

    def trace_losses(self, trace, gt: Tensor) -> Losses:
        """Losses of the restoration part; see :func:`.unfolding_losses.restoration_losses`."""
        return restoration_losses(trace, gt, self.cri_pix, self.cri_isda, self.stage_loss_weight)

    def trace_figures(self, trace, lq: Tensor, current_iter: int) -> Losses:
        """Step sizes, in the iterations that are logged."""
        if current_iter % self.opt['logger']['print_freq']:
            return {}
        return step_figures(trace, lq)

    def optimize_parameters(self, current_iter: int) -> None:
        super().optimize_parameters(current_iter)
        if 'step_size' in self.log_dict:
            self.step_watch.observe(self.log_dict['step_size'], current_iter)

    def inference_arguments(self) -> dict[str, Any]:
        if self.prior_source == 'null':
            return {'prior_source': 'null'}
        if not hasattr(self, 'gt'):
            raise ValueError(
                'Phase I computes the prior from the ground truth, and this validation set has '
                'none: use a set with gt, or val.prior_source: null.'
            )
        return {'gt': self.gt, 'prior_source': 'oracle'}
