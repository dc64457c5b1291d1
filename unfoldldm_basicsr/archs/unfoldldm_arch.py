"""UnfoldLDM (arXiv 2511.18152): blind restoration by deep unfolding with a latent diffusion prior.

    x_0 = y;   for k = 1..K:   x_hat, x_tilde, W, M = MGDA(x_{k-1}, y)
                               P = PI(x_gt)  (Phase I)   or   DR-LDM(x_hat, x_tilde)  (Phase II)
                               x_k = OCFormer(x_hat, x_tilde, P)

A re-implementation: docs/method.md says what the paper leaves open and what is chosen here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from unfoldldm_basicsr.archs.layers.resample import pad_to_multiple
from unfoldldm_basicsr.archs.unfolding.gradient_step_mgda import MGDA, Estimates
from unfoldldm_basicsr.archs.unfolding.latent_prior import GENERATING, LatentPrior
from unfoldldm_basicsr.archs.unfolding.prior_source import NEEDS_GT
from unfoldldm_basicsr.archs.unfolding.proximal_step_ocformer import OCFormer
from unfoldldm_basicsr.archs.unfolding.stage import (
    StagePrior,
    StageTrace,
    UnfoldTrace,
    unfolding_stage,
)
from unfoldldm_basicsr.common.registration import register
from unfoldldm_basicsr.common.suggest import check_choice

PHASES = (1, 2, 'joint', 'inference')
PRIOR_INPUTS = {'gt': 1, 'gt_lq': 2, 'gt_mgda': 3}
COND_INPUTS = {'lq': 1, 'mgda': 2, 'mgda_lq': 3}


class _Plan(NamedTuple):
    """What the priors of one call depend on besides the stage's estimates."""

    source: str
    y: Tensor
    gt: Tensor | None
    target: Tensor | None
    given: Tensor | None
    null_mask: Tensor | None
    first: Tensor | None


