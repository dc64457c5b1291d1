"""Parts of UnfoldLDM for other networks: prior injection and the OCFormer as corrector.

    injection:   z <- z + attn(norm1(z) (1 + Lin(P)))        both Lin start at zero
                 z <- z + ffn(norm2(z) (1 + Lin'(P)))
    corrector:   x = x~ + conv(F(x^, x~, P)) + g (x^ - x~)    conv and g start at zero

Both start as the identity, so a wrapped host gives its own output bit for bit until it is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unfoldldm_basicsr.archs.unfolding.proximal_step_ocformer import (
    OCFormer,
    OCFormerOptions,
    PriorGate,
)

PARTS = ('norm1', 'attn', 'norm2', 'ffn')


class PriorInjection(nn.Module):
    """A pre-normalised transformer block of a host, whose both parts see features scaled by P.

    The block's parts keep their names, so the host's weights still load. The prior comes with the
    call, or is set for a whole host by :func:`use_prior`, whose forward then stays as it is.

    Args:
        block: host block with the parts ``norm1``, ``attn``, ``norm2``, ``ffn``.
        dim: its channels.
        prior_dim: C_p.

    Raises:
        ValueError: the block has other parts.
    """

    def __init__(self, block: nn.Module, dim: int, prior_dim: int):
        super().__init__()
        names = tuple(name for name, _ in block.named_children())
        if set(names) != set(PARTS):
            raise ValueError(
                f'{type(block).__name__} has the parts {", ".join(names)}; the prior can be '
                f'injected into blocks of {", ".join(PARTS)}.'
            )
        for name in PARTS:
            setattr(self, name, getattr(block, name))
        self.attn_gate, self.ffn_gate = PriorGate(dim, prior_dim), PriorGate(dim, prior_dim)
        for gate in (self.attn_gate, self.ffn_gate):
            nn.init.zeros_(gate.linear.weight)
        self.prior: Tensor | None = None

    def forward(self, z: Tensor, prior: Tensor | None = None) -> Tensor:
        """z (B, dim, H, W), prior (B, C_p) -> like z; without a prior exactly the block."""
        prior = self.prior if prior is None else prior
        a = self.norm1(z)
        z = z + self.attn(a if prior is None else self.attn_gate(a, prior))
        b = self.norm2(z)
        return z + self.ffn(b if prior is None else self.ffn_gate(b, prior))


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
    """``with use_prior(injections, prior):`` guides the host by ``prior`` (B, C_p) inside.

    A host that recomputes its blocks (``use_checkpoint``) needs its backward pass inside as well.
    """
    injections = list(injections)
    for injection in injections:
        injection.prior = prior
    try:
        yield
    finally:
        for injection in injections:
            injection.prior = None


class OCFormerCorrector(nn.Module):
    """OCFormer after a host: corrects its output x~ from its gradient step x^ and the prior.

    The host's output stays the base; the share g = tanh(s) of x^ starts at zero.

    Args:
        options: see :class:`OCFormerOptions`.
    """

    def __init__(self, options: OCFormerOptions):
        super().__init__()
        self.ocformer = OCFormer(options)
        self.share = nn.Parameter(torch.zeros(()))
        nn.init.zeros_(self.ocformer.output.weight)
        nn.init.zeros_(self.ocformer.output.bias)

    def forward(self, x_hat: Tensor, x_tilde: Tensor, prior: Tensor | None) -> Tensor:
        """x_hat, x_tilde (B, c, h, w), sides multiples of 8; prior (B, C_p) -> corrected x."""
        detail = self.ocformer.detail(x_hat, x_tilde, prior)
        return x_tilde + detail + self.share.tanh() * (x_hat - x_tilde)
