"""Networks built from the metadata of a weight file, an option file, or the weights alone."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unfoldldm_basicsr.common.option_files import read_option_file
from unfoldldm_basicsr.common.registration import SECOND_NAME, registered
from unfoldldm_basicsr.common.suggest import did_you_mean
from unfoldldm_basicsr.weights import checkpoint as files
from unfoldldm_basicsr.weights.loading import StateDictDiff


def build_network(
    checkpoint: files.Checkpoint, *, opt_file: str | Path | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a checkpoint with its weights, on the CPU in eval mode, and its metadata, in
    place of which the ``network_g`` of an option file is used where one is given.

    Raises CheckpointError: network unknown, arguments or weights that do not fit; ValueError: the
    option file cannot be read.
    """
    if opt_file is not None:
        section = read_option_file(opt_file).get('network_g')
        if not isinstance(section, Mapping) or 'type' not in section:
            raise files.CheckpointError(
                f"{opt_file}: no section 'network_g' with a 'type'; give a training or test option"
                f' file of the network.'
            )
        meta, where = files.network_meta(section), f'{opt_file} (network_g)'
    elif checkpoint.arch is not None:
        meta, where = checkpoint.arch, f'{checkpoint.path} ({files.ARCH_KEY})'
    else:
        meta, where = infer_network(checkpoint), f'{checkpoint.path} (inferred)'
    net = construct(meta, where)
    if diff := StateDictDiff(net, checkpoint.state_dict):
        raise files.CheckpointError(
            f'{checkpoint.path}: the weights do not fit {meta["type"]}: {diff}. '
            'Give the option file it was trained with: --opt file.yml.'
        )
    net.load_state_dict(checkpoint.state_dict)
    return net.eval().requires_grad_(False), meta


def registered_networks() -> dict[str, type[nn.Module]]:
    """All networks by name, those of BasicSR included."""
    from basicsr.archs import ARCH_REGISTRY  # imports BasicSR's own networks as well

    return dict(iter(ARCH_REGISTRY))


def construct(meta: Mapping[str, Any], where: str) -> nn.Module:
    """A registered network with the arguments of ``meta``; ``where`` they stand, for errors."""
    networks, kind = registered_networks(), meta['type']
    # also by the second name that it has beside a class of a project
    names = (kind, kind.removesuffix(SECOND_NAME.format('')))
    cls = next(filter(None, (registered(networks.items(), name) for name in names)), None)
    if cls is None:
        raise files.CheckpointError(
            f'{where}: the network {kind!r} is not registered; import the package that defines it'
            f' first (--import PACKAGE).{did_you_mean(kind, networks)}'
        )
    signature = inspect.signature(cls)
    try:
        signature.bind(**meta['kwargs'])
    except TypeError as error:
        known = signature.parameters
        bad = next((k for k in meta['kwargs'] if k not in known), None)
        hint = did_you_mean(bad, known) if bad else ''
        raise files.CheckpointError(
            f'{where}: {kind} of this version does not take these arguments ({error}; written by'
            f' version {meta["version"]}).{hint}'
        ) from error
    return cls(**meta['kwargs'])


def infer_network(checkpoint: files.Checkpoint) -> dict[str, Any]:
    """Asks every registered network that can tell its arguments from weights (``infer_kwargs``).

    Raises CheckpointError where none knows these weights.
    """
    nearest = ''
    for kind, cls in registered_networks().items():
        # a subclass with the same weights is named by an option file only
        if 'infer_kwargs' not in vars(cls):
            continue
        try:
            kwargs = cls.infer_kwargs(checkpoint.state_dict)
            with torch.device('meta'):
                net = cls(**kwargs)
        except (KeyError, ValueError, IndexError):  # not its weights
            continue
        diff = StateDictDiff(net, checkpoint.state_dict)
        if not diff:
            return files.network_meta({'type': kind, **kwargs})
        nearest = f' The nearest is {kind}: {diff}.'
    if any(key.startswith('net.') for key in checkpoint.state_dict):
        raise files.CheckpointError(
            f'{checkpoint.path}: is a Lightning checkpoint. {files.CONVERT.format(checkpoint.path)}'
        )
    raise files.CheckpointError(
        f'{checkpoint.path}: does not say which network it belongs to, and the weights fit none'
        f' that can be recognised.{nearest} Give the option file it was trained with (--opt'
        f' FILE), or write it into the weights once: unfoldldm export -w WEIGHTS --opt FILE -o NEW.'
    )
