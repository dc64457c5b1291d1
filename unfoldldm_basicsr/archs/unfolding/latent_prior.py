"""The latent prior of UnfoldLDM as a part of any network: encoders, diffusion, null prior.

    P     = PI(x_gt)                     phases 1 and 2: the target, from the ground truth
    P_hat = f_theta(PI'(estimates))      phase 2 and inference: generated
    guide = P, P_hat, or the null prior  what the restoration sees

Networks that take it in keep the same names of modules, so the training of both phases, the loading
of phase 1 into phase 2 and the export work for all of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unfoldldm_basicsr.archs.unfolding.prior_diffusion import PriorDiffusion
from unfoldldm_basicsr.archs.unfolding.prior_encoder import PriorEncoder
from unfoldldm_basicsr.archs.unfolding.prior_source import PRIOR_SOURCES, resolve_source
from unfoldldm_basicsr.common.suggest import check_choice
from unfoldldm_basicsr.ops.image_statistics import image_statistic

GENERATING = ('generated', 'shuffled', 'target', 'joint')  # sources for which the diffusion runs
NEW_IN_PHASE2 = ('condition_encoder', 'denoiser')


class LatentPrior:
    """Base of networks guided by a latent prior, beside ``nn.Module``.

    Attributes:
        phase: 1, 2, 'joint' or 'inference'.
        use_ldm: False: the learned null prior is the only one.
        prior_source: source in evaluation mode.
        null_prior_prob: share of training samples that see the null prior in phase 1.
    """

    def init_prior(
        self,
        *,
        phase: int | str,
        prior_dim: int,
        prior_width: int,
        prior_encoder_blocks: int,
        target_channels: int,
        condition_channels: int,
        prior_source: str,
        null_prior_prob: float,
        diffusion: dict[str, Any],
        use_ldm: bool = True,
        uses_prior: bool = True,
    ) -> None:
        """Builds what the phase needs; to be called at the end of ``__init__``.

        Args:
            phase: 1 builds PI; 2 PI (frozen), PI' and f_theta; 'joint' all three, trained;
                'inference' PI' and f_theta.
            prior_dim: C_p.
            prior_width: channels of PI and PI'.
            prior_encoder_blocks: residual blocks of PI and PI'.
            target_channels: channels of all images that PI sees together.
            condition_channels: channels of all images that PI' sees together.
            prior_source: see :mod:`.prior_source`.
            null_prior_prob: in [0, 1).
            diffusion: arguments of :class:`PriorDiffusion` but for ``prior_dim``.
            use_ldm: False builds none of the three.
            uses_prior: False builds no null prior either.

        Raises:
            ValueError: an unknown choice or a value out of range.
        """
        check_choice('prior_source', prior_source, PRIOR_SOURCES)
        if prior_dim < 2:
            raise ValueError(f'prior_dim must be at least 2, got {prior_dim}.')
        if not 0 <= null_prior_prob < 1:
            raise ValueError(f'null_prior_prob must be in [0, 1), got {null_prior_prob}.')
        self.phase, self.use_ldm, self.uses_prior = phase, use_ldm, uses_prior
        self.prior_source, self.null_prior_prob = prior_source, null_prior_prob
        if uses_prior:
            self.null_prior = nn.Parameter(torch.zeros(prior_dim))
            trained = not use_ldm or (phase in (1, 'joint') and null_prior_prob > 0)
            self.null_prior.requires_grad_(trained)
        encoder = {'width': prior_width, 'num_blocks': prior_encoder_blocks}
        if use_ldm and phase != 'inference':
            self.prior_encoder = PriorEncoder(target_channels, prior_dim, **encoder)
            self.prior_encoder.requires_grad_(phase != 2)
        if use_ldm and phase != 1:
            self.condition_encoder = PriorEncoder(condition_channels, prior_dim, **encoder)
            self.denoiser = PriorDiffusion(prior_dim, **diffusion)

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Named trainable parameters: 'restoration', and 'prior' (PI' and f_theta)."""
        groups = {'restoration': [], 'prior': []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                is_prior = name.split('.')[0] in NEW_IN_PHASE2
                groups['prior' if is_prior else 'restoration'].append((name, parameter))
        return groups

    def choose_source(self, requested: str | None, mode: str, gt: Tensor | None) -> str:
        """The source of this call's guide; see :func:`.prior_source.resolve_source`."""
        if not self.use_ldm:
            return 'null'
        default = 'auto' if self.training else self.prior_source
        return resolve_source(requested or default, self.phase, mode, gt, self.training)

    def draw_null_mask(self, source: str, y: Tensor) -> Tensor | None:
        """(B, 1), 1 for the samples that see the null prior instead; None where there is none."""
        if not self.training or source not in ('oracle', 'joint'):
            return None
        return (torch.rand(len(y), 1, device=y.device) < self.null_prior_prob).to(y.dtype)

    def target_prior(self, images: list[Tensor]) -> Tensor | None:
        """PI's prior (B, C_p); without gradient when PI is the frozen teacher."""
        if not self.use_ldm or self.phase == 'inference':
            return None
        with torch.set_grad_enabled(self.phase != 2 and torch.is_grad_enabled()):
            return self.prior_encoder(torch.cat(images, 1))

    def generated_prior(self, images: list[Tensor], k: int, target: Tensor | None) -> Tensor:
        """f_theta's prior (B, C_p) of stage ``k`` from what PI' sees."""
        condition = self.condition_encoder(torch.cat(images, 1))
        prior = self.denoiser(condition, k, None if target is None else target.detach())
        return image_statistic(prior)

    def choose_guide(
        self,
        source: str,
        batch: int,
        *,
        target: Tensor | None = None,
        generated: Tensor | None = None,
        null_mask: Tensor | None = None,
    ) -> Tensor | None:
        """The prior (B, C_p) that guides the restoration.

        Raises:
            ValueError: 'shuffled' with a single image.
        """
        if source == 'null':
            guide = self.null_prior.repeat(batch, 1) if self.uses_prior else None
        elif source == 'generated':
            guide = generated
        elif source == 'shuffled':
            if batch < 2:
                raise ValueError("prior_source 'shuffled' needs a batch of at least two images.")
            guide = generated.roll(1, 0)
        elif source == 'joint':
            # Half of the samples see PI's prior, or PI would learn nothing.
            half = (torch.rand(batch, 1, device=target.device) < 0.5).to(target)
            guide = half * target + (1 - half) * generated
        else:
            guide = target
        if null_mask is not None and self.null_prior.requires_grad:
            guide = guide + null_mask * (self.null_prior - guide)
        return guide
