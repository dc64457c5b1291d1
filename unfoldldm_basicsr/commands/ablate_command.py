"""``unfoldldm ablate``: what is each part of a network worth?"""

from unfoldldm_basicsr.commands.compare_command import run

__all__ = ['run']
