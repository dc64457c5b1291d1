"""Weight files of all kinds, read without running anything in them.

A file of this package is BasicSR's format plus one key::

    {'params': state_dict, 'params_ema': state_dict,
     'arch': {'type': 'UnfoldLDM', 'kwargs': {...}, 'version': '0.2.0'}}

A network steered by a degradation vector has one key more, see :mod:`.conditioning`. BasicSR's own
``load_network`` ignores the extra keys. A ``.safetensors`` file has the state dict, and the two
keys as JSON in its header; tensors of the degradation vectors begin with ``degradation.``.
"""

import io
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor

from unfoldldm_basicsr.common.errors import RunFailure, first_line
from unfoldldm_basicsr.common.files import refuse_existing
from unfoldldm_basicsr.common.suggest import did_you_mean

ARCH_KEY = 'arch'
# (type, version that wrote a file) -> what its default arguments were, where others are it today
EARLIER_DEFAULTS = {('UnfoldLDM', '0.1.0'): {'share_stages': True}}
DEGRADATION_KEY = 'degradation'
# keys in option files that a file may lack; as in BasicSR it then gives what it has
MAY_LACK = (None, 'params_ema')
# where weights lie, the averaged ones first: BasicSR, StyleGAN and its kin, Lightning, PyTorch
PARAM_KEYS = ('params_ema', 'g_ema', 'params', 'state_dict', 'model_state_dict', 'model')
CONVERT = 'Released VLU-Net files are converted once: unfoldldm convert {}'
SAFETENSORS = '.safetensors'
# What downloads leave behind instead of weights, by how it begins.
_OTHER_KINDS = {
    (b'<!doctype', b'<html', b'<?xml'): (
        'is a web page, not weights; the link led to a page about the file. Download the file'
        ' itself (on GitHub "raw", on Hugging Face "resolve" in the address).'
    ),
    b'version https://git-lfs': 'is a pointer of Git LFS, not weights; fetch them: git lfs pull.',
}


class CheckpointError(RunFailure, ValueError):
    """A weight file that cannot be used; the message names the file, the cause and the remedy."""

    on_all_ranks = False  # each has its own disk


class UnsafePickleError(CheckpointError):
    """A file that would run code while it is loaded."""


@dataclass(frozen=True)
class Checkpoint:
    """What :func:`read_checkpoint` found in a file."""

    path: Path
    param_key: str | None  # None: the file is a bare state dict
    state_dict: dict[str, Tensor] = field(repr=False)
    arch: dict[str, Any] | None  # {'type', 'kwargs', 'version'}, None without metadata
    degradation: Any = field(default=None, repr=False)  # as stored; read by conditioning.py
    classes: tuple[str, ...] = ()  # of a degradation embedding, in the order of their indices


def read_checkpoint(
    path: str | Path, param_key: str | None = None, *, fallback: bool = False
) -> Checkpoint:
    """Reads a weight file without executing anything in it.

    Args:
        path: a file of this package, of BasicSR (``params``, ``params_ema``), a released file with
            one of :data:`PARAM_KEYS`, a bare state dict, or ``.safetensors``; names without what
            DistributedDataParallel, ``torch.compile`` and ``AveragedModel`` add.
        param_key: which weights; default the averaged ones where present.
        fallback: whether a file without ``param_key`` may give the weights that it has.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: truncated, damaged, holds code, or holds no weights.
    """
    path = Path(path)
    content = load_content(path)
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f'{path}: holds {type(content).__name__} instead of a dictionary with weights.'
        )
    if is_state_dict(content):
        present = {None: content}
    else:
        keys = (param_key, *PARAM_KEYS)
        present = {k: v for k in keys if is_state_dict(v := content.get(k))}
    if not present:
        raise CheckpointError(_no_weights(path, content))
    if not (param_key is None or param_key in present or fallback):
        hint = ' It holds the weights as they are: name no key (~).'
        hint = hint if None in present else did_you_mean(param_key, present)
        raise CheckpointError(f'{path}: no {param_key!r}.{hint}')
    chosen = next(iter(present))
    state_dict = plain_names(present[chosen])
    check_finite(path, state_dict)
    meta = checked_meta(path, content.get(ARCH_KEY))
    return Checkpoint(path, chosen, state_dict, meta, content.get(DEGRADATION_KEY))


