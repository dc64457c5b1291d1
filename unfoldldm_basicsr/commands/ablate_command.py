"""``unfoldldm ablate``: what is each part of a network worth?"""

from __future__ import annotations

from unfoldldm_basicsr.commands.compare_command import add_task_arguments as add_arguments
from unfoldldm_basicsr.commands.compare_command import run

__all__ = ['HELP', 'NAME', 'add_arguments', 'run']
NAME = 'ablate'
HELP = 'train, test and compare one network with parts changed (options/ablate/...)'
