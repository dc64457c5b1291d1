"""Loading weights into a network without silent gaps; the check of option files asks the same."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unfoldldm_basicsr.common.contract import MEMORY_ONLY, NEW_IN_PHASE2
from unfoldldm_basicsr.common.errors import first_line
from unfoldldm_basicsr.weights.checkpoint import Checkpoint, CheckpointError, read_checkpoint

# Arguments that may change from Phase I to Phase II, or from tuning an embedding to its use.
MAY_CHANGE = (
    'phase', 'cond_input', 'cond_detach', 'prior_stages', 'prior_source', 'null_prior_prob',
    'num_timesteps', 'denoiser_dim', 'denoiser_layers', 'tune_adapters', *MEMORY_ONLY,
)  # fmt: skip


class StateDictDiff:
    """How weights differ from a network, on the meta device too; true where they do, and ``str``
    says how in one line.

    ``fitting`` lists names with the same shape in both, ``missing`` those that only the network has
    (but for its ``new_modules``), ``unexpected`` those that only the file has; ``reshaped`` gives
    for other names the shapes in the file and in the network.
    """

    def __init__(
        self, net: nn.Module, given: Mapping[str, Tensor], *, new_modules: Sequence[str] = ()
    ) -> None:
        own = net.state_dict()
        pairs = {k: (tuple(given[k].shape), tuple(own[k].shape)) for k in own if k in given}
        self.fitting = [k for k, (there, here) in pairs.items() if there == here]
        lacking = (k for k in own if k not in given)
        self.missing = [k for k in lacking if k.partition('.')[0] not in new_modules]
        self.unexpected = [k for k in given if k not in own]
        self.reshaped = {k: pair for k, pair in pairs.items() if pair[0] != pair[1]}

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)

    def __str__(self) -> str:
        wanted = len(self.fitting) + len(self.missing) + len(self.reshaped)
        found = {
            'missing in the file': self.missing,
            'unknown to the network': self.unexpected,
            'of another shape': [
                f'{key}: {there} in the file, {here} in the network'
                for key, (there, here) in self.reshaped.items()
            ],
        }
        parts = [f'{len(keys)} {what} (first {keys[0]})' for what, keys in found.items() if keys]
        return '; '.join([f'{len(self.fitting)} of {wanted} tensors fit', *parts])


def misfit(
    net: nn.Module,
    checkpoint: Checkpoint,
    *,
    strict: bool = True,
    allow_missing: bool = True,
    label: str = 'g',
) -> str | None:
    """Why these weights must not go into this network (on the meta device too), or None.

    Args:
        strict: every name and shape must fit. Otherwise one of the network's must.
        allow_missing: where not strict, whether parts of the network may keep their random values.
        label: of the network in the option file, for messages: network_g, strict_load_g.
    """
    diff = StateDictDiff(net, checkpoint.state_dict)
    if not diff:
        return None
    trained = f' The file was made by {checkpoint.arch["type"]}.' if checkpoint.arch else ''
    message = (
        f'{checkpoint.path} does not fit network_{label} ({type(net).__name__}): {diff}.{trained}'
    )
    if strict:
        loose = ', or set path.strict_load_g: false to load what fits' if label == 'g' else ''
        return (
            f'{message} Correct the path, or make network_{label} the one that the file was'
            f' trained with{loose if allow_missing else ""}.'
        )
    # Other buffers, such as masks of the size of an image, the network has made itself.
    learned = {name for name, _ in net.named_parameters()}
    lost = (k for k in diff.reshaped if k in learned or k.rpartition('.')[2].startswith('running_'))
    if not allow_missing and (diff.missing or any(lost)):
        return f'{message} A test needs every weight of the network.'
    if not diff.fitting:
        return f'{message} It is another network.'
    return None


def phase1_misfit(
    net: nn.Module, checkpoint: Checkpoint, arguments: Mapping[str, Any]
) -> str | None:
    """Why a file is no Phase I of this network of Phase II (on the meta device too), or None.

    Exactly the weights of the modules that Phase I does not have may be missing; ``arguments`` of
    ``net`` are compared with the file's metadata, as equal shapes do not make an equal network.
    """
    path = checkpoint.path
    already = [k for k in checkpoint.state_dict if k.partition('.')[0] in NEW_IN_PHASE2]
    if already:
        return (
            f'{path} is no Phase I of this network_g: it was written by Phase II and holds'
            f' {already[0]}; to go on from it use path.pretrain_network_g.'
        )
    differing = differing_arguments(net, checkpoint, arguments)
    diff = StateDictDiff(net, checkpoint.state_dict, new_modules=NEW_IN_PHASE2)
    if not diff and not differing:
        return None
    faults = '; '.join([*differing, *([str(diff)] if diff else [])])
    return (
        f'{path} is no Phase I of this network_g: {faults}. The network arguments of both phases'
        f' must agree (but for phase).'
    )


def differing_arguments(
    net: nn.Module, checkpoint: Checkpoint, arguments: Mapping[str, Any]
) -> list[str]:
    """Arguments that the file's network had otherwise, but for those that a phase may change."""
    if checkpoint.arch is None:
        return []
    differing = []
    for name, parameter in inspect.signature(type(net)).parameters.items():
        values = (a.get(name, parameter.default) for a in (checkpoint.arch['kwargs'], arguments))
        then, now = (list(v) if isinstance(v, tuple) else v for v in values)
        if name not in MAY_CHANGE and then != now:
            differing.append(f'{name}: {then!r} in the file, {now!r} here')
    return differing