@register(ARCH_REGISTRY)
class UnfoldLDM(LatentPrior, nn.Module):
    """Deep unfolding of blind proximal gradient descent with a generated prior.

    Args:
        phase: 1 trains the prior encoder PI with everything but the diffusion; 2 trains PI' and the
            diffusion f_theta against the frozen PI, and everything else jointly; 'joint' trains all
            from scratch (ablation); 'inference' is phase 2 without PI.
        inp_channels: colour channels c of input and output.
        dim: width d of OCFormer at full resolution.
        num_blocks: transformer blocks of its four levels.
        num_refinement_blocks: blocks after its decoder.
        heads: attention heads of its four levels.
        ffn_expansion_factor: hidden width of its feed-forward networks, in d.
        bias: biases in its convolutions.
        LayerNorm_type: 'WithBias' or 'BiasFree'.
        num_stages: K.
        share_stages: all stages share MGDA and OCFormer but for three scalars each.
        mgda_dim: width d_m of MGDA.
        mgda_stride: MGDA works at 1/stride of the resolution (1, 2, 4 or 8).
        mgda_blocks: VSS blocks in D and in D^T each.
        mgda_trunk_blocks: VSS blocks in the trunk.
        mgda_d_state: state size N of the selective scan.
        mgda_expand: inner width of the VSS blocks, in d_m.
        mgda_op: 'vss', or 'conv' (no scan, equal cost).
        mgda_mode: 'both', 'holistic', 'decomposed' or 'none' (no gradient step).
        embed_dim: length d_e of the degradation embedding.
        wm_mode: factors W, M as 'affinity' (dense), 'lowrank' or 'banded'.
        wm_rank: rank of the scores, and of 'lowrank'.
        wm_radius: half-width of 'banded', in pixels.
        use_ldm: False replaces the prior by one learned vector and builds no diffusion.
        prior_dim: C_p.
        prior_width: channels of PI and PI'.
        prior_encoder_blocks: residual blocks of PI and PI'.
        prior_input: what PI sees: 'gt', 'gt_lq' or 'gt_mgda'.
        cond_input: what PI' sees: 'mgda', 'lq' or 'mgda_lq'.
        cond_detach: no gradient from PI' into MGDA.
        prior_stages: 'all' (a prior for each stage) or 'first' (the first stage's for all).
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
        dra: attention between the estimates: 'hat_q', 'tilde_q' or 'self'.
        pdr: prior modulation: 'gate', 'film' or 'none'.
        prior_in_attn: the prior also scales the attention's input.
        use_checkpoint: recompute each block of every stage for its gradients instead of keeping its
            activations: K stages need far less memory in training, the same result.

    Raises:
        ValueError: an unknown choice or an impossible combination.
    """

    size_multiple = 8
    tiling_changes_result = True  # prior, embedding and channel attention are global

    def __init__(
        self,
        *,
        phase: int | str = 2,
        inp_channels: int = 3,
        dim: int = 32,
        num_blocks: Sequence[int] = (2, 3, 3, 4),
        num_refinement_blocks: int = 2,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expansion_factor: float = 2.66,
        bias: bool = False,
        LayerNorm_type: str = 'WithBias',
        num_stages: int = 3,
        share_stages: bool = True,
        mgda_dim: int = 32,
        mgda_stride: int = 2,
        mgda_blocks: int = 2,
        mgda_trunk_blocks: int = 1,
        mgda_d_state: int = 16,
        mgda_expand: int = 2,
        mgda_op: str = 'vss',
        mgda_mode: str = 'both',
        embed_dim: int = 32,
        wm_mode: str = 'affinity',
        wm_rank: int = 8,
        wm_radius: int = 32,
        use_ldm: bool = True,
        prior_dim: int = 64,
        prior_width: int = 64,
        prior_encoder_blocks: int = 5,
        prior_input: str = 'gt',
        cond_input: str = 'mgda',
        cond_detach: bool = True,
        prior_stages: str = 'all',
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
        dra: str = 'hat_q',
        pdr: str = 'gate',
        prior_in_attn: bool = True,
        use_checkpoint: bool = False,
    ):
        super().__init__()
        check_choice('phase', phase, PHASES)
        check_choice('prior_input', prior_input, PRIOR_INPUTS)
        check_choice('cond_input', cond_input, COND_INPUTS)
        check_choice('prior_stages', prior_stages, ('all', 'first'))
        check_choice('mgda_stride', mgda_stride, (1, 2, 4, 8))
        if num_stages < 1:
            raise ValueError(f'num_stages must be at least 1, got {num_stages}.')
        if cond_input == 'lq' and not cond_detach:
            raise ValueError("cond_detach: false has no effect with cond_input: 'lq'.")
        uses_prior = pdr != 'none' or prior_in_attn
        if use_ldm and not uses_prior:
            raise ValueError(
                "pdr: 'none' with prior_in_attn: false leaves the prior without effect; "
                'set use_ldm: false for this ablation.'
            )
        self.num_stages, self.prior_stages = num_stages, prior_stages
        self.prior_input, self.cond_input, self.cond_detach = prior_input, cond_input, cond_detach

        def mgda(stages: int) -> MGDA:
            return MGDA(
                inp_channels,
                num_stages=stages,
                dim=mgda_dim,
                stride=mgda_stride,
                num_blocks=mgda_blocks,
                num_trunk_blocks=mgda_trunk_blocks,
                d_state=mgda_d_state,
                expand=mgda_expand,
                embed_dim=embed_dim,
                op=mgda_op,
                mode=mgda_mode,
                wm_mode=wm_mode,
                wm_rank=wm_rank,
                wm_radius=wm_radius,
                use_checkpoint=use_checkpoint,
            )

        def ocformer(stages: int) -> OCFormer:
            return OCFormer(
                inp_channels,
                num_stages=stages,
                prior_dim=prior_dim,
                dim=dim,
                num_blocks=num_blocks,
                num_refinement_blocks=num_refinement_blocks,
                heads=heads,
                ffn_expansion_factor=ffn_expansion_factor,
                bias=bias,
                LayerNorm_type=LayerNorm_type,
                dra=dra,
                pdr=pdr,
                prior_in_attn=prior_in_attn,
                use_checkpoint=use_checkpoint,
            )

        if share_stages:
            self.mgda, self.ocformer = mgda(num_stages), ocformer(num_stages)
        else:
            self.mgda = nn.ModuleList(mgda(1) for _ in range(num_stages))
            self.ocformer = nn.ModuleList(ocformer(1) for _ in range(num_stages))

        self.init_prior(
            phase=phase,
            prior_dim=prior_dim,
            prior_width=prior_width,
            prior_encoder_blocks=prior_encoder_blocks,
            target_channels=PRIOR_INPUTS[prior_input] * inp_channels,
            condition_channels=COND_INPUTS[cond_input] * inp_channels,
            prior_source=prior_source,
            null_prior_prob=null_prior_prob,
            diffusion={
                'num_stages': num_stages,
                'num_timesteps': num_timesteps,
                'beta_start': beta_start,
                'beta_end': beta_end,
                'param': diffusion_param,
                'train_start': train_start,
                'infer_noise': infer_noise,
                'dim': denoiser_dim,
                'num_layers': denoiser_layers,
            },
            use_ldm=use_ldm,
            uses_prior=uses_prior,
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
        y, (height, width) = pad_to_multiple(lq, self.size_multiple)
        if gt is not None:
            gt, _ = pad_to_multiple(gt, self.size_multiple)
        source = 'given' if prior is not None else self.choose_source(prior_source, mode, gt)
        target = None
        wants_target = self.training or return_trace or source in NEEDS_GT
        if gt is not None and self.prior_input != 'gt_mgda' and wants_target:
            target = self._target(gt, y, None)
        null_mask = self.draw_null_mask(source, y)
        x, stages, first = y, [], None
        for k in range(self.num_stages):
            plan = _Plan(source, y, gt, target, prior, null_mask, first)
            shared = not isinstance(self.mgda, nn.ModuleList)
            mgda, ocformer = (
                (self.mgda, self.ocformer) if shared else (self.mgda[k], self.ocformer[k])
            )
            estimates, priors, x = unfolding_stage(
                *(mgda, partial(self._stage_prior, plan, k), ocformer),
                *(x, y, k if shared else 0, mode != 'warmup'),
            )
            if k == 0 and self.prior_stages == 'first':
                first = priors.generated
            if return_trace:
                x_hat, x_tilde, x_k = (
                    t[..., :height, :width] for t in (estimates.x_hat, estimates.x_tilde, x)
                )
                stages.append(
                    StageTrace(
                        x_hat, x_tilde, estimates.W, estimates.M, *priors, x_k, estimates.embedding
                    )
                )
        output = x[..., :height, :width]
        if not return_trace:
            return output
        target = stages[0].target
        if self.prior_input == 'gt_mgda' and target is not None:
            target = tuple(s.target for s in stages)
        return UnfoldTrace(output, tuple(stages), target)

    def _target(self, gt: Tensor, y: Tensor, estimates: Estimates | None) -> Tensor | None:
        """PI's prior (B, C_p)."""
        images = [gt]
        if self.prior_input == 'gt_lq':
            images.append(y)
        elif self.prior_input == 'gt_mgda':
            images += [estimates.x_hat, estimates.x_tilde]
        return self.target_prior(images)

    def _stage_prior(self, plan: _Plan, k: int, estimates: Estimates) -> StagePrior:
        """Guide, generated prior and target of stage ``k``."""
        target, generated = plan.target, None
        if self.prior_input == 'gt_mgda' and plan.gt is not None:
            target = self._target(plan.gt, plan.y, estimates)
        if plan.source in GENERATING:
            generated = plan.first
            if generated is None:
                images = self._condition_images(plan.y, estimates)
                generated = self.generated_prior(images, k, target)
        if plan.source == 'given':
            guide = plan.given if plan.given.ndim == 2 else plan.given[k]
        else:
            guide = self.choose_guide(
                plan.source,
                len(plan.y),
                target=target,
                generated=generated,
                null_mask=plan.null_mask,
            )
        return StagePrior(guide, generated, None if target is None else target.detach())

    def _condition_images(self, y: Tensor, estimates: Estimates) -> list[Tensor]:
        images = [] if self.cond_input == 'lq' else [estimates.x_hat, estimates.x_tilde]
        if self.cond_detach:
            images = [t.detach() for t in images]
        return images if self.cond_input == 'mgda' else [*images, y]
