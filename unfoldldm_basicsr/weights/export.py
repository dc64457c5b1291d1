"""Training checkpoint -> file with exactly the weights that restoring needs."""

from pathlib import Path
from typing import NamedTuple

from unfoldldm_basicsr.common.contract import contract_of
from unfoldldm_basicsr.common.files import write_bytes_atomic
from unfoldldm_basicsr.weights import checkpoint as files
from unfoldldm_basicsr.weights.conditioning import degradation_meta, read_record
from unfoldldm_basicsr.weights.networks import build_network, construct


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
    half: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Writes the averaged weights (or ``param_key``) under ``params``, with the metadata.

    UnfoldLDM of Phase II becomes phase 'inference': the prior encoder PI, which only training
    needs, is left out. What makes the degradation vectors of VLU-Net is kept. The source must fit
    strictly; ``half`` keeps float16 values. ``opt_file`` is for a source without metadata.

    Raises:
        FileNotFoundError, CheckpointError: the weights cannot be used, such as those of Phase I,
            which cannot restore without ground truth.
        FileExistsError: the target exists, or is the source.
        ValueError: the option file cannot be read.
    """
    source, target = Path(source), Path(target)
    checkpoint = files.read_checkpoint(source, param_key)
    files.refuse_target(source, target, overwrite=overwrite)
    network, meta = build_network(checkpoint, opt_file=opt_file)
    contract, params, embedding = contract_of(network), network.state_dict(), {}
    if contract.lacks_prior:
        raise files.CheckpointError(
            f'{source}: holds Phase I weights, whose prior comes from the ground truth; train'
            f' Phase II from them and export that.'
        )
    if contract.phase is not None:
        meta = {**meta, 'kwargs': {**meta['kwargs'], 'phase': 'inference'}}
        kept = construct(meta, str(source)).state_dict()
        params = {key: params[key] for key in kept}
    if half:
        params = {k: v.half() if v.is_floating_point() else v for k, v in params.items()}
    content = {'params': params, files.ARCH_KEY: meta}
    record = read_record(checkpoint) if contract.takes_degradation else None
    if record is not None:
        embedding = record.state_dict
        option = {'type': record.arch['type'], **record.arch['kwargs']}
        content[files.DEGRADATION_KEY] = degradation_meta(record.classes, option, params=embedding)
    write_bytes_atomic(target, files.file_bytes(target, content))
    return Exported(
        network=meta['type'],
        param_key=checkpoint.param_key or 'bare state dict',
        bytes_before=source.stat().st_size,
        bytes_after=target.stat().st_size,
        values=sum(value.numel() for value in [*params.values(), *embedding.values()]),
        dropped=tuple(sorted({k.split('.')[0] for k in checkpoint.state_dict if k not in params})),
    )
