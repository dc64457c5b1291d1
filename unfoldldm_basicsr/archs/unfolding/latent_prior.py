"""The latent prior of UnfoldLDM as a part of any network: encoders, diffusion, null prior.

    P     = PI(x_gt)                     phases 1 and 2: the target, from the ground truth
    P_hat = f_theta(PI'(estimates))      phase 2 and inference: generated
    guide = P, P_hat, or the null prior  what the restoration sees

Networks that take it in keep the same names of modules, so the training of both phases, the loading
of phase 1 into phase 2 and the export work for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unfoldldm_basicsr.archs.unfolding.prior_diffusion import DiffusionOptions, PriorDiffusion
from unfoldldm_basicsr.archs.unfolding.prior_encoder import EncoderOptions, PriorEncoder
from unfoldldm_basicsr.archs.unfolding.prior_source import NEEDS_GT, PriorSource, resolve_source
from unfoldldm_basicsr.archs.unfolding.stage import StagePrior
from unfoldldm_basicsr.common.contract import NEW_IN_PHASE2
from unfoldldm_basicsr.ops.image_statistics import image_statistic

GENERATING = ('generated', 'shuffled', 'target', 'joint')  # sources for which the diffusion runs


class PriorOptions(EncoderOptions, DiffusionOptions):
    """Options of a network guided by a latent prior."""

    phase: Literal[1, 2, 'joint', 'inference'] = 2
    """1 trains the prior encoder PI with everything but the diffusion; 2 trains PI' and the
    diffusion f_theta against the frozen PI, and everything else jointly; joint trains all from
    scratch (ablation); inference is phase 2 without PI."""
    prior_source: PriorSource = 'auto'
    """Prior in evaluation: auto (generated; in phase 1 oracle with gt and null without), generated,
    oracle (needs gt), null, or shuffled (the batch neighbour's)."""
    null_prior_prob: float = Field(0.1, ge=0, lt=1)
    """Share of training samples that see the null prior in phase 1."""


@dataclass
class Guidance:
    """What the priors of one forward pass share.

    Attributes:
        source: where the guide comes from, see :func:`.prior_source.resolve_source`, or 'given'.
        y: (B, c, H, W) observation.
        gt: (B, c, H, W) ground truth, None where PI is not to see it.
        given: (B, C_p) or (K, B, C_p) guide to use as it is.
        null_mask: (B, 1), 1 for the samples that see the null prior instead.
        target: PI's prior, as soon as it is known.
        generated: a generated prior to use for all further stages.
    """

    source: str
    y: Tensor
    gt: Tensor | None
    given: Tensor | None
    null_mask: Tensor | None
    target: Tensor | None = None
    generated: Tensor | None = None


class LatentPrior:
    """Base of networks guided by a latent prior, beside ``nn.Module``.

    Attributes:
        phase: 1, 2, 'joint' or 'inference'.
        use_ldm: False: the learned null prior is the only one.
    """

    def init_prior(
        self,
        options: PriorOptions,
        *,
        target_channels: int,
        condition_channels: int,
        condition_scale: int = 1,
        num_stages: int = 1,
        use_ldm: bool = True,
        uses_prior: bool = True,
    ) -> None:
        """Builds what the phase needs; to be called at the end of ``__init__``.

        Args:
            options: see :class:`PriorOptions`.
            target_channels: channels of all images that PI sees together.
            condition_channels: channels of all images that PI' sees together.
            condition_scale: how much smaller they are than the observation.
            num_stages: K.
            use_ldm: False builds neither encoder nor diffusion.
            uses_prior: False builds no null prior either.
        """
        self.phase, self.use_ldm, self.uses_prior = options.phase, use_ldm, uses_prior
        self.target_window = options.prior_window
        self.condition_window = options.prior_window // condition_scale
        self.prior_source, self.null_prior_prob = options.prior_source, options.null_prior_prob
        if uses_prior:
            self.null_prior = nn.Parameter(torch.zeros(options.prior_dim))
            trained = not use_ldm or (self.phase in (1, 'joint') and self.null_prior_prob > 0)
            self.null_prior.requires_grad_(trained)
        if use_ldm and self.phase != 'inference':
            self.prior_encoder = PriorEncoder(target_channels, options)
            self.prior_encoder.requires_grad_(self.phase != 2)
        if use_ldm and self.phase != 1:
            self.condition_encoder = PriorEncoder(condition_channels, options)
            self.denoiser = PriorDiffusion(options, num_stages=num_stages)

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
        """Decides what guides a forward pass.

        Args:
            y, gt: (B, c, H, W) observation and ground truth.
            mode: 'restore' or 'warmup'.
            source: overrides the constructor's ``prior_source``.
            given: a guide to use instead of any source.
            trace: the target is wanted even where it guides nothing.

        Raises:
            ValueError: see :func:`.prior_source.resolve_source`.
        """
        if given is not None:
            source = 'given'
        elif not self.use_ldm:
            source = 'null'
        else:
            default = 'auto' if self.training else self.prior_source
            source = resolve_source(source or default, self.phase, mode, gt, self.training)
        null_mask = None
        if self.training and source in ('oracle', 'joint'):
            null_mask = torch.rand(len(y), 1, device=y.device) < self.null_prior_prob
            null_mask = null_mask.to(y.dtype)
        shown = gt if self.training or trace or source in NEEDS_GT else None
        return Guidance(source, y, shown, given, null_mask)

    def target_prior(self, images: Sequence[Tensor]) -> Tensor | None:
        """PI's prior (B, C_p); without gradient when PI is the frozen teacher."""
        if not self.use_ldm or self.phase == 'inference':
            return None
        with torch.set_grad_enabled(self.phase != 2 and torch.is_grad_enabled()):
            return self.prior_encoder(torch.cat(images, 1), self.target_window)

    def stage_prior(self, call: Guidance, k: int, images: Sequence[Tensor]) -> StagePrior:
        """The priors of stage ``k`` (from 0); PI' sees ``images``, each (B, c, H, W).

        Raises:
            ValueError: 'shuffled' with a single image.
        """
        target = None if call.target is None else call.target.detach()
        generated = call.generated
        if generated is None and call.source in GENERATING:
            condition = self.condition_encoder(torch.cat(images, 1), self.condition_window)
            generated = image_statistic(self.denoiser(condition, k, target))
        return StagePrior(self._guide(call, k, generated), generated, target)

    def _guide(self, call: Guidance, k: int, generated: Tensor | None) -> Tensor | None:
        if call.source == 'given':
            return call.given if call.given.ndim == 2 else call.given[k]
        if call.source == 'null':
            return self.null_prior.repeat(len(call.y), 1) if self.uses_prior else None
        if call.source == 'generated':
            return generated
        if call.source == 'shuffled':
            if len(call.y) < 2:
                raise ValueError("prior_source 'shuffled' needs a batch of at least two images.")
            return generated.roll(1, 0)
        guide = call.target
        if call.source == 'joint':  # half of the samples see PI's, or PI would learn nothing
            half = (torch.rand(len(guide), 1, device=guide.device) < 0.5).to(guide)
            guide = half * guide + (1 - half) * generated
        if call.null_mask is not None and self.null_prior.requires_grad:
            guide = guide + call.null_mask * (self.null_prior - guide)
        return guide
