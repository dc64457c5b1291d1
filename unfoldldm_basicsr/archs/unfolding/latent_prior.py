"""The latent prior of UnfoldLDM: encoders, diffusion, null prior, and which of them guides.

P     = PI(x_gt, y)                  phases 1 and 2: the target, from the ground truth
P_hat = f_theta(PI'(estimates))      phase 2 and inference: generated
guide = P, P_hat, or the null prior  what the restoration sees
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from unfoldldm_basicsr.archs.unfolding.prior_diffusion import DiffusionOptions, PriorDiffusion
from unfoldldm_basicsr.archs.unfolding.prior_encoder import EncoderOptions, PriorEncoder
from unfoldldm_basicsr.archs.unfolding.stage import Estimates, StagePrior
from unfoldldm_basicsr.common.contract import NEW_IN_PHASE2
from unfoldldm_basicsr.common.suggest import check_choice
from unfoldldm_basicsr.ops.image_statistics import image_statistic

PriorSource = Literal['auto', 'generated', 'oracle', 'null', 'shuffled']
NEEDS_GT = ('oracle', 'joint', 'target')
GENERATING = ('generated', 'shuffled', 'target', 'joint')  # sources for which the diffusion runs
PRIOR_INPUTS = {'gt': 1, 'gt_lq': 2}  # images
COND_INPUTS = {'lq': 1, 'mgda': 2, 'mgda_lq': 3}


class PriorOptions(EncoderOptions, DiffusionOptions):
    """Options of the prior."""

    phase: Literal[1, 2, 'joint', 'inference'] = 2
    """1 trains the prior encoder PI with everything but the diffusion; 2 trains PI' and the
    diffusion f_theta against the frozen PI, and everything else jointly; joint trains all from
    scratch (ablation); inference is phase 2 without PI."""
    prior_source: PriorSource = 'auto'
    """Prior in evaluation: auto (generated; in phase 1 oracle with gt and null without), generated,
    oracle (needs gt), null, or shuffled (the batch neighbour's)."""
    null_prior_prob: float = Field(0.1, ge=0, lt=1)
    """Share of training samples that see the null prior in phases 1 and joint."""
    use_ldm: bool = True
    """False replaces the prior by one learned vector and builds no diffusion."""
    prior_input: Literal['gt', 'gt_lq'] = 'gt_lq'
    """What PI sees: the ground truth, alone or with the input."""
    cond_input: Literal['mgda', 'lq', 'mgda_lq'] = 'mgda'
    """What PI' sees, at the resolution of the stage: the estimates, the input, or both."""
    cond_detach: bool = True
    """No gradient from PI' into MGDA."""
    prior_stages: Literal['all', 'first'] = 'first'
    """A prior for each stage, or the first stage's for all."""


def resolve_source(
    requested: str, phase: int | str, mode: str, gt: Tensor | None, training: bool
) -> str:
    """Which prior guides the proximal step in a call: one rule for all phases.

    ``requested`` is one of :data:`PriorSource`, ``mode`` 'restore' or 'warmup'. Gives 'generated',
    'oracle' (PI's prior), 'null', 'shuffled' (the batch neighbour's generated prior), 'joint' (half
    PI's, half generated), or 'target' (PI's prior guides while the diffusion warms up beside it).

    Raises ValueError: a source that lacks gt, PI or the diffusion.
    """
    if mode == 'warmup':
        if phase != 2 or gt is None:
            raise ValueError("mode 'warmup' needs phase: 2 and the ground truth.")
        return 'target'
    source = requested
    if source == 'auto':
        if phase == 1:
            source = 'null' if gt is None else 'oracle'
        else:
            source = 'joint' if phase == 'joint' and training else 'generated'
    if source in NEEDS_GT and gt is None:
        raise ValueError(f"prior_source '{source}' needs the ground truth.")
    if source in NEEDS_GT and phase == 'inference':
        raise ValueError(f"prior_source '{source}' needs PI, which phase 'inference' leaves out.")
    if source in ('generated', 'shuffled') and phase == 1:
        raise ValueError(f"prior_source '{source}' needs the diffusion of phase 2.")
    return source


@dataclass
class Guidance:
    """What the priors of one forward pass share."""

    source: str  # where the guide comes from, see :func:`resolve_source`, or 'given'
    given: Tensor | None  # (B, C_p) or (K, B, C_p) guide to use as it is
    null_mask: Tensor | None  # (B, 1), 1 for the samples that see the null prior instead
    target: Tensor | None  # (B, C_p) PI's prior, None where PI is not to see the ground truth
    half: Tensor | None  # (B, 1), 1 for the samples of 'joint' that see PI's prior
    generated: Tensor | None = None  # to use for all further stages


class LatentPrior(nn.Module):
    """What of UnfoldLDM makes priors."""

    def init_prior(self, options: PriorOptions) -> None:
        """Builds what the phase needs; to be called after the other parts.

        The options also have ``inp_channels``, ``scales`` (how much smaller the images of each
        stage are than the observation) and ``uses_prior``, without which no null prior is built.
        """
        self.phase, self.use_ldm, channels = options.phase, options.use_ldm, options.inp_channels
        self.condition_windows = [options.prior_window // scale for scale in options.scales]
        if options.uses_prior:
            self.null_prior = nn.Parameter(torch.zeros(options.prior_dim))
            varied = self.phase in (1, 'joint') and options.null_prior_prob > 0
            self.null_prior.requires_grad_(not self.use_ldm or varied)
        if self.use_ldm and self.phase != 'inference':
            seen = PRIOR_INPUTS[options.prior_input] * channels
            levels_of = channels if options.prior_levels == 'lq' else None  # of y, the last image
            self.prior_encoder = PriorEncoder(seen, options, levels_of)
            self.prior_encoder.requires_grad_(self.phase != 2)
        if self.use_ldm and self.phase != 1:
            seen = COND_INPUTS[options.cond_input] * channels
            self.condition_encoder = PriorEncoder(seen, options)
            self.denoiser = PriorDiffusion(options, num_stages=len(options.scales))

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Named trainable parameters: 'restoration', and 'prior' (PI' and f_theta)."""
        groups = {'restoration': [], 'prior': []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                is_prior = name.split('.')[0] in NEW_IN_PHASE2
                groups['prior' if is_prior else 'restoration'].append((name, parameter))
        return groups

    def guidance(
        self,
        y: Tensor,
        gt: Tensor | None,
        *,
        mode: str,
        source: str | None,
        given: Tensor | None,
        trace: bool,
    ) -> Guidance:
        """Decides what guides a forward pass; y, gt (B, c, H, W).

        ``source`` overrides the constructor's, a ``given`` guide replaces any; with ``trace`` the
        target is wanted even where it guides nothing.

        Raises ValueError: an unknown mode or source; see :func:`resolve_source`.
        """
        options = self.options
        check_choice('mode', mode, ('restore', 'warmup'))
        check_choice('prior_source', source or 'auto', get_args(PriorSource))
        if given is not None:
            source = 'given'
        elif not self.use_ldm:
            source = 'null'
        else:
            default = 'auto' if self.training else options.prior_source
            source = resolve_source(source or default, self.phase, mode, gt, self.training)
        null_mask = target = None
        if self.training and source in ('oracle', 'joint'):
            null_mask = torch.rand(len(y), 1, device=y.device) < options.null_prior_prob
            null_mask = null_mask.to(y.dtype)
        half = None
        if source == 'joint':  # half of the samples see PI's, or PI would learn nothing
            half = (torch.rand(len(y), 1, device=y.device) < 0.5).to(y.dtype)
        wanted = gt is not None and (self.training or trace or source in NEEDS_GT)
        if wanted and self.use_ldm and self.phase != 'inference':
            seen = gt if options.prior_input == 'gt' else torch.cat([gt, y], 1)
            trained = self.phase != 2  # else the frozen teacher
            with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
                target = self.prior_encoder(seen, options.prior_window)
        return Guidance(source, given, null_mask, target, half)

    def prior(self, estimates: Estimates, y: Tensor, k: int, call: Guidance) -> StagePrior:
        """The priors of stage ``k`` (from 0), whose images are ``estimates`` and ``y``.

        Raises ValueError: 'shuffled' with a single image.
        """
        options = self.options
        target = None if call.target is None else call.target.detach()
        generated = call.generated
        if generated is None and call.source in GENERATING:
            images = [estimates.x_hat, estimates.x_tilde]
            if options.cond_detach:
                images = [image.detach() for image in images]
            seen = {'mgda': images, 'lq': [y], 'mgda_lq': [*images, y]}[options.cond_input]
            condition = self.condition_encoder(torch.cat(seen, 1), self.condition_windows[k])
            generated = image_statistic(self.denoiser(condition, k, target))
        if options.prior_stages == 'first':
            call.generated = generated
        return StagePrior(self._guide(call, k, len(y), generated), generated, target)

    def _guide(self, call: Guidance, k: int, batch: int, generated: Tensor | None) -> Tensor | None:
        if call.source == 'given':
            return call.given if call.given.ndim == 2 else call.given[k]
        if call.source == 'null':
            return self.null_prior.repeat(batch, 1) if self.options.uses_prior else None
        if call.source == 'generated':
            return generated
        if call.source == 'shuffled':
            if batch < 2:
                raise ValueError("prior_source 'shuffled' needs a batch of at least two images.")
            return generated.roll(1, 0)
        guide = call.target
        if call.source == 'joint':
            guide = call.half * guide + (1 - call.half) * generated
        if call.null_mask is not None and self.null_prior.requires_grad:
            guide = guide + call.null_mask * (self.null_prior - guide)
        return guide
