"""UnfoldLDM (arXiv 2511.18152): blind restoration by deep unfolding with a latent diffusion prior.

    x_0 = y;   for k = 1..K:   x_hat, x_tilde, W, M = MGDA(x_{k-1}, y)
                               P = PI(x_gt, y)  (Phase I)  or   DR-LDM(x_hat, x_tilde)  (Phase II)
                               x_k = x_hat (or x_{k-1}) + OCFormer(x_hat, x_tilde, P)

The first stages see x and y at half the resolution (or at a quarter, then half): they cost a
quarter and hand on an estimate that is enlarged for the next. All stages share MGDA, the coarse
ones share OCFormer.

A re-implementation: docs/method.md says what the paper leaves open and what is chosen here.
"""

from typing import Literal

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from pydantic import NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from unfoldldm_basicsr.archs.layers.resample import crop_to, pad_to_multiple
from unfoldldm_basicsr.archs.unfolding.gradient_step_mgda import MGDA, Degradation, MGDAOptions
from unfoldldm_basicsr.archs.unfolding.latent_prior import (
    GENERATING,
    Guidance,
    LatentPrior,
    PriorOptions,
)
from unfoldldm_basicsr.archs.unfolding.proximal_step_ocformer import OCFormer, OCFormerOptions
from unfoldldm_basicsr.archs.unfolding.stage import Estimates, StageTrace, UnfoldTrace
from unfoldldm_basicsr.common.declaration import takes


class UnfoldLDMOptions(MGDAOptions, OCFormerOptions, PriorOptions):
    """Options of UnfoldLDM: those of its parts, and how they work together."""

    num_stages: PositiveInt = 3
    """Number K of stages."""
    share_stages: bool | Literal['resolution'] = 'resolution'
    """Stages share MGDA but for the step sizes, and OCFormer but for the stage code: the coarse
    ones, and those at full resolution (resolution), or all (true). false: nothing is shared."""
    stage_code: bool = True
    """Shared stages add a learned vector of their own to the prior, so that OCFormer knows which
    one it serves."""
    base: Literal['x_hat', 'x'] = 'x_hat'
    """What OCFormer's output is added to: the holistic step x_hat, or x, the last estimate. x for
    darkness: there every gradient step makes the estimate almost as dark as y again. No effect with
    mgda_mode none, where both are the same."""
    coarse_stages: NonNegativeInt | None = None
    """How many stages, the first ones, work at half the resolution or below, see pyramid (none
    given: all but the last)."""
    pyramid: bool = False
    """All coarse stages but the last one work at a quarter of the resolution. No effect with a
    single one."""

    @property
    def scales(self) -> tuple[int, ...]:
        """Of every stage, how much smaller its images are than y: 4, 2 or 1 times."""
        coarse = self.num_stages - 1 if self.coarse_stages is None else self.coarse_stages
        scales = (2,) * coarse + (1,) * (self.num_stages - coarse)
        return (4,) * (coarse - 1) + scales[coarse - 1 :] if self.pyramid and coarse else scales

    @property
    def ocformers(self) -> tuple[int, ...]:
        """Of every stage, which OCFormer is its own."""
        if self.share_stages is True:
            return (0,) * self.num_stages
        if self.share_stages is False:
            return tuple(range(self.num_stages))
        return tuple(int(scale == 1 < self.scales[0]) for scale in self.scales)

    @model_validator(mode='after')
    def _effects(self) -> 'UnfoldLDMOptions':
        if (self.coarse_stages or 0) >= self.num_stages:
            raise ValueError(
                f'coarse_stages must be less than num_stages ({self.num_stages}), got '
                f'{self.coarse_stages}: the last stage makes the output.'
            )
        if self.prior_window % (4 * self.scales[0]):
            raise ValueError(
                f'prior_window must be a multiple of {4 * self.scales[0]} for stages at a quarter '
                f'of the resolution (pyramid), got {self.prior_window}.'
            )
        if self.cond_input == 'lq' and not self.cond_detach:
            raise ValueError('cond_detach must be true with cond_input: lq, else it has no effect.')
        if self.prior_levels == 'lq' and self.prior_input == 'gt':
            raise ValueError('prior_levels: lq needs prior_input: gt_lq: else PI sees no lq.')
        if self.use_ldm and not self.uses_prior:
            raise ValueError(
                'pdr must not be none, else the prior has no effect; '
                'set use_ldm: false for this ablation.'
            )
        return self


