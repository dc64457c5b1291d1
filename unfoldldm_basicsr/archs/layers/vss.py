"""Vision state-space block: a token mixer over the whole image followed by a gated FFN.

    F <- s1 * F + SS2D(LN(F)),      F <- s2 * F + FFN(LN(F)),      s1, s2 per channel, start at 1

SS2D, with d_i = expand * C:

    [u, z] = W_in F,  u <- SiLU(DWConv3x3(u))
    (dt, B, C)_k = W_k u        for the four scan directions k; dt_k of rank R is expanded to d_i
    y = sum_k selective_scan_k(u, dt_k, A_k, B_k, C_k, D_k)
    out = W_out (LN(y) * SiLU(z))

The projections act on single pixels, so they run once on the image and the scan op takes its
inputs in pixel order. Sources: VMamba (arXiv 2401.10166) for SS2D and its initialisation, MambaIR
(arXiv 2402.15648) for the block with scaled skips.

Shapes: B batch, C channels, H x W positions. Blocks take and return (B, C, H, W), token mixers
(B, H, W, C), which is the same memory when the tensor is in the channels-last format.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from unfoldldm_basicsr.archs.layers.feed_forward import GatedFeedForward
from unfoldldm_basicsr.archs.layers.norm import LayerNorm2d, widened
from unfoldldm_basicsr.ops.ss2d.op import NUM_DIRECTIONS, scan_flops, ss2d_scan


def _exempt_from_decay(parameter: nn.Parameter) -> nn.Parameter:
    """Marks a parameter that weight decay would pull towards a meaningless value."""
    parameter._no_weight_decay = True
    return parameter


def ss2d_macs(dim: int, *, d_state: int, expand: int) -> float:
    """Multiply-accumulates of :class:`SS2D` per position (two flops of the scan = one)."""
    inner, rank = expand * dim, math.ceil(dim / 16)
    projections = dim * 2 * inner + 9 * inner + inner * dim
    selection = NUM_DIRECTIONS * inner * (rank + 2 * d_state + rank)
    return projections + selection + scan_flops(1, inner, d_state) / 2


class SS2D(nn.Module):
    """Selective scan of an image in four directions with input-dependent parameters.

    ``dim`` is C, ``d_state`` N; cost is linear in it above a floor. The step sizes have rank
    R = ceil(dim / 16).
    """

    def __init__(self, dim: int, *, d_state: int = 16, expand: int = 2) -> None:
        super().__init__()
        rank = math.ceil(dim / 16)
        inner, k = expand * dim, NUM_DIRECTIONS
        self.d_state, self.dt_rank = d_state, rank
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.x_proj = nn.Parameter(torch.empty(k, rank + 2 * d_state, inner))
        self.dt_proj = nn.Parameter(torch.empty(k, inner, rank))
        self.dt_bias = _exempt_from_decay(nn.Parameter(torch.empty(k, inner)))
        self.A_log = _exempt_from_decay(nn.Parameter(torch.empty(k, inner, d_state)))
        self.D = _exempt_from_decay(nn.Parameter(torch.empty(k, inner)))
        self.norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self._init_selection()

    @torch.no_grad()
    def _init_selection(self) -> None:
        inner = self.x_proj.shape[2]
        nn.init.uniform_(self.x_proj, -(inner**-0.5), inner**-0.5)
        nn.init.uniform_(self.dt_proj, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        # softplus(dt_bias) log-uniform in [1e-3, 1e-1], through softplus^-1(v) = v + log(1-e^-v).
        low, high = math.log(1e-3), math.log(1e-1)
        step = torch.empty_like(self.dt_bias).uniform_(low, high).exp_().clamp_(min=1e-4)
        self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))
        self.A_log.copy_(torch.arange(1, self.d_state + 1, dtype=torch.float32).log())
        self.D.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        # B H W C -> B C H W is a view in channels-last format, and so is the way back.
        u = F.silu(self.conv(u.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return self.out_proj(self.norm(self.scan(u)) * F.silu(z))

    def scan(self, u: Tensor) -> Tensor:
        """Scan of u with the parameters projected from it, (B, H, W, d_i) -> (B, H, W, d_i)."""
        selection = F.linear(u, rearrange(self.x_proj, 'k s c -> (k s) c'))
        selection = rearrange(selection, 'b h w (k s) -> b h w k s', k=NUM_DIRECTIONS)
        dt, b, c = selection.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        # One matrix product per direction: 4 BHW R @ 4 R d_i -> 4 BHW d_i, seen as B H W 4 d_i.
        dt = rearrange(dt, 'b h w k r -> k (b h w) r') @ self.dt_proj.mT
        dt = rearrange(dt, 'k (b h w) c -> b h w k c', b=u.shape[0], h=u.shape[1])
        A = -torch.exp(widened(self.A_log))
        return ss2d_scan(u, dt, A, b, c, self.D, self.dt_bias)


class ConvTokenMixer(nn.Module):
    """Convolutional counterpart of :class:`SS2D` at equal cost: what is non-local worth?

        [u, z] = W_in F,     out = W_out (DWConv7x7(u) * SiLU(z))

    The inner width follows from the multiply-accumulates of the SS2D of these arguments; being a
    whole number, it matches them within 5 % from dim = 16 on.
    """

    def __init__(self, dim: int, *, d_state: int = 16, expand: int = 2) -> None:
        super().__init__()
        budget = ss2d_macs(dim, d_state=d_state, expand=expand)
        inner = max(1, round(budget / (3 * dim + 49)))
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv = nn.Conv2d(inner, inner, 7, padding=3, groups=inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = self.conv(u.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.out_proj(u * F.silu(z))


class VSSBlock(nn.Module):
    """Token mixer ('vss' or 'conv') and gated FFN, each behind a LayerNorm and beside a scaled
    skip.
    """

    def __init__(self, dim: int, *, d_state: int = 16, expand: int = 2, mixer: str = 'vss') -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(dim)
        kind = SS2D if mixer == 'vss' else ConvTokenMixer
        self.mixer = kind(dim, d_state=d_state, expand=expand)
        self.scale1 = nn.Parameter(torch.ones(dim))
        self.norm2 = LayerNorm2d(dim)
        self.ffn = GatedFeedForward(dim, expansion=2.0)
        self.scale2 = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in any memory format -> (B, C, H, W) in channels-last format."""
        x = x.contiguous(memory_format=torch.channels_last)
        mixed = self.mixer(self.norm1(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = torch.addcmul(mixed, x, self.scale1.view(-1, 1, 1))
        return torch.addcmul(self.ffn(self.norm2(x)), x, self.scale2.view(-1, 1, 1))
