"""Weight files: safe reading, and a network rebuilt from the file alone.

A file of this package is BasicSR's format plus one key::

    {'params': state_dict, 'params_ema': state_dict,
     'arch': {'type': 'UnfoldLDM', 'kwargs': {...}, 'version': '0.1.0'}}

A network steered by a degradation vector has one key more, see :mod:`.conditioning`. BasicSR's own
``load_network`` ignores the extra keys. Files are only ever read with
``weights_only=True``: tensors and plain values, never code.
"""

from __future__ import annotations

import inspect
import io
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from unfoldldm_basicsr.common.suggest import did_you_mean

ARCH_KEY = 'arch'
DEGRADATION_KEY = 'degradation'
PARAM_KEYS = ('params_ema', 'params', 'state_dict', 'model')
_CONVERT = 'Released VLU-Net files are converted once: unfoldldm convert {}'


class CheckpointError(ValueError):
    """A weight file that cannot be used; the message names the file, the cause and the remedy."""


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


def network_meta(network_opt: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata to store under :data:`ARCH_KEY`, from the option file's ``network_g``.

    Args:
        network_opt: ``type`` and the constructor's arguments.

    Returns:
        Type, arguments and package version as plain python values, which ``weights_only=True``
        loads.

    Raises:
        KeyError: no ``type``.
        ValueError: an argument that is no plain value.
    """
    from unfoldldm_basicsr import __version__

    if 'type' not in network_opt:
        raise KeyError("network_g: the key 'type' is missing, for example type: UnfoldLDM.")
    kwargs = {k: _plain(v, f'network_g.{k}') for k, v in network_opt.items() if k != 'type'}
    return {'type': str(network_opt['type']), 'kwargs': kwargs, 'version': __version__}


def read_checkpoint(path: str | Path, *, param_key: str | None = None) -> Checkpoint:
    """Reads a weight file without executing anything in it.

    Args:
        path: a file of this package, of BasicSR (``params``, ``params_ema``), a released file with
            ``state_dict``, or a bare state dict.
        param_key: which weights; default ``params_ema`` where present, else ``params``.

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
        present = {k: v for k in PARAM_KEYS if is_state_dict(v := content.get(k))}
    if not present:
        if 'optimizers' in content:
            raise CheckpointError(
                f'{path}: is a training state of BasicSR, not weights;'
                f' the weights lie in ../models/net_g_*.pth.'
            )
        keys = ', '.join(sorted(str(k) for k in content)[:8])
        hint = f' {_CONVERT.format(path)}' if 'learnable_params' in content else ''
        raise CheckpointError(
            f'{path}: no weights under {", ".join(PARAM_KEYS)}; the file holds: {keys}.{hint}'
        )
    if param_key is not None and param_key not in present:
        raise CheckpointError(f'{path}: no {param_key!r}.{did_you_mean(param_key, present)}')
    chosen = param_key if param_key is not None else next(iter(present))
    state_dict = {str(k).removeprefix('module.'): v for k, v in present[chosen].items()}
    check_finite(path, state_dict)
    meta = checked_meta(path, content.get(ARCH_KEY))
    return Checkpoint(path, chosen, state_dict, meta, content.get(DEGRADATION_KEY))


def build_network(
    checkpoint: Checkpoint, *, opt_file: str | Path | None = None, drop_unexpected: bool = False
) -> tuple[nn.Module, dict[str, Any]]:
    """Builds the network of a checkpoint and loads its weights strictly.

    Args:
        checkpoint: what :func:`read_checkpoint` returned; ``arch`` may be replaced by the caller.
        opt_file: option file whose ``network_g`` is used instead of the metadata.
        drop_unexpected: leave out weights that the network has no place for (export).

    Returns:
        The network on the CPU in eval mode without gradients, and its metadata.

    Raises:
        CheckpointError: network unknown, arguments or weights that do not fit.
    """
    if opt_file is not None:
        meta = network_meta(_read_network_opt(opt_file))
        net = construct(meta, f'{opt_file} (network_g)')
    elif checkpoint.arch is not None:
        meta = checkpoint.arch
        net = construct(meta, f'{checkpoint.path} ({ARCH_KEY})')
    else:
        net, meta = _infer_network(checkpoint)
    state_dict = checkpoint.state_dict
    if drop_unexpected:
        state_dict = {k: v for k, v in state_dict.items() if k in net.state_dict()}
    problems = load_problems(net, state_dict)
    if problems:
        raise CheckpointError(
            f'{checkpoint.path}: the weights do not fit {meta["type"]}:\n  '
            + '\n  '.join(problems)
            + '\n  Give the option file it was trained with: --opt file.yml.'
        )
    net.load_state_dict(state_dict, strict=True)
    return net.eval().requires_grad_(False), meta


def build_from_checkpoint(
    path: str | Path,
    *,
    opt_file: str | Path | None = None,
    param_key: str | None = None,
    device: torch.device | str = 'cpu',
) -> nn.Module:
    """Network with its weights, from the file alone or with an option file.

    Args:
        path: see :func:`read_checkpoint`.
        opt_file: option file whose ``network_g`` describes the network; needed only for files
            without metadata whose network cannot be told from the weights.
        param_key: which weights of the file.
        device: where the network goes.

    Returns:
        The network in eval mode, without gradients.

    Raises:
        FileNotFoundError: a missing file.
        CheckpointError: everything else that is wrong with the files.
    """
    checkpoint = read_checkpoint(path, param_key=param_key)
    net, _ = build_network(checkpoint, opt_file=opt_file)
    return net.to(device)


# ---- reading ----------------------------------------------------------------------------------


def load_content(path: Path, *, unsafe_pickle: bool = False) -> Any:
    """What ``torch.load`` makes of a file that was checked for damage first.

    Args:
        path: the file.
        unsafe_pickle: also loads a file that runs code while it is read.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: truncated or damaged, or it holds code and ``unsafe_pickle`` is not set.
    """
    if path.is_dir():
        raise CheckpointError(f'{path}: is a folder; give the .pth file inside it.')
    if not path.is_file():
        near = [p.name for p in path.parent.glob('*.pth')] if path.parent.is_dir() else []
        raise FileNotFoundError(f'{path}: no such weight file.{did_you_mean(path.name, near)}')
    data = path.read_bytes()
    damaged = f'{path}: truncated or damaged, or no PyTorch file'
    if not data:
        raise CheckpointError(f'{path}: the file is empty.')
    if data[:4] == b'PK\x03\x04':
        try:
            broken = zipfile.ZipFile(io.BytesIO(data)).testzip()  # torch checks no checksums
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise CheckpointError(f'{damaged} ({error}). Copy or download it again.') from error
        if broken is not None:
            raise CheckpointError(
                f'{damaged} (checksum of {broken} is wrong). Copy or download it again.'
            )
    try:
        return torch.load(io.BytesIO(data), map_location='cpu', weights_only=not unsafe_pickle)
    except ModuleNotFoundError as error:  # only where any class may be loaded
        raise CheckpointError(
            f'{path}: holds objects of the package {error.name!r}, which is not installed:'
            f' install it and try again.'
        ) from error
    except pickle.UnpicklingError as error:
        code = re.search(r'(?:GLOBAL|class|global:?) ([\w.]+\.[\w.]+)', str(error))
        if code is None:
            raise CheckpointError(f'{damaged}.') from error
        raise UnsafePickleError(
            f'{path}: refused, it holds more than weights ({code.group(1)}), and loading such a'
            f' file can run code. Ask for a file with tensors only, or, if you trust its source,'
            f" save its state dict again: torch.save({{'params': state_dict}}, 'clean.pth')."
        ) from error
    # torch reports damage through any of these
    except (RuntimeError, EOFError, KeyError, ValueError, OSError, AttributeError, TypeError,
            IndexError, AssertionError) as error:  # fmt: skip
        raise CheckpointError(f'{damaged}. Copy or download it again.') from error


def is_state_dict(value: object) -> bool:
    """Whether ``value`` maps names to tensors and nothing else."""
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(v, Tensor) for v in value.values())
    )


