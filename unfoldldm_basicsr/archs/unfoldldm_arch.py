"""UnfoldLDM (arXiv 2511.18152): blind restoration by deep unfolding with a latent diffusion prior.

    x_0 = y;   for k = 1..K:   x_hat, x_tilde, W, M = MGDA(x_{k-1}, y)
                               P = PI(x_gt)  (Phase I)   or   DR-LDM(x_hat, x_tilde)  (Phase II)
                               x_k = OCFormer(x_hat, x_tilde, P)

A re-implementation: docs/method.md says what the paper leaves open and what is chosen here.
"""

from __future__ import annotations

from typing import Literal

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from unfoldldm_basicsr.archs.layers.resample import crop_to, pad_to_multiple
from unfoldldm_basicsr.archs.unfolding.gradient_step_mgda import MGDA, MGDAOptions
from unfoldldm_basicsr.archs.unfolding.latent_prior import Guidance, LatentPrior, PriorOptions
from unfoldldm_basicsr.archs.unfolding.proximal_step_ocformer import OCFormer, OCFormerOptions
from unfoldldm_basicsr.archs.unfolding.stage import Estimates, StagePrior, StageTrace, UnfoldTrace
from unfoldldm_basicsr.common.declaration import takes
from unfoldldm_basicsr.common.registration import register

PRIOR_INPUTS = {'gt': 1, 'gt_lq': 2, 'gt_mgda': 3}  # images
COND_INPUTS = {'lq': 1, 'mgda': 2, 'mgda_lq': 3}


class UnfoldLDMOptions(MGDAOptions, OCFormerOptions, PriorOptions):
    """Options of UnfoldLDM: those of its parts, and how they work together."""

    num_stages: PositiveInt = 3
    """Number K of stages."""
    share_stages: bool = True
    """All stages share MGDA and OCFormer but for three scalars each."""
    use_ldm: bool = True
    """False replaces the prior by one learned vector and builds no diffusion."""
    prior_input: Literal['gt', 'gt_lq', 'gt_mgda'] = 'gt'
    """What PI sees: the ground truth, alone or with the input or the estimates."""
    cond_input: Literal['mgda', 'lq', 'mgda_lq'] = 'mgda'
    """What PI' sees: the estimates, the input, or both."""
    cond_detach: bool = True
    """No gradient from PI' into MGDA."""
    prior_stages: Literal['all', 'first'] = 'all'
    """A prior for each stage, or the first stage's for all."""

    @model_validator(mode='after')
    def _effects(self) -> UnfoldLDMOptions:
        if self.cond_input == 'lq' and not self.cond_detach:
            raise ValueError('cond_detach must be true with cond_input: lq, else it has no effect.')
        if self.use_ldm and not self.uses_prior:
            raise ValueError(
                'pdr must not be none with prior_in_attn: false, else the prior has no effect; '
                'set use_ldm: false for this ablation.'
            )
        return self


@register(ARCH_REGISTRY)
@takes(UnfoldLDMOptions)
class UnfoldLDM(LatentPrior, nn.Module):
    """Deep unfolding of blind proximal gradient descent with a generated prior.

    Raises:
        ValueError: an unknown choice or an impossible combination.
    """

    size_multiple = 8
    tiling_changes_result = True  # prior, embedding and channel attention are global

    def __init__(self, options: UnfoldLDMOptions):
        super().__init__()
        self.options = options
        if options.share_stages:
            self.mgda = MGDA(options, num_stages=options.num_stages)
            self.ocformer = OCFormer(options, num_stages=options.num_stages)
        else:
            self.mgda = nn.ModuleList(MGDA(options) for _ in range(options.num_stages))
            self.ocformer = nn.ModuleList(OCFormer(options) for _ in range(options.num_stages))
        self.init_prior(
            options,
            target_channels=PRIOR_INPUTS[options.prior_input] * options.inp_channels,
            condition_channels=COND_INPUTS[options.cond_input] * options.inp_channels,
            num_stages=options.num_stages,
            use_ldm=options.use_ldm,
            uses_prior=options.uses_prior,
        )

    def forward(
        self,
        lq: Tensor,
        gt: Tensor | None = None,
        *,
        mode: str = 'restore',
        prior_source: str | None = None,
        prior: Tensor | None = None,
        return_trace: bool = False,
    ) -> Tensor | UnfoldTrace:
        """Restores a batch.

        Args:
            lq: (B, c, H, W) in [0, 1], any H and W.
            gt: (B, c, H, W); training, and the oracle prior.
            mode: 'restore', or 'warmup' (phase 2 with gt): the target prior guides, only PI' and
                f_theta receive gradients.
            prior_source: overrides the constructor's.
            prior: (B, C_p) or (K, B, C_p) to use instead of any source.
            return_trace: returns :class:`UnfoldTrace` instead of the output.

        Returns:
            (B, c, H, W), not clamped.

        Raises:
            ValueError: an unknown mode or source, or one that lacks gt, PI or the diffusion.
        """
        y, size = pad_to_multiple(lq, self.size_multiple)
        gt = None if gt is None else pad_to_multiple(gt, self.size_multiple)[0]
        how = {'mode': mode, 'source': prior_source, 'given': prior, 'trace': return_trace}
        call = self.guidance(y, gt, **how)
        trained = mode != 'warmup' and torch.is_grad_enabled()
        x, stages = y, []
        for k in range(self.options.num_stages):
            with torch.set_grad_enabled(trained):
                estimates = self.gradient_step(x, y, k)
            z = self.prior(estimates, k, call)
            with torch.set_grad_enabled(trained):
                x = self.proximal_step(estimates, z.guide, k)
            if return_trace:
                x_hat, x_tilde, W, M, e = estimates
                x_hat, x_tilde, x_k = (crop_to(image, size) for image in (x_hat, x_tilde, x))
                stages.append(StageTrace(x_hat, x_tilde, W, M, *z, x_k, e))
        output = crop_to(x, size)
        if not return_trace:
            return output
        targets = tuple(stage.target for stage in stages)
        per_stage = self.options.prior_input == 'gt_mgda' and targets[0] is not None
        return UnfoldTrace(output, tuple(stages), targets if per_stage else targets[0])

    def gradient_step(self, x: Tensor, y: Tensor, k: int) -> Estimates:
        """Both estimates of stage ``k`` (from 0); x, y (B, c, H, W)."""
        return self.mgda(x, y, k) if self.options.share_stages else self.mgda[k](x, y)

    def prior(self, estimates: Estimates, k: int, call: Guidance) -> StagePrior:
        """The priors of stage ``k``: what PI and PI' see of its images is an option."""
        images, options = [estimates.x_hat, estimates.x_tilde], self.options
        if call.gt is not None and (call.target is None or options.prior_input == 'gt_mgda'):
            beside = {'gt': [], 'gt_lq': [call.y], 'gt_mgda': images}[options.prior_input]
            call.target = self.target_prior([call.gt, *beside])
        if options.cond_detach:
            images = [image.detach() for image in images]
        seen = {'mgda': images, 'lq': [call.y], 'mgda_lq': [*images, call.y]}[options.cond_input]
        priors = self.stage_prior(call, k, seen)
        if options.prior_stages == 'first':
            call.generated = priors.generated
        return priors

    def proximal_step(self, estimates: Estimates, z: Tensor | None, k: int) -> Tensor:
        """The new x (B, c, H, W) of stage ``k``, guided by ``z`` (B, C_p)."""
        ocformer, k = (self.ocformer, k) if self.options.share_stages else (self.ocformer[k], 0)
        return ocformer(estimates.x_hat, estimates.x_tilde, z, k)
