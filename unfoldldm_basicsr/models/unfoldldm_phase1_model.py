"""UnfoldLDM, Phase I: the network and the prior encoder PI are trained with the ground truth.

    L = L_rec + lambda_isda L_ISDA,   P = PI(x_gt, y) guides every stage

Whatever uses PI sees the answer in its input, so its scores are an upper bound for Phase II (an
oracle) and are named so everywhere.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.registry import LOSS_REGISTRY, MODEL_REGISTRY
from pydantic import Field
from torch import Tensor, nn

from unfoldldm_basicsr.common.declaration import Problem, Problems
from unfoldldm_basicsr.common.errors import RunFailure
from unfoldldm_basicsr.common.registration import registered
from unfoldldm_basicsr.options.run import Run
from unfoldldm_basicsr.training import options as base
from unfoldldm_basicsr.training.batches import Batch, to_device
from unfoldldm_basicsr.training.evaluation import Evaluator
from unfoldldm_basicsr.training.networks import Restored, restore_image
from unfoldldm_basicsr.training.restoration_model import RestorationModel
from unfoldldm_basicsr.training.step import Losses

if TYPE_CHECKING:
    from unfoldldm_basicsr.archs.unfolding.stage import UnfoldTrace

SOURCE_NOTES = {
    'oracle': 'ORACLE: the prior is computed from the ground truth; an upper bound, not a result',
    'null': "ablation: learned null prior in place of the image's own",
    'shuffled': 'ablation: prior of another image',
}
TOO_MANY = 10  # logged gradient steps above the image range: the training has diverged


class UnfoldingTrain(base.TrainOptions):
    """``train`` of both phases."""

    pixel_opt: dict[str, Any]
    """Pixel loss, for example type: L1Loss."""
    perceptual_opt: None = None
    """Not part of the two phases."""
    isda_opt: dict[str, Any] | None = None
    """ISDALoss and its arguments; ~: off, as in the comparisons on noise, where it costs quality;
    UnfoldLDM's other option files set a loss_weight of 0.01."""
    prior_context: bool = False
    """The priors are made of the whole patches that the loader gives, of which progressive cuts the
    restored ones: they must then say what holds for a photo."""
    stage_loss_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the pixel loss of the stages before the last."""


class Phase1Val(base.ValOptions):
    """``val``."""

    prior_source: Literal['oracle', 'null'] | None = None
    """Prior of the ground truth, which is the default, or the learned null prior."""


def uses_ldm(run: Run) -> bool:
    """False in the ablation without priors."""
    return run.network_sections['network_g'].get('use_ldm', True) is not False


def validation_prior(run: Run) -> str:
    """Prior of a validation: ``val.prior_source``, else the network's own, else the phase's."""
    if not uses_ldm(run):
        return 'null'  # the only prior there is
    own = run.network_sections['network_g'].get('prior_source', 'auto')
    return run.val.prior_source or (own if own != 'auto' else run.model.default_prior_source)


# ---- what must fit together ---------------------------------------------------------------------


def network_has_phases(run: Run) -> Problems:
    """Both phases need a network with a prior."""
    inputs, kind = base.forward_inputs(run), run.network_sections['network_g'].get('type')
    if inputs and 'gt' not in inputs:
        message = f'{kind} has no phases: use network_g.type: UnfoldLDM.'
        yield Problem('network_g.type', message)


def null_is_quoted(run: Run) -> Problems:
    """YAML takes null for nothing, which would be the default."""
    if 'prior_source' in run.val.model_fields_set and run.val.prior_source is None:
        message = "is empty: write 'null' in quotes for the null prior, or leave the key out."
        yield Problem('val.prior_source', message)


def loss_is(run: Run, key: str, kind: str) -> Problems:
    """The loss under ``train.KEY`` is called like ``kind``: it must be that class or one of it."""
    section = getattr(run.train, key) or {}
    cls = registered(LOSS_REGISTRY, section.get('type'))
    if cls is not None and kind not in (base.__name__ for base in cls.__mro__):
        yield Problem(f'train.{key}.type', f'{section["type"]} is no {kind}, which belongs here.')


def isda_compares(run: Run) -> Problems:
    """With one estimate, or none, the loss would be 0 or draw the result to the input."""
    if not run.is_train or run.train.isda_opt is None:
        return
    yield from loss_is(run, 'isda_opt', 'ISDALoss')
    mode = run.network_sections['network_g'].get('mgda_mode', 'both')
    if mode != 'both':
        message = 'compares two estimates, which need network_g.mgda_mode: both: remove it.'
        yield Problem('train.isda_opt', message)
    settings = getattr(run.networks.get('network_g'), 'options', None)
    stages = getattr(settings, 'num_stages', None)
    first = run.train.isda_opt.get('start', 2)
    if stages and isinstance(first, int) and first > stages:
        message = f'counts from stage {first}, and num_stages is {stages}: nothing comes of it.'
        yield Problem('train.isda_opt', message, 'warning')


def context_fits(run: Run) -> Problems:
    """What rules out a prior of larger patches."""
    if not run.is_train or not run.train.prior_context:
        return
    place, section = 'train.prior_context', run.network_sections['network_g']
    if run.train.mixing_augs is not None:
        yield Problem(place, 'cannot be combined with train.mixing_augs.')
    if section.get('prior_stages', 'first') != 'first' or not section.get('cond_detach', True):
        message = 'needs one prior for all stages: prior_stages: first and cond_detach: true.'
        yield Problem(place, message)
    if run.train.progressive is None:
        message = 'changes nothing without train.progressive, which cuts the restored patches.'
        yield Problem(place, message, 'warning')


def is_phase1(run: Run) -> Problems:
    """Phase I of the network, and what its oracle prior rules out."""
    section = run.network_sections['network_g']
    if section.get('phase', 2) != 1:
        message = f'{run.model.__name__} trains phase: 1; the default is 2.'
        yield Problem('network_g.phase', message)
    source = validation_prior(run)
    if source not in ('oracle', 'null'):
        message = f"'{source}' is not known in Phase I: oracle or null."
        yield Problem('val.prior_source', message)
    if run.val.tile and source != 'null':
        yield Problem('val.tile', 'the oracle prior belongs to the whole image; remove val.tile.')


UNFOLDING_RULES = (*base.RULES, network_has_phases, null_is_quoted, isda_compares, context_fits)


@MODEL_REGISTRY.register()
class UnfoldLDMPhase1Model(RestorationModel):
    """Trains ``UnfoldLDM(phase=1)`` on L1 and the intra-stage consistency.

    Validation uses the ground truth for the prior and reports ``oracle_<metric>``;
    ``val.prior_source: 'null'`` validates with the learned null prior instead (``null_<metric>``).
    With ``network_g.use_ldm: false`` (ablation) no ground truth is used and the scores are plain
    results.
    """

    sections = {**base.SECTIONS, 'train': UnfoldingTrain, 'val': Phase1Val}
    rules = (*UNFOLDING_RULES, is_phase1)
    default_prior_source = 'oracle'

    def build_evaluator(self, **settings: Any) -> Evaluator:
        self.prior_source = source = validation_prior(self.run)
        if uses_ldm(self.run) and source != 'generated':
            settings = {'prefix': f'{source}_', 'note': f' ({SOURCE_NOTES[source]})'}
        return super().build_evaluator(**settings)

    def init_losses(self) -> None:
        super().init_losses()
        self.cri_isda = self.build_optional_loss(self.run.train.isda_opt)
        self.large_steps = 0  # logged in a row

    def feed_data(self, data: Batch) -> None:
        data = to_device(data, self.device)
        super().feed_data(data)
        if self.is_train and self.run.train.prior_context:
            count = len(self.batch['lq'])  # train.progressive has kept the first ones
            self.batch |= {f'context_{key}': data[key][:count] for key in ('lq', 'gt')}

    def network_arguments(self, batch: Batch) -> dict[str, Any]:
        arguments = super().network_arguments(batch)
        if 'context_lq' in batch:
            arguments['context'] = batch['context_lq'], batch['context_gt']
        return arguments

    def compute_losses(self, batch: Batch, current_iter: int, **mode: str) -> tuple[Losses, Losses]:
        """Losses, and figures of the steps in the iterations that are logged."""
        lq, gt, arguments = batch['lq'], batch['gt'], self.network_arguments(batch)
        with self.autocast():
            trace = self.net_g(lq, gt, **mode, **arguments, return_trace=True)
        is_logged = current_iter % self.run.logger.print_freq == 0
        figures = step_figures(trace) if is_logged else {}
        return self.trace_losses(trace, gt), figures

    def trace_losses(self, trace, gt: Tensor) -> Losses:
        """See :func:`restoration_losses`."""
        weight = self.run.train.stage_loss_weight
        return restoration_losses(trace, gt, self.cri_pix, self.cri_isda, weight)

    def optimize_parameters(self, current_iter: int) -> None:
        super().optimize_parameters(current_iter)
        if 'step_size' in self.log_dict:
            self.watch_step(self.log_dict['step_size'], current_iter)

    def watch_step(self, step_size: float, current_iter: int) -> None:
        """Warns of a step larger than the image range, which happens and recovers; RunFailure for
        :data:`TOO_MANY` in a row.
        """
        self.large_steps = self.large_steps + 1 if step_size > 1 else 0
        if not self.large_steps:
            return
        message = (
            f'Iteration {current_iter}: the holistic gradient step moves the image by '
            f'{step_size:.2f} on average, more than its range, for {self.large_steps} logged '
            'iterations in a row'
        )
        if self.large_steps >= TOO_MANY:
            raise RunFailure(
                f'{message}: training stopped. The last checkpoints may be affected; go back to '
                'one from before the first such warning, with a lower optim_g.lr or grad_clip_norm.'
            )
        get_root_logger().warning(f'{message}; at {TOO_MANY} the training stops.')

    def restore_with(self, net: nn.Module, batch: Batch) -> Restored:
        arguments = self.network_arguments(batch) | {'prior_source': self.prior_source}
        if self.prior_source == 'oracle':
            arguments['gt'] = batch.get('gt')
        return restore_image(net, batch['lq'], arguments, self.run.val)


# ---- from the trace of a forward pass ------------------------------------------------------------


def restoration_losses(
    trace: 'UnfoldTrace',
    gt: Tensor,
    cri_pix: nn.Module,
    cri_isda: nn.Module | None,
    stage_loss_weight: float,
) -> dict[str, Tensor]:
    """L_rec of the last stage, L_ISDA over the stages, and optionally L_rec of earlier stages.

    Args:
        trace: of the whole batch; images (B,c,H,W), as ``gt``.
        stage_loss_weight: weight of the mean pixel loss of the stages before the last; 0: none.

    Returns:
        Scalars in fp32: ``l_pix``, ``l_isda`` and ``l_stage`` where they are trained.
    """
    losses = {'l_pix': cri_pix(trace.output.float(), gt)}
    if cri_isda is not None:
        losses['l_isda'] = cri_isda(
            [stage.x_hat.float() for stage in trace.stages],
            [stage.x_tilde.float() for stage in trace.stages],
        )
    if stage_loss_weight > 0:
        earlier = [cri_pix(stage.x.float(), gt) for stage in trace.stages[:-1]]
        mean = sum(earlier) / len(earlier) if earlier else losses['l_pix'] * 0
        losses['l_stage'] = stage_loss_weight * mean
    return losses


@torch.no_grad()
def step_figures(trace: 'UnfoldTrace') -> dict[str, Tensor]:
    """Sizes of the gradient steps, averaged over the stages (in II-a the first one).

    Returns:
        ``step_size``: mean |x_hat_k - x_{k-1}|, in units of the image range; above 1 the learned
        step has diverged. ``isda_ratio``: mean |x_hat_k - x_tilde_k| relative to it, 0 without
        a step; near 0 the two estimates have collapsed into one.
    """
    steps, gaps, before = [], [], trace.start
    for stage in trace.stages:
        steps.append((stage.x_hat.float() - before.float()).abs().mean())
        gaps.append((stage.x_hat.float() - stage.x_tilde.float()).abs().mean())
        before = stage.x
    step, gap = torch.stack(steps).mean(), torch.stack(gaps).mean()
    return {'step_size': step, 'isda_ratio': torch.where(step > 0, gap / step, 0)}
