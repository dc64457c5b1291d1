"""``unfoldldm migrate``: an option file of a fork of BasicSR in the plain form of this package."""

import argparse
import sys
from pathlib import Path

import yaml

from unfoldldm_basicsr.common.files import write_bytes_atomic
from unfoldldm_basicsr.common.option_files import read_option_file
from unfoldldm_basicsr.options.aliases import translate
from unfoldldm_basicsr.options.preflight import preflight
from unfoldldm_basicsr.options.run import is_training


def run(args: argparse.Namespace) -> int:
    """Writes the translated file, and says what is still wrong with it."""
    options = read_option_file(args.file)
    text = commented(options, translate(options))
    if args.output is None:
        print(text, end='')
    elif Path(args.output).exists():
        raise ValueError(f'{args.output} exists: name a new file.')
    else:
        write_bytes_atomic(args.output, text.encode())
    for problem in preflight(options, args.file, is_training(options), here=False):
        print(problem, file=sys.stderr)
    return 0


def commented(options: dict, notes: list[str]) -> str:
    """YAML of an option dict, with the notes as comments above."""
    text = yaml.safe_dump(options, sort_keys=False, default_flow_style=None, allow_unicode=True)
    return ''.join(f'# {note}\n' for note in notes) + text