def load_weights(
    net: nn.Module,
    path: str | Path,
    param_key: str | None = None,
    *,
    fallback: bool = False,
    strict: bool = True,
    allow_missing: bool = True,
    label: str = 'g',
    arguments: Mapping[str, Any] | None = None,
) -> None:
    """Loads a weight file into a bare network; where not strict, what fits, and says the rest.

    See :func:`read_checkpoint` and :func:`misfit` for arguments and errors. ``arguments``, those of
    ``net``: what the file's network had otherwise is warned of, as equal shapes do not make an
    equal network.
    """
    checkpoint = read_checkpoint(path, param_key, fallback=fallback)
    name, log = type(net).__name__, logging.getLogger('basicsr')
    log.info('Loading %s from %s, with param key: [%s].', name, path, checkpoint.param_key)
    fault = misfit(net, checkpoint, strict=strict, allow_missing=allow_missing, label=label)
    if fault:
        raise CheckpointError(fault)
    same = arguments and checkpoint.arch and checkpoint.arch['type'] == arguments['type']
    if same and (differing := differing_arguments(net, checkpoint, arguments)):
        log.warning('%s was trained as another network: %s.', path, '; '.join(differing))
    diff = StateDictDiff(net, checkpoint.state_dict)
    net.load_state_dict({k: checkpoint.state_dict[k] for k in diff.fitting}, strict=False)
    if diff:
        log.warning(
            'path.strict_load_%s is false. %s does not fit %s: %s.', label, path, name, diff
        )


def load_network(
    self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = 'params'
) -> None:
    """Replaces ``BaseModel.load_network``, which knows neither safetensors nor names of wrappers.

    BasicSR's own models and those of projects load what the check of option files accepts. None as
    ``param_key`` and a key that the file lacks take what is there, where BasicSR demands
    ``params``.
    """
    checkpoint = read_checkpoint(load_path, param_key or 'params', fallback=True)
    net, key = self.get_bare_model(net), checkpoint.param_key
    logging.getLogger('basicsr').info(
        'Loading %s model from %s, with param key: [%s].', type(net).__name__, load_path, key
    )
    self._print_different_keys_loading(net, checkpoint.state_dict, strict)
    try:
        net.load_state_dict(checkpoint.state_dict, strict=strict)
    except RuntimeError as error:  # names every tensor
        diff = StateDictDiff(net, checkpoint.state_dict)
        fault = f'{load_path} does not fit {type(net).__name__}: {diff or first_line(error)}.'
        hint = 'Correct the path or the network; a run that goes on cannot change it.'
        raise CheckpointError(f'{fault} {hint}') from error


def load_phase1_weights(net: nn.Module, path: str | Path, arguments: Mapping[str, Any]) -> None:
    """Starts a Phase II network from the averaged weights of Phase I; see :func:`phase1_misfit`."""
    checkpoint = read_checkpoint(path, 'params_ema', fallback=True)
    if fault := phase1_misfit(net, checkpoint, arguments):
        raise CheckpointError(f'path.pretrain_network_phase1: {fault}')
    net.load_state_dict(checkpoint.state_dict, strict=False)
    log, key = logging.getLogger('basicsr'), checkpoint.param_key
    log.info('Phase II starts from %s [%s]; new: %s.', path, key, ', '.join(NEW_IN_PHASE2))
    if key != 'params_ema':
        log.warning(
            '%s has no averaged weights (params_ema); the last ones are used. Set '
            'train.ema_decay: 0.999 in Phase I.',
            path,
        )
