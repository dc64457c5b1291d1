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

from collections.abc import Sequence

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor

from unfoldldm_basicsr.archs.layers.hyperparameters import StateDict
from unfoldldm_basicsr.archs.layers.layout import to_quick_layout
from unfoldldm_basicsr.archs.layers.resample import crop_to, pad_to_multiple
from unfoldldm_basicsr.archs.layers.transformer import TransformerBlock
from unfoldldm_basicsr.archs.unfolding.latent_prior import GENERATING, LatentPrior
from unfoldldm_basicsr.archs.unfolding.plug_in import OCFormerCorrector, inject_prior
from unfoldldm_basicsr.archs.unfolding.prior_source import NEEDS_GT
from unfoldldm_basicsr.archs.unfolding.stage import StagePrior, StageTrace, UnfoldTrace
from unfoldldm_basicsr.archs.vlunet_arch import VLUNet
from unfoldldm_basicsr.common.registration import register
from unfoldldm_basicsr.common.suggest import check_choice, did_you_mean

PHASES = (1, 2, 'inference')
LEVELS = (
    'encoder_level1', 'encoder_level2', 'encoder_level3', 'latent',
    'decoder_level3', 'decoder_level2', 'decoder_level1', 'refinement',
)  # fmt: skip


@register(ARCH_REGISTRY)
class VLUNetPrior(LatentPrior, VLUNet):
    """VLU-Net as the host of a latent prior, trained in two phases like UnfoldLDM.

    Weights of the host keep their released names; a file with exactly these (``host_keys``) starts
    phase 1, and everything else keeps its initial value.

    With ``injection_levels`` of the refinement alone the prior is generated on the way, from the
    image after the last gradient step. Blocks of earlier stages need it before there is one: then
    the host runs twice, first guided by the null prior and without gradient, and its output takes
    the place of x^ in the condition.

    Args:
        phase: 1 trains the prior encoder PI with everything but the diffusion; 2 trains PI' and the
            diffusion f_theta against the frozen PI, and the host jointly; 'inference' is phase 2
            without PI.
        de_dim: number of learned prompts, one per degradation.
        inp_channels: channels c of the input.
        out_channels: channels of the output; equals ``inp_channels``.
        dim: channels of the first level, even and at least 10.
        num_blocks: transformer blocks of the levels 1 to 4.
        num_refinement_blocks: blocks of the refinement stage.
        heads: attention heads of the levels 1 to 4.
        ffn_expansion_factor: hidden width of the feed-forward parts over their channels.
        bias: biases in the convolutions of blocks, fusions and output.
        LayerNorm_type: ``WithBias`` or ``BiasFree``.
        embed_dim: length E of the degradation vector (512 for CLIP ViT-B-32).
        injection_levels: stages whose blocks are scaled by the prior; may be empty.
        corrector: appends OCFormer, which corrects the output from x^, x~ and the prior.
        corrector_dim: its width at full resolution, even.
        corrector_num_blocks: its blocks on the levels 1 to 4.
        corrector_num_refinement_blocks: its blocks after the decoder.
        corrector_heads: its attention heads on the levels 1 to 4. Expansion, biases and
            normalisation are those of the host.
        prior_dim: C_p.
        prior_width: channels of PI and PI'.
        prior_encoder_blocks: residual blocks of PI and PI'.
        prior_source: prior in eval mode: 'auto' (generated; in phase 1 oracle with gt and null
            without), 'generated', 'oracle' (needs gt), 'null', 'shuffled' (the batch neighbour's).
        null_prior_prob: share of training samples that see the null prior in phase 1.
        num_timesteps: T.
        beta_start, beta_end: ends of the noise schedule.
        diffusion_param: f_theta predicts 'x0' or 'eps'.
        train_start: the chain starts in training from 'qsample' (noised target) or 'noise'.
        infer_noise: start at inference: 'fixed' (stored), 'random' or 'zero'.
        denoiser_dim: hidden width of f_theta.
        denoiser_layers: residual layers of f_theta.
        use_checkpoint: recomputes every gradient step and block for its gradients instead of
            keeping its activations: less memory in training, the same result.

    Raises:
        ValueError: an unknown choice or an impossible combination.
    """

    def __init__(
        self,
        *,
        phase: int | str = 2,
        de_dim: int = 7,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expansion_factor: float = 2.66,
        bias: bool = False,
        LayerNorm_type: str = 'WithBias',
        embed_dim: int = 512,
        injection_levels: Sequence[str] = ('refinement',),
        corrector: bool = True,
        corrector_dim: int = 32,
        corrector_num_blocks: Sequence[int] = (2, 3, 3, 4),
        corrector_num_refinement_blocks: int = 2,
        corrector_heads: Sequence[int] = (1, 2, 4, 8),
        prior_dim: int = 64,
        prior_width: int = 64,
        prior_encoder_blocks: int = 5,
        prior_source: str = 'auto',
        null_prior_prob: float = 0.1,
        num_timesteps: int = 3,
        beta_start: float = 0.1,
        beta_end: float = 0.99,
        diffusion_param: str = 'x0',
        train_start: str = 'qsample',
        infer_noise: str = 'fixed',
        denoiser_dim: int = 128,
        denoiser_layers: int = 2,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__(
            de_dim=de_dim,
            inp_channels=inp_channels,
            out_channels=out_channels,
            dim=dim,
            num_blocks=num_blocks,
            num_refinement_blocks=num_refinement_blocks,
            heads=heads,
            ffn_expansion_factor=ffn_expansion_factor,
            bias=bias,
            LayerNorm_type=LayerNorm_type,
            embed_dim=embed_dim,
            use_checkpoint=use_checkpoint,
        )
        check_choice('phase', phase, PHASES)
        for level in injection_levels:
            if level not in LEVELS:
                hint = did_you_mean(level, LEVELS)
                raise ValueError(f"injection_levels: no stage '{level}'.{hint}")
        if not injection_levels and not corrector:
            raise ValueError(
                'injection_levels: [] with corrector: false leaves the prior without effect; '
                'use VLUNet.'
            )
        self.host_keys = frozenset(self.state_dict() if phase == 1 else ())
        self.injection_levels = frozenset(injection_levels)
        self.runs_twice = bool(self.injection_levels - {'refinement'})
        for level in LEVELS:  # in this order whatever the option file's, as saved states need it
            if level in self.injection_levels:
                inject_prior(getattr(self, level).denoiser, TransformerBlock, prior_dim)
        self.corrector = None
        if corrector:
            self.corrector = OCFormerCorrector(
                channels=inp_channels,
                prior_dim=prior_dim,
                dim=corrector_dim,
                num_blocks=corrector_num_blocks,
                num_refinement_blocks=corrector_num_refinement_blocks,
                heads=corrector_heads,
                ffn_expansion_factor=ffn_expansion_factor,
                bias=bias,
                LayerNorm_type=LayerNorm_type,
                use_checkpoint=use_checkpoint,
            )
        self.init_prior(
            phase=phase,
            prior_dim=prior_dim,
            prior_width=prior_width,
            prior_encoder_blocks=prior_encoder_blocks,
            target_channels=inp_channels,
            condition_channels=2 * inp_channels,
            prior_source=prior_source,
            null_prior_prob=null_prior_prob,
            diffusion={
                'num_stages': 1,
                'num_timesteps': num_timesteps,
                'beta_start': beta_start,
                'beta_end': beta_end,
                'param': diffusion_param,
                'train_start': train_start,
                'infer_noise': infer_noise,
                'dim': denoiser_dim,
                'num_layers': denoiser_layers,
            },
        )

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
        """Restores a batch.

        Args:
            lq: (B, c, H, W) in [0, 1], any H and W.
            gt: (B, c, H, W); training, and the oracle prior.
            degradation: (B, E) vector that chooses the prompts.
            mode: 'restore', or 'warmup' (phase 2 with gt): the target prior guides, only PI' and
                f_theta receive gradients.
            prior_source: overrides the constructor's.
            prior: (B, C_p) to use instead of any source.
            return_trace: returns :class:`UnfoldTrace` of the last stage instead of the output;
                ``embedding`` is the degradation vector.

        Returns:
            (B, c, H, W), not clamped.

        Raises:
            ValueError: an unknown mode or source, one that lacks gt, PI or the diffusion, or
                ``degradation`` of another shape.
        """
        self.check_degradation(lq, degradation)
        y, size = pad_to_multiple(to_quick_layout(lq), self.size_multiple)
        if gt is not None:
            gt, _ = pad_to_multiple(gt, self.size_multiple)
        source = 'given' if prior is not None else self.choose_source(prior_source, mode, gt)
        target = None
        if gt is not None and (self.training or return_trace or source in NEEDS_GT):
            target = self.target_prior([gt])
        null_mask = self.draw_null_mask(source, y)

        def priors_from(estimate: Tensor) -> StagePrior:
            generated = None
            if source in GENERATING:
                generated = self.generated_prior([y, estimate.detach()], 0, target)
            known = {'target': target, 'generated': generated, 'null_mask': null_mask}
            guide = self.choose_guide(source, len(y), **known) if prior is None else prior
            return StagePrior(guide, generated, None if target is None else target.detach())

        trained = mode != 'warmup' and torch.is_grad_enabled()
        priors = None
        if self.runs_twice:
            needs_estimate = source in GENERATING
            priors = priors_from(self._first_estimate(y, degradation) if needs_estimate else y)
        with torch.set_grad_enabled(trained):
            u, x_hat = self._gradient_steps(y, degradation, priors and priors.guide)
        if priors is None:
            priors = priors_from(x_hat)
        with torch.set_grad_enabled(trained):
            x = x_tilde = self._last_proximal_step(u, y, priors.guide)
            if self.corrector is not None:
                x = self.corrector(x_hat, x_tilde, priors.guide)
        x_hat, x_tilde, x = (crop_to(t, size) for t in (x_hat, x_tilde, x))
        if not return_trace:
            return x
        stage = StageTrace(x_hat, x_tilde, None, None, *priors, x, degradation)
        return UnfoldTrace(x, (stage,), priors.target)

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
