"""What a network may offer to models, tiling and restoring, and what is assumed where it does not.

Every network of BasicSR restores; one that does more says so through the names below.
``contract_of`` is the only place that looks for them.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

MEMORY_ONLY = ('use_checkpoint',)  # arguments of constructors that change no result
NEW_IN_PHASE2 = ('condition_encoder', 'denoiser')  # modules that it adds to UnfoldLDM
# what the networks of this field call the number of their input channels
CHANNEL_ARGUMENTS = ('inp_channels', 'img_channel', 'in_channels', 'in_chans', 'num_in_ch')


@dataclass(frozen=True)
class Contract:
    """What one network offers; the defaults are those of networks of somebody else.

    ``forward(lq) -> Tensor``, (B, C, H, W) in [0, 1] to the same size, is all that is demanded.
    Of its keywords these are known: ``gt``, ``degradation`` (B, embed_dim), ``mode``,
    ``prior_source`` and ``return_trace``, which gives a tuple with ``output`` and ``stages``.
    A class method ``infer_kwargs(state_dict)`` gives constructor arguments from the shapes of
    weights, or a ValueError (see :mod:`..weights.networks`).
    """

    inputs: frozenset[str]  # names of the arguments of forward
    size_multiple: int = 1  # tiles start at multiples of this many pixels; it pads by itself
    tiling_changes_result: bool = False  # it uses statistics of the whole image
    phase: int | str | None = None  # 1 (prior from the ground truth), 2, 'joint' or 'inference'
    use_ldm: bool = True  # Phase I is followed by one that generates the prior
    embed_dim: int | None = None  # length of the vector degradation
    # method that gives the named (name, parameter) pairs that are trained, scheduled and clipped
    # together; each trainable parameter in one group
    parameter_groups: Callable[[], Mapping] | None = None
    # of a degradation embedding
    needs_label: bool | None = None  # the image alone does not tell its vector; none: gives none
    trained_jointly: bool = True  # with the network; else it is frozen beside it
    save_backbone: bool | None = None  # its state dict holds its backbone; None: it has none

    @property
    def lacks_prior(self) -> bool:
        """Whether its prior comes from the ground truth, as only a later phase makes its own."""
        return self.phase == 1 and self.use_ldm

    @property
    def takes_degradation(self) -> bool:
        """Whether the network is steered by a degradation vector."""
        return 'degradation' in self.inputs

    @property
    def can_trace(self) -> bool:
        """Whether it returns its stages, and can do without its prior."""
        return self.inputs >= {'return_trace', 'prior_source'}


def contract_of(net: nn.Module | type[nn.Module]) -> Contract:
    """What ``net`` or its class offers, inside of DataParallel or ``torch.compile`` too."""
    net = unwrapped(net)
    names = (field.name for field in fields(Contract) if hasattr(net, field.name))
    offered = {name: getattr(net, name) for name in names}
    return Contract(**{'inputs': frozenset(inspect.signature(net.forward).parameters), **offered})


def unwrapped(net: nn.Module) -> nn.Module:
    """The network inside DataParallel or ``torch.compile``, which take any arguments."""
    net = net.module if isinstance(net, nn.DataParallel) else net
    return getattr(net, '_orig_mod', net)


def needed_inputs(inputs: Mapping[str, inspect.Parameter]) -> list[str]:
    """Of the arguments of ``forward``, those that it needs beside the image, the first."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [n for n, p in [*inputs.items()][1:] if p.default is p.empty and p.kind in kinds]


def run_on_trial(net: nn.Module, image: Tensor) -> Tensor:
    """Runs a network to measure it, with a vector of zeros where it takes one."""
    contract, extra = contract_of(net), {}
    if contract.takes_degradation:
        extra['degradation'] = image.new_zeros(len(image), contract.embed_dim)
    check_inputs(net, extra, restores=False)
    return result_of(net(image, **extra))


def result_of(output: Tensor | Sequence[Tensor]) -> Tensor:
    """The restored image: of several outputs the last, as in NAFNet's trainer."""
    return output[-1] if isinstance(output, list | tuple) else output


def check_inputs(net: nn.Module, given: Collection[str], *, restores: bool = True) -> None:
    """ValueError where ``forward`` needs more than the image and what is ``given``; with
    ``restores`` also for a degradation embedding.
    """
    net = unwrapped(net)
    if restores and contract_of(net).needs_label is not None:
        raise ValueError(
            f'{type(net).__name__} tells degradations apart and restores nothing: take net_g_*.pth '
            'of the training of the network that it steers (VLUNetModel).'
        )
    needed = needed_inputs(inspect.signature(net.forward).parameters)
    if lacking := [name for name in needed if name not in given]:
        raise ValueError(
            f'{type(net).__name__} also needs {", ".join(lacking)} with every image, which the '
            'model of its training gives: take that (python -m unfoldldm_basicsr.test), or '
            f'Restorer(...).restore(image, {lacking[0]}=...).'
        )


def image_channels(cls: type[nn.Module], arguments: Mapping[str, Any]) -> int:
    """Channels of the images that a network built with ``arguments`` takes; 3 where unknown."""
    parameters = inspect.signature(cls).parameters.values()
    known = {p.name: p.default for p in parameters if p.default is not p.empty} | {**arguments}
    return next((known[name] for name in CHANNEL_ARGUMENTS if name in known), 3)


def check_tile(tile: int, overlap: int, size_multiple: int = 1) -> tuple[int, int]:
    """Side and overlap of tiles in pixels, aligned to the multiple; ValueError: no progress."""
    if overlap < 0:
        raise ValueError(f'The tile overlap must be 0 or more pixels, got {overlap}.')
    aligned_tile = tile // size_multiple * size_multiple
    aligned_overlap = -(-overlap // size_multiple) * size_multiple
    if aligned_tile <= aligned_overlap:
        raise ValueError(
            f'A tile of {tile} pixels is not larger than its overlap of {overlap} pixels'
            f' (both aligned to {size_multiple}): use a tile of at least'
            f' {aligned_overlap + size_multiple} pixels or a smaller overlap.'
        )
    return aligned_tile, aligned_overlap
