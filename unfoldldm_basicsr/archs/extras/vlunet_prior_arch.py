"""VLU-Net with the latent prior and the OCFormer of UnfoldLDM: steered steps, restored detail.

VLU-Net (arXiv 2503.16930) unfolds in feature space; the degradation vector d steers each gradient
step. Its last stage, the refinement at full resolution, is read as one stage of UnfoldLDM (arXiv
2511.18152):

    u      = D-GDM(x, y; d)                      VLU-Net's gradient step, on features
    x^     = output(u) + y                       the same as an image
    P      = PI(x_gt)  or  f_theta(PI'(y, x^))   phase 1, or phase 2
    x~     = output(PMM(u; P)) + y               VLU-Net's proximal step, its blocks scaled by P
    x      = x~ + OCFormer's correction(x^, x~; P)

Nobody has published this combination; docs/method.md says what is chosen and why. What is added
starts as the identity, so a fresh network equals the plain VLU-Net of the same weights bit for bit.

Shapes: B batch, c colour channels, E length of d, C_p length of the prior.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from pydantic import Field, model_validator
from torch import Tensor

from unfoldldm_basicsr.archs.layers.hyperparameters import StateDict
from unfoldldm_basicsr.archs.layers.layout import to_quick_layout
from unfoldldm_basicsr.archs.layers.resample import crop_to, pad_to_multiple
from unfoldldm_basicsr.archs.layers.transformer import TransformerBlock
from unfoldldm_basicsr.archs.unfolding.latent_prior import (
    GENERATING,
    LatentPrior,
    PriorOptions,
)
from unfoldldm_basicsr.archs.unfolding.plug_in import OCFormerCorrector, inject_prior
from unfoldldm_basicsr.archs.unfolding.proximal_step_ocformer import Levels, OCFormerOptions
from unfoldldm_basicsr.archs.unfolding.stage import StageTrace, UnfoldTrace
from unfoldldm_basicsr.archs.vlunet_arch import VLUNet, VLUNetOptions
from unfoldldm_basicsr.common.declaration import Tuple, takes
from unfoldldm_basicsr.common.registration import register

Level = Literal[
    'encoder_level1', 'encoder_level2', 'encoder_level3', 'latent',
    'decoder_level3', 'decoder_level2', 'decoder_level1', 'refinement',
]  # fmt: skip
LEVELS = get_args(Level)


class VLUNetPriorOptions(VLUNetOptions, PriorOptions):
    """Options of the host and of the prior, and where the prior goes."""

    phase: Literal[1, 2, 'inference'] = 2
    """1 trains the prior encoder PI with everything but the diffusion; 2 trains PI' and the
    diffusion f_theta against the frozen PI, and the host jointly; inference is phase 2 without
    PI."""
    injection_levels: Tuple[Level] = ('refinement',)
    """Stages whose blocks are scaled by the prior; may be empty."""
    corrector: bool = True
    """Appends OCFormer, which corrects the output from x^, x~ and the prior."""
    corrector_dim: int = Field(32, gt=0, multiple_of=2)
    """Its width at half the resolution, even."""
    corrector_num_blocks: Levels = (1, 1, 1)
    """Its blocks on the three levels."""
    corrector_heads: Levels = (0, 0, 4)
    """Its attention heads on the three levels; 0: gated convolutions."""

    @model_validator(mode='after')
    def _effects(self) -> VLUNetPriorOptions:
        if not self.injection_levels and not self.corrector:
            raise ValueError(
                'injection_levels must not be empty with corrector: false, else the prior has '
                'no effect; use VLUNet.'
            )
        return self

    @property
    def of_corrector(self) -> OCFormerOptions:
        """What of this the corrector takes."""
        host, own = dict(self), {}
        for key in OCFormerOptions.model_fields:
            source = f'corrector_{key}' if f'corrector_{key}' in host else key
            if source in host:
                own[key] = host[source]
        return OCFormerOptions(**own)


@register(ARCH_REGISTRY)
@takes(VLUNetPriorOptions)
class VLUNetPrior(LatentPrior, VLUNet):
    """VLU-Net as the host of a latent prior, trained in two phases like UnfoldLDM.

    Weights of the host keep their released names; a file with exactly these (``host_keys``) starts
    phase 1, and everything else keeps its initial value.

    With ``injection_levels`` of the refinement alone the prior is generated on the way, from the
    image after the last gradient step. Blocks of earlier stages need it before there is one: then
    the host runs twice, first guided by the null prior and without gradient, and its output takes
    the place of x^ in the condition.

    Raises:
        ValueError: an unknown choice or an impossible combination.
    """

    def __init__(self, options: VLUNetPriorOptions) -> None:
        super().__init__(options)
        self.host_keys = frozenset(self.state_dict() if options.phase == 1 else ())
        self.injection_levels = frozenset(options.injection_levels)
        self.runs_twice = bool(self.injection_levels - {'refinement'})
        for level in LEVELS:  # in this order whatever the option file's, as saved states need it
            if level in self.injection_levels:
                denoiser = getattr(self, level).denoiser
                inject_prior(denoiser, TransformerBlock, options.prior_dim)
        self.corrector = OCFormerCorrector(options.of_corrector) if options.corrector else None
        channels = options.inp_channels
        self.init_prior(options, target_channels=channels, condition_channels=2 * channels)

    def forward(
        self,
        lq: Tensor,
        gt: Tensor | None = None,
        *,
        degradation: Tensor,
        mode: str = 'restore',
        prior_source: str | None = None,
        prior: Tensor | None = None,
        return_trace: bool = False,
    ) -> Tensor | UnfoldTrace:
        """Restores a batch; arguments as those of ``UnfoldLDM.forward``, and

        Args:
            degradation: (B, E) vector that chooses the prompts.
            return_trace: returns :class:`UnfoldTrace` of the last stage instead of the output;
                ``embedding`` is the degradation vector.

        Returns:
            (B, c, H, W), not clamped.

        Raises:
            ValueError: as UnfoldLDM, or ``degradation`` of another shape.
        """
        self.check_degradation(lq, degradation)
        y, size = pad_to_multiple(to_quick_layout(lq), self.size_multiple)
        if gt is not None:
            gt, _ = pad_to_multiple(gt, self.size_multiple)
        how = {'mode': mode, 'source': prior_source, 'given': prior, 'trace': return_trace}
        call = self.guidance(y, gt, **how)
        if call.gt is not None:
            call.target = self.target_prior([call.gt])
        trained = mode != 'warmup' and torch.is_grad_enabled()
        z = None
        if self.runs_twice:
            generates = call.source in GENERATING
            first = self._first_estimate(y, degradation) if generates else y
            z = self.stage_prior(call, 0, [y, first])
        with torch.set_grad_enabled(trained):
            u, x_hat = self._gradient_steps(y, degradation, z and z.guide)
        if z is None:
            z = self.stage_prior(call, 0, [y, x_hat.detach()])
        with torch.set_grad_enabled(trained):
            x = x_tilde = self._last_proximal_step(u, y, z.guide)
            if self.corrector is not None:
                x = self.corrector(x_hat, x_tilde, z.guide)
        x_hat, x_tilde, x = (crop_to(t, size) for t in (x_hat, x_tilde, x))
        if not return_trace:
            return x
        stage = StageTrace(x_hat, x_tilde, None, None, *z, x, degradation)
        return UnfoldTrace(x, (stage,), z.target)

    def _gradient_steps(
        self, y: Tensor, degradation: Tensor, prior: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Everything up to the last gradient step: its features (B, 2 dim, H, W), and x^."""

        def run(name: str, x: Tensor, y: Tensor) -> Tensor:
            guide = prior if name in self.injection_levels else None
            return getattr(self, name)(x, y, degradation, prior=guide)[0]

        u, y_features = self.unfold(y, run)
        u, _ = self.refinement.descend(u, y_features, degradation)
        return u, self.output(u) + y

    def _last_proximal_step(self, u: Tensor, y: Tensor, prior: Tensor) -> Tensor:
        """x~ from the features after the last gradient step."""
        guide = prior if 'refinement' in self.injection_levels else None
        return self.output(self.refinement.denoiser(u, guide)) + y

    @torch.no_grad()
    def _first_estimate(self, y: Tensor, degradation: Tensor) -> Tensor:
        """The host's own output under the null prior."""
        prior = self.null_prior.repeat(len(y), 1)
        u, _ = self._gradient_steps(y, degradation, prior)
        estimate = self._last_proximal_step(u, y, prior)
        # Up to 2025 torch's autocast would hand its copies of the weights, made without gradient,
        # to the second run (pytorch/pytorch#112583).
        torch.clear_autocast_cache()
        return estimate

    @classmethod
    def infer_kwargs(cls, state_dict: StateDict) -> dict:
        """Raises ValueError: not all of these arguments show in the weights, as VLU-Net's do."""
        raise ValueError(f'{cls.__name__} cannot be rebuilt from weights without metadata.')