def load_content(path: Path, *, unsafe_pickle: bool = False) -> Any:
    """What ``torch.load`` makes of a file that was checked for damage first.

    Raises FileNotFoundError, CheckpointError: no such file, no weights, damaged, or it holds code
    and ``unsafe_pickle`` is not set.
    """
    if path.is_dir():
        raise CheckpointError(f'{path}: is a folder; give the .pth file inside it.')
    if not path.is_file():
        endings = ('.pth', '.pt', '.ckpt', '.bin', SAFETENSORS)
        near = [p.name for p in path.parent.glob('*.*') if p.suffix in endings]
        raise FileNotFoundError(f'{path}: no such weight file.{did_you_mean(path.name, near)}')
    with open(path, 'rb') as file:
        start = file.read(200)
    for marks, kind in _OTHER_KINDS.items():
        if start.lstrip().lower().startswith(marks):
            raise CheckpointError(f'{path}: {kind}')
    try:
        if start[8:9] == b'{' or path.suffix == SAFETENSORS:
            return _safetensors_content(path)
        if start.startswith(b'PK\3\4'):
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()  # torch checks no checksums
            if broken is not None:
                raise zipfile.BadZipFile(f'checksum of {broken} is wrong')
        return torch.load(path, map_location='cpu', weights_only=not unsafe_pickle)
    except ModuleNotFoundError as error:  # only where any class may be loaded
        raise CheckpointError(
            f'{path}: holds objects of the package {error.name!r}, which is not installed:'
            f' install it and try again.'
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        code = re.search(r'(?:GLOBAL|class|global:?) ([\w.]+\.[\w.]+)', str(error))
        if code is None or not isinstance(error, pickle.UnpicklingError):
            cause = str(error).rpartition('WeightsUnpickler error: ')[2]  # before: unsafe advice
            raise CheckpointError(
                f'{path}: truncated or damaged, or no PyTorch file ({first_line(cause or error)}).'
                f' Copy or download it again.'
            ) from error
        raise UnsafePickleError(
            f'{path}: refused, it holds more than weights ({code.group(1)}), and loading such a'
            f' file can run code. Ask for a file with tensors only, or, if you trust its source,'
            f" save its state dict again: torch.save({{'params': state_dict}}, 'clean.pth')."
        ) from error


def refuse_target(source: Path, target: Path, *, overwrite: bool) -> None:
    """Raises FileExistsError: the weight file to write exists, or is ``source``; CheckpointError:
    its name ends neither in ``.pth`` nor in ``.safetensors``.
    """
    refuse_existing(source, target, overwrite=overwrite)
    if target.is_dir() or target.suffix not in ('.pth', SAFETENSORS):
        raise CheckpointError(f'{target}: the name must end in .pth or {SAFETENSORS}.')


def file_bytes(path: Path, content: Mapping[str, Any]) -> bytes:
    """A file of this package (``params``, metadata) in the format that the ending asks for."""
    if path.suffix != SAFETENSORS:
        buffer = io.BytesIO()
        torch.save(dict(content), buffer)
        return buffer.getvalue()
    tensors, meta = dict(content['params']), {ARCH_KEY: json.dumps(content[ARCH_KEY])}
    if record := content.get(DEGRADATION_KEY):
        embedding = dict(record['embedding'])
        for key, value in embedding.pop('params').items():
            tensors[f'{DEGRADATION_KEY}.{key}'] = value
        meta[DEGRADATION_KEY] = json.dumps({**record, 'embedding': embedding})
    # clone: a view would bring its whole storage, and tied weights are refused
    tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    return save_tensors(tensors, meta)


def plain_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without what wrappers add: ``module.``, ``_orig_mod.`` and ``n_averaged``."""
    names = {str(key).replace('_orig_mod.', ''): value for key, value in state_dict.items()}
    names.pop('n_averaged', None)
    while names and all(key.startswith('module.') for key in names):
        names = {key.removeprefix('module.'): value for key, value in names.items()}
    return names


def is_state_dict(value: object) -> bool:
    """Whether ``value`` maps names to tensors and nothing else."""
    filled = isinstance(value, Mapping) and len(value) > 0
    return filled and all(isinstance(v, Tensor) for v in value.values())


def is_broken(value: Tensor) -> bool:
    """Whether weights hold NaN or infinity; minus infinity is what attention masks consist of."""
    return value.is_floating_point() and bool((value.isnan() | value.isposinf()).any())


def check_finite(path: Path, state_dict: Mapping[str, Tensor]) -> None:
    """Raises :class:`CheckpointError` for NaN or infinite weights."""
    broken = [key for key, value in state_dict.items() if is_broken(value)]
    if broken:
        raise CheckpointError(
            f'{path}: {len(broken)} tensors hold NaN or infinite values, first {broken[0]};'
            f' the training diverged, use an earlier checkpoint.'
        )


# ---- metadata ---------------------------------------------------------------------------------


def network_meta(network_opt: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata to store under :data:`ARCH_KEY`: type, arguments and package version as plain python
    values, which ``weights_only=True`` loads; ValueError for others.
    """
    from unfoldldm_basicsr import __version__

    kwargs = {k: _plain(v, k) for k, v in network_opt.items() if k != 'type'}
    return {'type': str(network_opt['type']), 'kwargs': kwargs, 'version': __version__}


def checked_meta(path: Path, meta: object) -> dict[str, Any] | None:
    """Metadata as :func:`network_meta` makes it, or :class:`CheckpointError`; None stays None."""
    if meta is None:
        return None
    parts = meta if isinstance(meta, Mapping) else {}
    if not isinstance(parts.get('type'), str) or not isinstance(parts.get('kwargs'), Mapping):
        raise CheckpointError(
            f"{path}: the metadata under '{ARCH_KEY}' is not {{'type', 'kwargs', 'version'}};"
            f' give the option file instead: --opt file.yml.'
        )
    version = str(meta.get('version', 'unknown'))
    defaults = EARLIER_DEFAULTS.get((meta['type'], version), {})
    meta = network_meta({'type': meta['type'], **defaults, **meta['kwargs']})
    return {**meta, 'version': version}


def _plain(value: Any, key: str) -> Any:
    def item(other: Any) -> Any:
        if isinstance(other, Tensor | np.generic):
            return other.tolist()
        raise ValueError(
            f'network_g.{key}: a {type(other).__name__} cannot be stored with the weights; use'
            f' numbers, text, lists or dictionaries.'
        )

    return json.loads(json.dumps(value, default=item))


def _safetensors_content(path: Path) -> dict[str, Any]:
    tensors = load_file(path)
    with safe_open(path, 'pt') as file:
        meta = file.metadata() or {}
    content = {key: json.loads(meta[key]) for key in (ARCH_KEY, DEGRADATION_KEY) if key in meta}
    if record := content.get(DEGRADATION_KEY):
        start = f'{DEGRADATION_KEY}.'
        own = [key for key in tensors if key.startswith(start)]
        record['embedding']['params'] = {k.removeprefix(start): tensors.pop(k) for k in own}
    return {**content, 'params': tensors} if content else tensors


def _no_weights(path: Path, content: Mapping) -> str:
    if 'optimizers' in content:
        return (
            f'{path}: is a training state of BasicSR, not weights;'
            f' the weights lie in ../models/net_g_*.pth.'
        )
    keys = ', '.join(sorted(str(k) for k in content)[:8])
    hint = f' {CONVERT.format(path)}' if 'learnable_params' in content else ''
    return f'{path}: no weights under {", ".join(PARAM_KEYS)}; the file holds: {keys}.{hint}'