@ARCH_REGISTRY.register()
@takes(UnfoldLDMOptions)
class UnfoldLDM(LatentPrior):
    """Deep unfolding of blind proximal gradient descent with a generated prior."""

    size_multiple = 16
    tiling_changes_result = True  # prior, embedding and W, M are global

    def __init__(self, options: UnfoldLDMOptions):
        super().__init__()
        if options.share_stages:
            self.mgda = MGDA(options, num_stages=options.num_stages)
        else:
            self.mgda = nn.ModuleList(MGDA(options) for _ in range(options.num_stages))
        if options.share_stages is True:
            self.ocformer = OCFormer(options)
        else:
            self.ocformer = nn.ModuleList(OCFormer(options) for _ in set(options.ocformers))
        self.init_prior(options)
        self.stage_code = None
        if options.stage_code and options.share_stages and options.uses_prior:
            self.stage_code = nn.Parameter(torch.zeros(options.num_stages, options.prior_dim))

    def forward(
        self,
        lq: Tensor,
        gt: Tensor | None = None,
        *,
        mode: str = 'restore',
        prior_source: str | None = None,
        prior: Tensor | None = None,
        context: tuple[Tensor, Tensor] | None = None,
        return_trace: bool = False,
    ) -> Tensor | UnfoldTrace:
        """Restores a batch.

        Args:
            lq: (B, c, H, W) in [0, 1], any H and W.
            gt: (B, c, H, W); training, and the oracle prior.
            mode: 'restore', or 'warmup' (phase 2 with gt): only PI' and f_theta receive gradients;
                with one prior for all stages nothing else is computed or restored.
            prior_source: overrides the constructor's.
            prior: (B, C_p) or (K, B, C_p) to use instead of any source.
            context: lq and gt, each (B, c, H', W'), of larger patches around these; training. The
                priors are made of them, so that they say what holds for a photo.
            return_trace: returns :class:`UnfoldTrace` instead of the output.

        Returns:
            (B, c, H, W), not clamped. ValueError: an unknown mode or source, or one that lacks gt,
            PI or the diffusion.
        """
        y, size = pad_to_multiple(lq, self.size_multiple)
        gt = None if gt is None else pad_to_multiple(gt, self.size_multiple)[0]
        how = {'mode': mode, 'source': prior_source, 'given': prior, 'trace': return_trace}
        around = [pad_to_multiple(image, self.size_multiple)[0] for image in context or ()]
        call = self.guidance(*(around or (y, gt)), **how)
        if around and call.source in GENERATING:
            self.generate_prior(around[0], call)
        trained = mode != 'warmup' and torch.is_grad_enabled()
        with torch.set_grad_enabled(trained):
            degradations = self.degradations(y)
        x, stages = None, []
        for k, scale in enumerate(self.options.scales):
            y_k = y if scale == 1 else F.avg_pool2d(y, scale)
            with torch.set_grad_enabled(trained):
                x = y_k if x is None else enlarge(x, y_k)
                estimates = self.gradient_step(x, y_k, k, degradations[k])
            z = self.prior(estimates, y_k, k, call)
            only_prior = mode == 'warmup' and self.options.prior_stages == 'first'
            if not only_prior:
                with torch.set_grad_enabled(trained):
                    x = self.proximal_step(x, estimates, z.guide, k)
            if return_trace:
                x_hat, x_tilde, W, M = estimates
                images = (crop_to(enlarge(image, y), size) for image in (x_hat, x_tilde, x))
                x_hat, x_tilde, x_k = images
                stages.append(StageTrace(x_hat, x_tilde, W, M, *z, x_k))
            if only_prior:
                break
        output = crop_to(enlarge(x, y), size)
        if not return_trace:
            return output
        start = crop_to(enlarge(F.avg_pool2d(y, self.options.scales[0]), y), size)
        return UnfoldTrace(output, tuple(stages), stages[0].target, start)

    def degradations(self, y: Tensor) -> list[Degradation | None]:
        """What MGDA sees of y (B, c, H, W), for every stage: shared stages look once."""
        scales, (height, width) = self.options.scales, y.shape[2:]
        sizes = {scale: (height // scale, width // scale) for scale in scales}
        if not self.options.share_stages:
            pairs = zip(self.mgda, scales, strict=True)
            return [mgda.estimate(mgda.look(y), sizes[scale]) for mgda, scale in pairs]
        seen = self.mgda.look(y)
        known = {scale: self.mgda.estimate(seen, size) for scale, size in sizes.items()}
        return [known[scale] for scale in scales]

    def generate_prior(self, y: Tensor, call: Guidance) -> None:
        """Makes the prior of all stages from y (B, c, H', W'), as the first stage would."""
        y_0 = F.avg_pool2d(y, self.options.scales[0])
        with torch.no_grad():
            mgda = self.mgda if self.options.share_stages else self.mgda[0]
            degradation = mgda.estimate(mgda.look(y), y_0.shape[2:])
            estimates = self.gradient_step(y_0, y_0, 0, degradation)
        self.prior(estimates, y_0, 0, call)

    def gradient_step(
        self, x: Tensor, y: Tensor, k: int, degradation: Degradation | None
    ) -> Estimates:
        """Both estimates of stage ``k`` (from 0); x, y (B, c, h, w)."""
        mgda, k = (self.mgda, k) if self.options.share_stages else (self.mgda[k], 0)
        return mgda(x, y, k, degradation)

    def proximal_step(self, x: Tensor, estimates: Estimates, z: Tensor | None, k: int) -> Tensor:
        """The new x (B, c, h, w) of stage ``k``, guided by ``z`` (B, C_p) and the stage's code."""
        ocformer = self.ocformer
        if isinstance(ocformer, nn.ModuleList):
            ocformer = ocformer[self.options.ocformers[k]]
        if self.stage_code is not None:
            z = z + self.stage_code[k]
        base = x if self.options.base == 'x' else estimates.x_hat
        return base + ocformer(estimates.x_hat, estimates.x_tilde, z)


def enlarge(image: Tensor, other: Tensor) -> Tensor:
    """``image`` (B, c, h, w), bilinearly at the size of ``other`` where that is larger."""
    if image.shape == other.shape:
        return image
    return F.interpolate(image, other.shape[2:], mode='bilinear')
