"""Replacement of ``basicsr.train.load_resume_state``: finds the newest state that is whole."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import torch

_STATE_KEYS = ('epoch', 'iter', 'optimizers', 'schedulers')


def load_resume_state(opt: dict) -> dict | None:
    """State to go on from, or None for a fresh start.

    BasicSR looks for states below the current folder instead of the experiment's, needs a GPU to
    load them, gives up on a truncated file and never looks at the weights that belong to it. Here
    ``--auto_resume`` takes the newest state whose file and network files are whole, and says which
    newer ones it passed over.

    Raises:
        ValueError: ``path.resume_state`` cannot be used, or there are states but none is whole
            (a fresh start would move the old run aside).
    """
    from basicsr.utils import check_resume

    if opt['auto_resume']:
        found = newest_whole_state(opt)
        if found is None:
            return None
        path, state = found
        opt['path']['resume_state'] = str(path)
    elif opt['path'].get('resume_state'):
        path = Path(opt['path']['resume_state'])
        state, fault = read_state(path)
        if state is None:
            raise ValueError(f'path.resume_state: {path} {fault}. Name an older state.')
    else:
        return None
    check_resume(opt, state['iter'])
    return state


def newest_whole_state(opt: dict) -> tuple[Path, dict] | None:
    """Newest usable state of the experiment, None if there are no states at all."""
    folder = Path(opt['path']['training_states'])
    paths = sorted(
        (p for p in folder.glob('*.state') if p.stem.isdigit()),
        key=lambda p: int(p.stem),
        reverse=True,
    )
    skipped = []
    for path in paths:
        state, fault = read_state(path)
        fault = fault or fault_of_networks(opt, state['iter'])
        if not fault:
            _report(opt, path, skipped)
            return path, state
        skipped.append(f'{path} {fault}')
    if skipped:
        raise ValueError(
            'no training state can be resumed: ' + '; '.join(skipped) + f'. To start anew, move '
            f'{opt["path"]["experiments_root"]} away or leave out --auto_resume.'
        )
    return None


def read_state(path: Path) -> tuple[dict | None, str]:
    """The state in ``path``, or None and what is wrong with it. Loads tensors to the CPU."""
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        return None, 'does not exist'
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        return None, f'cannot be read ({_first_line(error)})'
    missing = [k for k in _STATE_KEYS if not isinstance(state, dict) or k not in state]
    if missing:
        return None, f'is not a training state (no {", ".join(missing)})'
    return state, ''


def fault_of_networks(opt: dict, iteration: int) -> str:
    """What is wrong with the network files that belong to a state, '' if nothing."""
    ignored = opt['path'].get('ignore_resume_networks') or ()
    for key in opt:
        if not key.startswith('network_') or key in ignored:
            continue
        path = Path(opt['path']['models']) / f'net_{key.removeprefix("network_")}_{iteration}.pth'
        try:
            # Memory-mapped: reads the directory of the file, which a truncation destroys.
            torch.load(path, map_location='cpu', weights_only=True, mmap=True)
        except FileNotFoundError:
            return f'has no weights {path.name} beside it'
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            return f'has weights {path.name} that cannot be read ({_first_line(error)})'
    return ''


def _report(opt: dict, path: Path, skipped: list[str]) -> None:
    if skipped and opt['rank'] == 0:
        # BasicSR's logger is set up later; an unconfigured one writes warnings to stderr.
        logging.getLogger('basicsr').warning(
            'Resuming from %s, passing over: %s.', path, '; '.join(skipped)
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip('.') if lines else type(error).__name__
