"""Parts of UnfoldLDM for other networks: prior injection and the OCFormer as corrector.

    injection:   z -> block(z (1 + Lin(P)))                Lin starts at zero
    corrector:   x -> x + g (OCFormer(x_hat, x, P) - x)    g starts at zero

Both start as the identity, so a wrapped host gives its own output bit for bit until it is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .proximal_step_ocformer import OCFormer, PriorGate


class PriorInjection(nn.Module):
    """A host block whose input is scaled by the prior.

    The prior is set for the whole host by :func:`use_prior`, so the host's forward stays as it is.

    Args:
        block: host block, (B, dim, H, W) -> (B, dim, H, W).
        dim: its channels.
        prior_dim: C_p.
    """

    def __init__(self, block: nn.Module, dim: int, prior_dim: int):
        super().__init__()
        self.block = block
        self.gate = PriorGate(dim, prior_dim)
        nn.init.zeros_(self.gate.linear.weight)
        self.prior: Tensor | None = None

    def forward(self, z: Tensor, *args) -> Tensor:
        """Like the block; without a prior exactly the block."""
        return self.block(z if self.prior is None else self.gate(z, self.prior), *args)


def inject_prior(
    host: nn.Module, block_type: type[nn.Module] | tuple[type[nn.Module], ...], prior_dim: int
) -> list[PriorInjection]:
    """Replaces every ``block_type`` inside ``host`` by a :class:`PriorInjection` around it.

    The width of a block is read from its first normalisation or convolution weight.

    Raises:
        ValueError: the host contains no such block.
    """
    found = []
    for parent in list(host.modules()):
        if isinstance(parent, PriorInjection):
            continue
        for name, child in list(parent.named_children()):
            if isinstance(child, block_type):
                dim = next(p for p in child.parameters() if p.ndim == 1).shape[0]
                injected = PriorInjection(child, dim, prior_dim)
                setattr(parent, name, injected)
                found.append(injected)
    if not found:
        raise ValueError(f'{type(host).__name__} contains no block of type {block_type}.')
    return found


@contextmanager
def use_prior(injections: Iterable[PriorInjection], prior: Tensor) -> Iterator[None]:
    """``with use_prior(injections, prior):`` guides the host by ``prior`` (B, C_p) inside."""
    injections = list(injections)
    for injection in injections:
        injection.prior = prior
    try:
        yield
    finally:
        for injection in injections:
            injection.prior = None


class OCFormerCorrector(nn.Module):
    """OCFormer after a host: corrects its output x from its gradient-step estimate and the prior.

    Args:
        ocformer: arguments of :class:`OCFormer`.
    """

    def __init__(self, **ocformer):
        super().__init__()
        self.ocformer = OCFormer(**ocformer)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x_hat: Tensor, x: Tensor, prior: Tensor) -> Tensor:
        """x_hat, x (B, c, h, w), sides multiples of 8; prior (B, C_p) -> corrected x."""
        return x + self.gain * (self.ocformer(x_hat, x, prior) - x)
