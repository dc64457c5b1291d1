"""Which checkpoint a run goes on from, and what has changed since it was written."""

import logging
import multiprocessing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from basicsr.utils import set_random_seed

from unfoldldm_basicsr.common.contract import MEMORY_ONLY
from unfoldldm_basicsr.common.errors import ResumeError, together
from unfoldldm_basicsr.options.run import flatten
from unfoldldm_basicsr.training.progress import progress
from unfoldldm_basicsr.training.start import refuse
from unfoldldm_basicsr.weights import training_state as files

# Where data lie and how they are loaded; what they are is in the fingerprint of the data.
_OF_LOADING = {
    'name', 'phase', 'scale', 'io_backend', 'num_worker_per_gpu', 'persistent_workers',
    'pin_memory', 'prefetch_mode', 'num_prefetch_queue', 'timeout', 'on_error', 'max_error_share',
}  # fmt: skip
# The schedule itself reports and decides about the first three.
_NOT_OF_WEIGHTS = ('optim_g', 'scheduler', 'warmup_iter', 'apply_new_schedule', 'max_nonfinite')


# ---- what a run is ------------------------------------------------------------------------------


def run_options(opt: Mapping[str, Any]) -> dict[str, Any]:
    """Key path -> plain value of the options that decide about the weights."""
    train, data = opt.get('train') or {}, (opt.get('datasets') or {}).get('train') or {}
    sections = {
        'manual_seed': opt.get('manual_seed'),
        'number of processes': opt.get('world_size', 1),
        'datasets.train': {k: v for k, v in data.items() if k not in _OF_LOADING},
        'train': {k: v for k, v in train.items() if k not in _NOT_OF_WEIGHTS},
        **{key: value for key, value in opt.items() if str(key).startswith('network_')},
    }
    return {
        path: value
        for name, section in sections.items()
        for path, value in flatten(section, name).items()
        if not path.rpartition('.')[2].startswith(('dataroot', 'meta_info'))
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Keys of two flat option dicts whose values differ, with both values ('not set' for none)."""
    pairs = {key: (before.get(key), now.get(key)) for key in [*before, *now]}
    return [
        (key, *('not set' if value is None else value for value in pair))
        for key, pair in pairs.items()
        if pair[0] != pair[1]
    ]


# ---- which checkpoint ---------------------------------------------------------------------------


def load_resume_state(opt: dict) -> dict | None:
    """Replaces ``basicsr.train.load_resume_state``: state to go on from, None for a fresh start.

    ``--auto_resume`` takes the newest checkpoint of the experiment all of whose files are what was
    written, and says which newer ones it passed over; the weights are those that the state lists,
    wherever it lies. Rank 0 chooses for all.

    Raises:
        ResumeError: ``path.resume_state`` cannot be used, there are states but none is whole
            (a fresh start would move the old run aside), or the state is of another network.
        SystemExit: the script that starts the training was imported by one of its own processes.
    """
    # A script without a main guard would start a second run in every process that is spawned.
    if getattr(multiprocessing.current_process(), '_inheriting', False):
        refuse(
            [
                'The script that starts the training was imported by a loader process of that '
                "training, which the start method 'spawn' begins so. Put the start under a guard:\n"
                "    if __name__ == '__main__':\n"
                "        basicsr.train.train_pipeline('.')"
            ]
        )
    progress.resumed = None
    checkpoint = _agreed_choice(opt)
    if checkpoint is None:
        return None
    path, state = checkpoint.path, checkpoint.state
    opt['path']['resume_state'] = str(path)
    seed = state.get('options', {}).get('manual_seed')
    if progress.seed_drawn and seed is not None:  # it keeps its own
        opt['manual_seed'] = seed
        set_random_seed(seed + opt['rank'])
    _refuse_other_networks(opt, checkpoint)
    for name, file in checkpoint.weights.items():
        label = name.removeprefix('net_')
        opt['path'] |= {f'pretrain_network_{label}': str(file), f'param_key_{label}': 'params'}
    for folder in ('models', 'training_states'):  # BasicSR makes them for a fresh start only
        Path(opt['path'][folder]).mkdir(parents=True, exist_ok=True)
    progress.resumed = checkpoint
    return state


def _agreed_choice(opt: dict) -> files.Checkpoint | None:
    """The checkpoint that rank 0 chose, read by every rank."""
    chosen = None

    def choose() -> str | None:
        nonlocal chosen
        if opt['rank'] == 0:
            chosen = _choose(opt)
        return chosen and str(chosen.path)

    def read() -> None:
        nonlocal chosen
        if path is not None and chosen is None:
            chosen = files.Checkpoint.read(Path(path), _networks(opt))

    path = together(opt, choose)[0]
    together(opt, read)
    return chosen


def _networks(opt: Mapping[str, Any]) -> list[str]:
    """Names of the networks that a resumed run takes from the checkpoint."""
    ignored = opt['path'].get('ignore_resume_networks') or ()
    names = [key for key in opt if key.startswith('network_') and key not in ignored]
    return [name.replace('network_', 'net_') for name in names]


def _choose(opt: dict) -> files.Checkpoint | None:
    """With --auto_resume the newest whole checkpoint of the experiment; else the named one."""
    named, folder = opt['path'].get('resume_state'), Path(opt['path']['training_states'])
    skipped = []
    for iteration in reversed(files.iterations_of(folder)) if opt['auto_resume'] else ():
        try:
            found = files.Checkpoint.read(folder / f'{iteration}.state', _networks(opt))
        except ResumeError as error:
            skipped.append(str(error))
        else:
            if skipped:
                # BasicSR's logger is set up later; an unconfigured one writes warnings to stderr.
                logging.getLogger('basicsr').warning(
                    'Resuming from %s, passing over: %s.', found.path, '; '.join(skipped)
                )
            return found
    if skipped:
        raise ResumeError(
            f'no training state can be resumed: {"; ".join(skipped)}. To start anew, move '
            f'{opt["path"]["experiments_root"]} away or leave out --auto_resume.'
        )
    return _named(opt, Path(named), folder) if named else None


def _named(opt: dict, path: Path, folder: Path) -> files.Checkpoint:
    """The checkpoint of ``path.resume_state``; newer ones in the run's folder are in its way."""
    try:
        found = files.Checkpoint.read(path, _networks(opt))
    except ResumeError as error:
        raise ResumeError(f'path.resume_state: {error}. Name an older state.') from error
    newer = [str(n) for n in files.iterations_of(folder) if n > found.state['iter']]
    if newer:
        raise ResumeError(
            f'path.resume_state: {path} is older than the checkpoints {", ".join(newer)} in '
            f'{folder}, which --auto_resume takes. To go on from the older one, give the run '
            'another name, or move these away.'
        )
    return found


def _refuse_other_networks(opt: Mapping[str, Any], checkpoint: files.Checkpoint) -> None:
    """A run cannot change its network: ResumeError names every key that differs."""
    ignored = opt['path'].get('ignore_resume_networks') or ()
    current = run_options(opt)
    changed = [
        f'{key} is {now} in the option file and {then} in the state'
        for key, then, now in differences(checkpoint.state.get('options') or current, current)
        if key.startswith('network_')
        and key.partition('.')[0] not in ignored
        and key.rpartition('.')[2] not in MEMORY_ONLY
    ]
    if changed:
        raise ResumeError(
            f'{checkpoint.path} is of another network: {"; ".join(changed)}. Give the new run '
            'another name; weights that fit it can be named in path.pretrain_network_g.'
        )


def report_changes(opt: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    """Says what has changed since a state was written, one sentence for each key."""
    following = f'the new value is used from iteration {state["iter"] + 1} on.'
    current = run_options(opt)
    messages = [
        f'{key} is {now} now, but the resumed state was made with {then}; {following}'
        for key, then, now in differences(state.get('options') or current, current)
    ]
    then, now = state.get('data'), progress.data
    if then and now and then != now:
        messages.append(
            f'datasets.train holds {now["images"]} images now, but the resumed state was made with '
            f'{then["images"]} of other names or sizes: the run goes on with other data.'
        )
    if opt['rank'] == 0:
        for message in messages:
            logging.getLogger('basicsr').warning(message)
    return messages
