"""Replacement of ``basicsr.train.load_resume_state``: finds the newest checkpoint that is whole."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from basicsr.utils import check_resume, set_random_seed

from unfoldldm_basicsr.common.contract import MEMORY_ONLY
from unfoldldm_basicsr.common.errors import ResumeError, writing
from unfoldldm_basicsr.common.ranks import on_rank_0
from unfoldldm_basicsr.options.parse import start
from unfoldldm_basicsr.training.checkpoint_files import (
    fault_of_networks,
    iterations_of,
    manifest_path,
    read_state,
    weights_of,
)
from unfoldldm_basicsr.training.progress import progress
from unfoldldm_basicsr.training.run_options import differences, run_options


class ResumedRun:
    """What a run goes on from."""

    def __init__(self, path: Path, state: dict):
        self.path, self.state = path, state

    def set_aside_newer(self, opt: Mapping[str, Any]) -> None:
        """Moves checkpoints above the resumed one out of the way of ``--auto_resume``.

        They belong to another continuation of the run, or are damaged. Rank 0 does it for all.

        Raises:
            OutputWriteError: they cannot be moved.
        """
        on_rank_0(opt, lambda: set_aside(opt['path'], self.state['iter']))

    def report(self, opt: Mapping[str, Any]) -> list[str]:
        """Says what has changed since the state was written, one sentence for each key."""
        following = f'the new value is used from iteration {self.state["iter"] + 1} on.'
        stored, current = self.state.get('options'), run_options(opt)
        messages = [
            f'{key} is {now} now, but the resumed state was made with {then}; {following}'
            for key, then, now in (differences(stored, current) if stored else ())
        ]
        then, now = self.state.get('data'), progress.data
        if then and then['images'] != now['images']:
            messages.append(
                f'datasets.train holds {now["images"]} images now, but the resumed state was made '
                f'with {then["images"]}: the run goes on with other data.'
            )
        elif then and then != now:
            messages.append(
                'datasets.train holds images of other names or sizes than those that the resumed '
                'state was made with: the run goes on with other data.'
            )
        if opt['rank'] == 0:
            for message in messages:
                logging.getLogger('basicsr').warning(message)
        return messages


def set_aside(paths: Mapping[str, Any], iteration: int) -> Path | None:
    """Moves the checkpoints above ``iteration`` to ``set_aside_TIME`` of the experiment.

    The folders inside keep their names, so that a checkpoint there is whole and can be moved back.
    A state moves after its weights: when a run is killed here, ``--auto_resume`` passes over the
    checkpoint that was being moved, and the next start moves the rest.

    Args:
        paths: section ``path`` of the options.
        iteration: of the newest checkpoint that stays.

    Returns:
        The folder, None where there was nothing to move.

    Raises:
        OutputWriteError: they cannot be moved.
    """
    states, models = Path(paths['training_states']), Path(paths['models'])
    newer = [number for number in iterations_of(states) if number > iteration]
    if not newer:
        return None
    folder = Path(paths['experiments_root']) / f'set_aside_{time.strftime("%Y%m%d_%H%M%S")}'
    with writing(folder):
        for number in newer:
            state = states / f'{number}.state'
            for path in (*weights_of(models, number), manifest_path(state), state):
                target = folder / path.parent.name / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                if path.exists():
                    os.replace(path, target)
    logging.getLogger('basicsr').warning(
        'The run goes on from iteration %d. The newer checkpoints %s are of another continuation '
        'of it, or damaged: they were moved to %s, so that --auto_resume does not take them.',
        iteration,
        ', '.join(map(str, newer)),
        folder,
    )
    return folder


def load_resume_state(opt: dict) -> dict | None:
    """State to go on from, or None for a fresh start.

    BasicSR looks for states below the current folder instead of the experiment's, needs a GPU to
    load them, gives up on a truncated file and never looks at the weights that belong to it. Here
    ``--auto_resume`` takes the newest checkpoint all of whose files are what was written, and says
    which newer ones it passed over. Rank 0 chooses for all.

    Raises:
        ResumeError: ``path.resume_state`` cannot be used, there are states but none is whole
            (a fresh start would move the old run aside), or the state is of another network.
    """
    progress.begin()
    path, state = _agreed_choice(opt)
    if path is None:
        return None
    if state is None:
        state, fault = read_state(path)
        if state is None:
            raise ResumeError(f'rank {opt["rank"]}: {path} {fault}, although rank 0 can read it.')
    opt['path']['resume_state'] = str(path)
    seed = state.get('options', {}).get('manual_seed')
    if (
        start().seed_drawn and seed is not None
    ):  # the option file names none: the run keeps the one it drew
        opt['manual_seed'] = seed
        set_random_seed(seed + opt['rank'])
    refuse_other_networks(opt, path, state)
    check_resume(opt, state['iter'])
    progress.resumed = ResumedRun(path, state)
    return state


def _agreed_choice(opt: dict) -> tuple[Path | None, dict | None]:
    """Path of the state, the same on all ranks, and the state itself on rank 0."""
    if not opt.get('dist'):
        return _choose(opt)
    answer, state = [None, None], None
    if opt['rank'] == 0:
        try:
            path, state = _choose(opt)
            answer = [path and str(path), None]
        except ResumeError as error:
            answer = [None, str(error)]
    torch.distributed.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise ResumeError(answer[1])
    return (Path(answer[0]) if answer[0] else None), state


def _choose(opt: dict) -> tuple[Path | None, dict | None]:
    if opt['auto_resume']:
        return newest_whole_state(opt) or (None, None)
    if not opt['path'].get('resume_state'):
        return None, None
    path = Path(opt['path']['resume_state'])
    state, fault = read_state(path)
    fault = fault or fault_of_networks(opt, state['iter'])
    if fault:
        raise ResumeError(f'path.resume_state: {path} {fault}. Name an older state.')
    return path, state


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
            if skipped:
                # BasicSR's logger is set up later; an unconfigured one writes warnings to stderr.
                logging.getLogger('basicsr').warning(
                    'Resuming from %s, passing over: %s.', path, '; '.join(skipped)
                )
            return path, state
        skipped.append(f'{path} {fault}')
    if skipped:
        raise ResumeError(
            'no training state can be resumed: ' + '; '.join(skipped) + f'. To start anew, move '
            f'{opt["path"]["experiments_root"]} away or leave out --auto_resume.'
        )
    return None


def refuse_other_networks(opt: Mapping[str, Any], path: Path, state: Mapping[str, Any]) -> None:
    """A run cannot change its network.

    Raises:
        ResumeError: names every key that differs.
    """
    ignored = opt['path'].get('ignore_resume_networks') or ()
    stored, current = (
        {k: v for k, v in options.items() if k.startswith('network_')}
        for options in (state.get('options', {}), run_options(opt))
    )
    changed = [
        f'{key} is {now} in the option file and {then} in the state'
        for key, then, now in (differences(stored, current) if stored else ())
        if key.partition('.')[0] not in ignored and key.rpartition('.')[2] not in MEMORY_ONLY
    ]
    if changed:
        raise ResumeError(
            f'{path} is of another network: {"; ".join(changed)}. Give the new run another name; '
            'weights that fit it can be named in path.pretrain_network_g.'
        )