def check_finite(path: Path, state_dict: Mapping[str, Tensor]) -> None:
    """Raises :class:`CheckpointError` for NaN or infinite weights."""
    broken = [k for k, v in state_dict.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise CheckpointError(
            f'{path}: {len(broken)} tensors hold NaN or infinite values, first {broken[0]};'
            f' the training diverged, use an earlier checkpoint.'
        )


def checked_meta(path: Path, meta: object) -> dict[str, Any] | None:
    """Metadata as :func:`network_meta` makes it, or :class:`CheckpointError`; None stays None."""
    if meta is None:
        return None
    if (
        not isinstance(meta, Mapping)
        or not isinstance(meta.get('type'), str)
        or not isinstance(meta.get('kwargs'), Mapping)
    ):
        raise CheckpointError(
            f"{path}: the metadata under '{ARCH_KEY}' is not {{'type', 'kwargs', 'version'}};"
            f' give the option file instead: --opt file.yml.'
        )
    return {
        **network_meta({'type': meta['type'], **meta['kwargs']}),
        'version': str(meta.get('version', 'unknown')),
    }


def _plain(value: Any, where: str) -> Any:
    if hasattr(value, 'item') and getattr(value, 'ndim', None) == 0:
        value = value.item()  # numpy scalar
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(v, f'{where}[{i}]') for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f'{where}.{k}') for k, v in value.items()}
    raise ValueError(
        f'{where}: a {type(value).__name__} cannot be stored with the weights; use numbers, text,'
        f' lists or dictionaries.'
    )


