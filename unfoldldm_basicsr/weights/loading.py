"""Loading weights into a network without silent gaps."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from basicsr.utils import get_root_logger
from torch import Tensor, nn

from unfoldldm_basicsr.training.run_options import MEMORY_ONLY
from unfoldldm_basicsr.weights.checkpoint import Checkpoint, CheckpointError, read_checkpoint

# Arguments that may change from Phase I to Phase II.
PHASE2_ARGUMENTS = (
    'phase', 'cond_input', 'cond_detach', 'prior_stages', 'prior_source', 'null_prior_prob',
    'num_timesteps', 'beta_start', 'beta_end', 'diffusion_param', 'train_start', 'infer_noise',
    'denoiser_dim', 'denoiser_layers', *MEMORY_ONLY,
)  # fmt: skip


def load_weights(
    net: nn.Module,
    path: str | Path,
    param_key: str | None = None,
    *,
    fallback: bool = False,
    strict: bool = True,
    allow_missing: bool = True,
    label: str = 'g',
) -> None:
    """Loads a weight file into a bare network.

    Args:
        net: the network.
        path: file of this package, of BasicSR, a released file or a bare state dict.
        param_key: which weights of the file; None prefers ``params_ema``.
        fallback: whether a file without ``param_key`` may give the weights that it has.
        strict: every name and shape must fit. Otherwise what fits is loaded and the rest reported.
        allow_missing: with ``strict=False``, whether parts of the network may keep their random
            values (training) or not (test).
        label: of the network in the option file, for messages: network_g, strict_load_g.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file or its weights do not fit; the message names file and keys.
    """
    checkpoint = read_weights(path, param_key, fallback=fallback)
    name, log = type(net).__name__, get_root_logger()
    log.info(f'Loading {name} from {path}, with param key: [{checkpoint.param_key}].')
    own, given = net.state_dict(), checkpoint.state_dict
    fitting = {k: v for k, v in given.items() if k in own and v.shape == own[k].shape}
    missing = [k for k in own if k not in given]
    unexpected = [k for k in given if k not in own]
    if len(fitting) == len(own) == len(given):
        net.load_state_dict(fitting)
        return
    if allow_missing and len(fitting) == len(given) and is_host_file(net, given):
        net.load_state_dict(fitting, strict=False)
        log.info(f'{path} holds the host of {name} alone; what {name} adds starts anew.')
        return
    message = (
        f'{path} does not fit network_{label} ({name}): {len(fitting)} of {len(own)} tensors fit'
        f'{differing_shapes(own, given)}; missing in the file: {brief(missing)}; '
        f'only in the file: {brief(unexpected)}.'
    )
    if strict:
        raise CheckpointError(
            f'{message} Correct network_{label} or the path'
            + (', or set path.strict_load_g: false to load what fits.' if label == 'g' else '.')
        )
    if len(fitting) < len(own) and not allow_missing:
        raise CheckpointError(f'{message} A test needs every weight of the network.')
    if 2 * len(fitting) < len(own):
        raise CheckpointError(f'{message} That is less than half: it is another network.')
    net.load_state_dict(fitting, strict=False)
    log.warning(f'path.strict_load_g is false. {message}')


def is_host_file(net: nn.Module, given: Mapping[str, Tensor]) -> bool:
    """Whether a file holds exactly the host inside ``net``, which has parts added to it.

    Such networks list the names of the host's weights in ``host_keys``, empty where its weights
    alone are no start.
    """
    return given.keys() == getattr(net, 'host_keys', None)


def read_weights(path: str | Path, param_key: str | None, *, fallback: bool) -> Checkpoint:
    """Reads a weight file; ``fallback`` as in :func:`load_weights`."""
    try:
        return read_checkpoint(path, param_key=param_key)
    except CheckpointError:
        if param_key is None or not fallback:
            raise
        return read_checkpoint(path)  # raises again where the file itself is at fault


def brief(keys: Iterable[str]) -> str:
    """The first few of ``keys`` and their number, for messages."""
    keys = list(keys)
    if not keys:
        return 'none'
    more = f' ... ({len(keys)} in all)' if len(keys) > 4 else ''
    return ', '.join(keys[:4]) + more


def differing_shapes(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Names the first tensor that has another shape in the file; empty when there is none."""
    for key, value in given.items():
        if key in own and value.shape != own[key].shape:
            return (
                f', {key} is {tuple(value.shape)} in the file and {tuple(own[key].shape)} in the '
                'network'
            )
    return ''


def load_phase1_weights(
    net: nn.Module,
    path: str | Path,
    new_modules: Sequence[str],
    arguments: Mapping[str, Any] | None = None,
) -> None:
    """Starts a Phase II network from the averaged weights of Phase I.

    Args:
        net: bare network of Phase II.
        path: file that Phase I wrote.
        new_modules: names of the modules that Phase I does not have; exactly their weights may be
            missing in the file, and nothing in the file may be left over.
        arguments: what ``net`` was built with, compared with the file's metadata: equal shapes do
            not make an equal network.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: other weights are missing, left over or have another shape.
    """
    checkpoint = read_weights(path, 'params_ema', fallback=True)
    own, given = net.state_dict(), checkpoint.state_dict
    new = {key for key in own if key.split('.')[0] in new_modules}
    missing = [key for key in own if key not in given and key not in new]
    already = [key for key in given if key.split('.')[0] in new_modules]
    unexpected = [key for key in given if key not in own]
    shapes = differing_shapes(own, given)
    faults = []
    if already:
        faults.append(
            f'it holds {brief(already)}, so it was written by Phase II; to go on from it use '
            'path.pretrain_network_g'
        )
    if missing:
        faults.append(f'the network also needs {brief(missing)}')
    if unexpected:
        faults.append(f'the network has no place for {brief(unexpected)}')
    if shapes:
        faults.append(shapes.removeprefix(', '))
    if faults:
        raise CheckpointError(
            f'path.pretrain_network_phase1: {path} is no Phase I of this network_g: '
            f'{"; ".join(faults)}. The network arguments of both phases must agree (but for '
            f'phase).{_arguments_in_file(checkpoint)}'
        )
    if checkpoint.arch is not None and arguments is not None:
        _check_same_arguments(type(net), checkpoint.arch['kwargs'], arguments, path)
    net.load_state_dict(given, strict=False)
    get_root_logger().info(
        f'Phase II starts from {path} [{checkpoint.param_key}]; new: {", ".join(new_modules)}.'
    )
    if checkpoint.param_key != 'params_ema':
        get_root_logger().warning(
            f'{path} has no averaged weights (params_ema); the last ones are used. Set '
            'train.ema_decay: 0.999 in Phase I.'
        )


def _check_same_arguments(
    kind: type[nn.Module], in_file: Mapping[str, Any], here: Mapping[str, Any], path: str | Path
) -> None:
    differing = []
    for name, parameter in inspect.signature(kind).parameters.items():
        then, now = (_plain(a.get(name, parameter.default)) for a in (in_file, here))
        if name not in PHASE2_ARGUMENTS and then != now:
            differing.append(f'{name}: {then!r} in the file, {now!r} here')
    if differing:
        raise CheckpointError(
            f'path.pretrain_network_phase1: {path} was trained with other arguments of network_g '
            f'({"; ".join(differing)}). Use the same in both phases.'
        )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _arguments_in_file(checkpoint: Checkpoint) -> str:
    if checkpoint.arch is None:
        return ''
    arguments = ', '.join(f'{key}: {value}' for key, value in checkpoint.arch['kwargs'].items())
    return f' The file was trained with {checkpoint.arch["type"]} {{{arguments}}}.'
