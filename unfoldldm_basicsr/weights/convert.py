"""Weight files made from others: exports of checkpoints, and released VLU-Net files.

The released training wrote Lightning checkpoints, whose ``state_dict`` holds the network under
``net.`` and, under ``model_degradation.``, CLIP with its adapters; the released fine-tuning wrote
``clip_tuned.pth`` with the adapters alone. All arguments are read back from the shapes.

Order of the classes. The released training counts noise15, noise25, noise50, rain, haze, blur,
low light; the notebook that tuned CLIP lists its texts with haze before rain. Converted files use
the first order for both: the order of the texts changes the order of CLIP's scores only, never the
degradation vector. The number of prompts of a network is another matter: 7, or 5 in some of the
released networks for a single task.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unfoldldm_basicsr.common.contract import contract_of
from unfoldldm_basicsr.common.files import write_bytes_atomic
from unfoldldm_basicsr.weights import checkpoint as files
from unfoldldm_basicsr.weights.conditioning import degradation_meta, read_record
from unfoldldm_basicsr.weights.loading import StateDictDiff
from unfoldldm_basicsr.weights.networks import build_network, construct, registered_networks

NETWORK, EMBEDDING = 'net.', 'model_degradation.'
CLIP = {'type': 'CLIPDegradationEmbedding', 'model_name': 'ViT-B-32'}  # the released one
RELEASED_BACKBONE = 'laion2b_s34b_b79k'  # tag of the ViT-B-32 that the released adapters belong to
BACKBONE = ('clip_model',)  # module of CLIP, which the released adapters come without
ACCEPTED = (
    'Known are: Lightning checkpoints of VLU-Net (state_dict with net.* and, as a rule,'
    ' model_degradation.*), and clip_tuned.pth of its CLIP fine-tuning (learnable_params).'
)


class Exported(NamedTuple):
    """What :func:`export_checkpoint` did: number of values, names left out."""

    network: str
    param_key: str
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
        params = _halved(params)
    content = {'params': params, files.ARCH_KEY: meta}
    steered = contract.takes_degradation
    told = steered or contract.needs_label is not None  # an embedding's own file has a record, too
    record = read_record(checkpoint) if told else None
    if record is not None:
        embedding = _halved(record.state_dict) if half else record.state_dict
        option = {'type': record.arch['type'], **record.arch['kwargs']}
        content[files.DEGRADATION_KEY] = degradation_meta(record.classes, option, params=embedding)
    write_bytes_atomic(target, files.file_bytes(target, content))
    values = sum(v.numel() for v in [*params.values(), *(embedding.values() if steered else ())])
    dropped = tuple(sorted({k.split('.')[0] for k in checkpoint.state_dict if k not in params}))
    return Exported(meta['type'], checkpoint.param_key or 'bare state dict', values, dropped)


def _halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.half() if v.is_floating_point() else v for k, v in state.items()}


# ---- released VLU-Net files ------------------------------------------------------------------


class Converted(NamedTuple):
    """What :func:`convert_checkpoint` wrote; ``embedding`` says what makes the vectors."""

    network: str
    kwargs: dict[str, Any]
    classes: tuple[str, ...]
    embedding: str | None
    path: Path


def convert_checkpoint(
    source: str | Path,
    target: str | Path | None = None,
    *,
    classes: Sequence[str] | None = None,
    unsafe_pickle: bool = False,
    overwrite: bool = False,
) -> Converted:
    """Converts a Lightning checkpoint or ``clip_tuned.pth``; the new file is loaded strictly before
    it is written, by default as ``NAME_basicsr.pth`` beside the source.

    ``classes`` names the degradations by index (default: the released seven); ``unsafe_pickle``
    also reads files that run code while they are read.

    Raises:
        FileNotFoundError, FileExistsError: no such source; the target exists, or is the source.
        CheckpointError: another kind of file, a damaged one, or one that holds code.
    """
    source = Path(source)
    target = source.with_name(f'{source.stem}_basicsr.pth') if target is None else Path(target)
    files.refuse_target(source, target, overwrite=overwrite)
    if classes is not None and len({*classes, ''}) != len(classes) + 1:
        raise files.CheckpointError(
            f'--classes: {", ".join(classes)} has an empty name or one twice.'
        )
    try:
        content = files.load_content(source, unsafe_pickle=unsafe_pickle)
    except files.UnsafePickleError as error:
        raise files.UnsafePickleError(
            f'{error} Lightning keeps such objects beside the weights; if you trust whoever made'
            f' the file, --unsafe-pickle reads it once and the converted file is free of them.'
        ) from error
    parts = content if isinstance(content, Mapping) else {}
    state_dict = parts.get('state_dict')
    if files.is_state_dict(parts.get('learnable_params')):
        params = _without(files.plain_names(parts['learnable_params']), '')
        files.check_finite(source, params)
        _, option = _embedding(source, params, classes)
        new, about = {'params': params, files.ARCH_KEY: files.network_meta(option)}, None
    elif files.is_state_dict(state_dict) and any(key.startswith(NETWORK) for key in state_dict):
        new, about = _lightning(source, state_dict, classes)
    else:
        found = ', '.join(sorted(map(str, parts))[:8]) or type(content).__name__
        raise files.CheckpointError(
            f'{source}: not a file to convert (it holds {found}). {ACCEPTED} Others load as they'
            f' are: unfoldldm restore -w, or path.pretrain_network_g of an option file.'
        )
    write_bytes_atomic(target, files.file_bytes(target, new))
    meta, record = new[files.ARCH_KEY], new.get(files.DEGRADATION_KEY)
    names = () if record is None else tuple(record['classes'])
    return Converted(meta['type'], meta['kwargs'], names, about, target)


def _lightning(
    path: Path, state_dict: Mapping[str, Tensor], classes: Sequence[str] | None
) -> tuple[dict[str, Any], str | None]:
    """The new file's content, and what makes the degradation vectors."""
    files.check_finite(path, state_dict)
    strangers = [key for key in state_dict if not key.startswith((NETWORK, EMBEDDING))]
    if strangers:  # a network with parts of its own would be converted without them
        raise files.CheckpointError(
            f'{path}: its state_dict also holds {", ".join(strangers[:3])}, which no released'
            f' VLU-Net has. {ACCEPTED}'
        )
    network = _without(state_dict, NETWORK)
    kind = registered_networks()['VLUNet']
    try:
        meta = files.network_meta({'type': kind.__name__, **kind.infer_kwargs(network)})
    except (ValueError, KeyError, IndexError) as error:
        raise files.CheckpointError(f'{path}: {error}') from error
    build_network(files.Checkpoint(path, 'state_dict', network, meta))  # all must fit
    content, parts = {'params': network, files.ARCH_KEY: meta}, _without(state_dict, EMBEDDING)
    if not parts:
        if classes is not None:
            raise files.CheckpointError(
                f'{path}: holds no {EMBEDDING}*, so there is nothing that --classes could name.'
            )
        return content, None
    names, option = _embedding(path, parts, classes)
    content[files.DEGRADATION_KEY] = degradation_meta(names, option, params=parts)
    if option['pretrained'] is None:
        return content, 'CLIP and its adapters'
    return content, f'adapters; CLIP itself is had by its tag {RELEASED_BACKBONE}'


def _embedding(
    path: Path, params: dict[str, Tensor], classes: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Names of the degradations (default: all that the released adapters were tuned on), and
    ``type`` and arguments of the embedding; a backbone that is not stored is had by its tag.
    """
    kind = registered_networks()[CLIP['type']]
    stored = kind.merge_backbones(params)
    names = tuple(kind.released_texts if classes is None else classes)
    texts = [kind.released_texts.get(n, f'image with {n.replace("_", " ")}') for n in names]
    option = {**CLIP, 'class_texts': texts, 'pretrained': None}
    with torch.device('meta'):
        net = construct(files.network_meta(option), str(path))
    if diff := StateDictDiff(net, params, new_modules=() if stored else BACKBONE):
        message = f'{path}: its CLIP is not {CLIP["model_name"]}: {diff}. {ACCEPTED}'
        raise files.CheckpointError(message)
    return names, option if stored else {**option, 'pretrained': RELEASED_BACKBONE}


def _without(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries below ``prefix``, without it, gradients, and the rest of shared storages."""
    return {
        key[len(prefix) :]: value.detach().clone()
        for key, value in state_dict.items()
        if key.startswith(prefix)
    }
