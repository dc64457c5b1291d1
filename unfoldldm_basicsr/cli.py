"""The command ``unfoldldm``."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from types import ModuleType

import unfoldldm_basicsr
from unfoldldm_basicsr.common.process import import_packages
from unfoldldm_basicsr.training.memory import prefer_huge_pages

# Each is a module commands/NAME_command.py: NAME, HELP, add_arguments(parser), run(args) -> int.
COMMANDS = (
    'init', 'list', 'check', 'migrate', 'doctor', 'prepare', 'restore', 'export', 'convert',
    'explain', 'degrade', 'compare', 'ablate', 'report',
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        Exit status: 0, or what the command gives; 2 when the user's input is at fault, with one
        line that says why (and the traceback with ``--debug``).
    """
    prefer_huge_pages()
    for stream in (sys.stdout, sys.stderr):  # names that its encoding lacks must not end a command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')
    argv = list(sys.argv[1:] if argv is None else argv)
    args = build_parser(argv).parse_args(argv)
    try:
        import_packages(args.packages)
        return args.run(args)
    except BrokenPipeError:  # the reader of the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    except (ValueError, KeyError, OSError, ImportError) as error:
        if args.debug:
            raise
        # str() of a KeyError is the repr of its message
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f'unfoldldm {args.command}: {text}', file=sys.stderr)
        return 2


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Command line with the command that ``argv`` names, or with all of them."""
    parser = argparse.ArgumentParser(
        prog='unfoldldm', description='Tools around UnfoldLDM and VLU-Net for BasicSR.'
    )
    parser.add_argument('--version', action='version', version=unfoldldm_basicsr.__version__)
    subparsers = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    wanted = [name for name in COMMANDS if argv and argv[0] == name]
    for name in wanted or COMMANDS:
        module = load_command(name)
        subparser = subparsers.add_parser(module.NAME, help=module.HELP, description=module.HELP)
        module.add_arguments(subparser)
        subparser.add_argument(
            '--import', dest='packages', action='append', default=[], metavar='PACKAGE',
            help='import your package first, for the classes that it registers; repeatable',
        )  # fmt: skip
        subparser.add_argument('--debug', action='store_true', help='show the traceback of errors')
        subparser.set_defaults(run=module.run)
    return parser


def load_command(name: str) -> ModuleType:
    """The module of a command."""
    return importlib.import_module(f'unfoldldm_basicsr.commands.{name}_command')


if __name__ == '__main__':
    sys.exit(main())