# ---- building ---------------------------------------------------------------------------------


def _read_network_opt(opt_file: str | Path) -> Mapping[str, Any]:
    opt_file = Path(opt_file)
    if not opt_file.is_file():
        raise FileNotFoundError(f'{opt_file}: no such option file (--opt).')
    try:
        opt = yaml.safe_load(opt_file.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f'{opt_file}: no valid YAML ({error}).') from error
    network_opt = opt.get('network_g') if isinstance(opt, Mapping) else None
    if not isinstance(network_opt, Mapping) or 'type' not in network_opt:
        raise CheckpointError(
            f"{opt_file}: no section 'network_g' with a 'type'; give a training or test option"
            f' file of the network.'
        )
    return network_opt


def registered_networks() -> dict[str, type[nn.Module]]:
    """All networks by name, those of BasicSR included."""
    from basicsr.archs import ARCH_REGISTRY  # imports BasicSR's own networks as well

    return dict(iter(ARCH_REGISTRY))


def construct(meta: Mapping[str, Any], where: str) -> nn.Module:
    """A registered network with the arguments of ``meta``; ``where`` they stand, for errors."""
    networks, kind = registered_networks(), meta['type']
    if kind not in networks:
        raise CheckpointError(
            f'{where}: the network {kind!r} is not registered; import the package that defines it'
            f' first.{did_you_mean(kind, networks)}'
        )
    try:
        inspect.signature(networks[kind]).bind(**meta['kwargs'])
    except TypeError as error:
        known = inspect.signature(networks[kind]).parameters
        bad = next((k for k in meta['kwargs'] if k not in known), None)
        hint = did_you_mean(bad, known) if bad else ''
        raise CheckpointError(
            f'{where}: {kind} of this version does not take these arguments ({error}; written by'
            f' version {meta["version"]}).{hint}'
        ) from error
    return networks[kind](**meta['kwargs'])


def _infer_network(checkpoint: Checkpoint) -> tuple[nn.Module, dict[str, Any]]:
    """Asks every registered network that can tell its arguments from weights (``infer_kwargs``)."""
    for kind, cls in registered_networks().items():
        if not hasattr(cls, 'infer_kwargs'):
            continue
        try:
            kwargs = cls.infer_kwargs(checkpoint.state_dict)
        except (KeyError, ValueError, IndexError):  # not its weights
            continue
        if kwargs is None:
            continue
        meta = network_meta({'type': kind, **kwargs})
        net = construct(meta, f'{checkpoint.path} (inferred)')
        if not load_problems(net, checkpoint.state_dict):
            return net, meta
    if any(key.startswith('net.') for key in checkpoint.state_dict):
        raise CheckpointError(
            f'{checkpoint.path}: is a Lightning checkpoint. {_CONVERT.format(checkpoint.path)}'
        )
    raise CheckpointError(
        f'{checkpoint.path}: does not say which network it belongs to, and the weights fit none'
        f' that can be recognised. Give the option file it was trained with: --opt file.yml.'
    )


def load_problems(net: nn.Module, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Differences between a network and weights, one line per kind and module."""
    own = net.state_dict()
    shapes = [k for k in own if k in state_dict and own[k].shape != state_dict[k].shape]
    lines = _by_module('missing in the file', (k for k in own if k not in state_dict))
    lines += _by_module('unknown to the network', (k for k in state_dict if k not in own))
    for module, line in zip(_modules(shapes), _by_module('of another shape', shapes), strict=True):
        key = next(k for k in shapes if k.split('.')[0] == module)
        lines.append(f'{line[:-1]}: {tuple(state_dict[key].shape)} in the file,'
                     f' {tuple(own[key].shape)} in the network)')  # fmt: skip
    return lines


def _modules(keys: Iterable[str]) -> Counter[str]:
    return Counter(key.split('.')[0] for key in keys)


def _by_module(what: str, keys: Iterable[str]) -> list[str]:
    keys = list(keys)
    return [
        f'{module}: {count} {what} (first {next(k for k in keys if k.split(".")[0] == module)})'
        for module, count in _modules(keys).items()
    ]
