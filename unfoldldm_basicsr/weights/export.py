"""Training checkpoint -> file with exactly the weights that restoring needs."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from unfoldldm_basicsr.common.contract import contract_of
from unfoldldm_basicsr.common.files import write_bytes_atomic
from unfoldldm_basicsr.weights.checkpoint import (
    ARCH_KEY,
    DEGRADATION_KEY,
    CheckpointError,
    read_checkpoint,
)
from unfoldldm_basicsr.weights.conditioning import exported_record
from unfoldldm_basicsr.weights.networks import build_network

RESTORING_PHASE = 'inference'


class Exported(NamedTuple):
    """What :func:`export_checkpoint` did: sizes in bytes, numbers of values, names left out."""

    network: str
    param_key: str
    bytes_before: int
    bytes_after: int
    values: int
    dropped: tuple[str, ...]


def export_checkpoint(
    source: str | Path,
    target: str | Path,
    *,
    opt_file: str | Path | None = None,
    param_key: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Writes the averaged weights of a checkpoint under ``params``, with the metadata.

    UnfoldLDM of Phase II becomes phase 'inference': the prior encoder PI, which only training
    needs, is left out. What makes the degradation vectors of VLU-Net is kept. The new file is
    loaded strictly into the network before it is written.

    Args:
        source: training checkpoint.
        target: file to write; it appears complete or not at all.
        opt_file: option file, for a source without metadata.
        param_key: which weights; default ``params_ema`` where present.
        overwrite: replace an existing target.

    Raises:
        FileNotFoundError, CheckpointError: see :func:`build_from_checkpoint`; CheckpointError also
            for Phase I weights, which cannot restore without ground truth.
        FileExistsError: the target exists, or is the source.
    """
    source, target = Path(source), Path(target)
    checkpoint = read_checkpoint(source, param_key=param_key)
    if target.exists() and target.samefile(source):
        raise FileExistsError(f'{target}: is the file to export; choose another name.')
    if target.exists() and not overwrite:
        raise FileExistsError(f'{target}: exists; choose another name or pass --overwrite.')
    if target.is_dir() or target.suffix != '.pth':
        raise CheckpointError(f'{target}: the name of the exported file must end in .pth.')

    network, meta = build_network(checkpoint, opt_file=opt_file)
    phase = contract_of(network).phase
    if phase == 1:
        raise CheckpointError(
            f'{source}: holds Phase I weights, whose prior comes from the ground truth; train'
            f' Phase II from them and export that.'
        )
    if phase is not None:
        meta = {**meta, 'kwargs': {**meta['kwargs'], 'phase': RESTORING_PHASE}}
        checkpoint = dataclasses.replace(checkpoint, arch=meta)
        network, meta = build_network(checkpoint, drop_unexpected=True)

    state_dict = network.state_dict()
    buffer = io.BytesIO()
    content = {'params': state_dict, ARCH_KEY: meta}
    record = exported_record(checkpoint)
    if record is not None:
        content[DEGRADATION_KEY] = record
    torch.save(content, buffer)
    write_bytes_atomic(target, buffer.getvalue())
    return Exported(
        network=meta['type'],
        param_key=checkpoint.param_key or 'bare state dict',
        bytes_before=source.stat().st_size,
        bytes_after=target.stat().st_size,
        values=_values(state_dict) + (_values(record['embedding']['params']) if record else 0),
        dropped=tuple(
            sorted({k.split('.')[0] for k in checkpoint.state_dict if k not in state_dict})
        ),
    )


def _values(state_dict: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for value in state_dict.values())
