"""A comparison from a folder of option files to a folder with its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unfoldldm_basicsr.comparing.runs import Say, only_one, plan, train
from unfoldldm_basicsr.comparing.task import known, read_task
from unfoldldm_basicsr.compat.imports import load_data_only


def compare(
    folder: Path, root: Path, overrides: Sequence[str], only: Sequence[str], say: Say = print
) -> str:
    """Trains, tests and reports.

    Args:
        folder: of the option files, see :mod:`.task`.
        root: where ``experiments`` and ``results`` are.
        overrides: changes to ``common.yml``.
        only: names of the sides to look at; all where empty.
        say: gets lines about the progress.

    Returns:
        One line that says where the report is.
    """
    load_data_only()
    task = read_task(folder, overrides)
    names = [side.name for side in task.sides]
    for name in only:
        known(name, names, '--only')
    if only:
        wanted = {s.trained_as for s in task.sides if s.name in only} | set(only)
        task = replace(task, sides=tuple(s for s in task.sides if s.name in wanted))
    report = root / 'results' / task.label
    with only_one(report, say):
        runs = plan(task, root, report, say)
        train(runs, root, report, task.settings.threads, say)
    return f'Report: {report}'
