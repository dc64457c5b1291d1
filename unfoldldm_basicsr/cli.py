"""The command ``unfoldldm``."""

import argparse
import importlib
import io
import os
import shlex
import signal
import sys
from collections.abc import Sequence

import unfoldldm_basicsr
from unfoldldm_basicsr.commands.arguments import COMMANDS
from unfoldldm_basicsr.common.process import import_packages
from unfoldldm_basicsr.compat.imports import load_data_only
from unfoldldm_basicsr.training.memory import prefer_huge_pages


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command: ``run(args)`` of its module gives the exit status.

    Where it raises ValueError, KeyError, OSError or ImportError the user's input is at fault: one
    line says why (with ``--debug`` the traceback), and the status is 2.
    """
    prefer_huge_pages()
    for stream in (sys.stdout, sys.stderr):  # names that its encoding lacks must not end a command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')
    if argv is None:  # with a plain kill too, nothing half done is left behind
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    words = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(words or ['--help'])
    args.line = shlex.join(['unfoldldm', *words])
    try:
        try:
            unfoldldm_basicsr.register()
            load_data_only()
        except ImportError:
            if args.command != 'doctor':  # which says how to mend it
                raise
        import_packages(args.packages)
        command = importlib.import_module(f'unfoldldm_basicsr.commands.{args.command}_command')
        status = command.run(args)
        print(end='', flush=True)  # here a closed pipe is noticed
        return status
    except BrokenPipeError:  # the reader of the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what shells say of SIGPIPE: not all was done
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


def build_parser() -> argparse.ArgumentParser:
    """The command line; without torch, so that help and mistyped options are answered at once."""
    parser = argparse.ArgumentParser(
        prog='unfoldldm', description='Tools around UnfoldLDM and VLU-Net for BasicSR.'
    )
    parser.add_argument('--version', action='version', version=unfoldldm_basicsr.__version__)
    subparsers = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for name, add_arguments in COMMANDS.items():
        text = add_arguments.__doc__
        subparser = subparsers.add_parser(name, help=text, description=text)
        add_arguments(subparser)
        subparser.add_argument(
            '--import', dest='packages', action='append', default=[], metavar='PACKAGE',
            help='import your package first, for the classes that it registers; repeatable',
        )  # fmt: skip
        subparser.add_argument('--debug', action='store_true', help='show the traceback of errors')
    return parser


if __name__ == '__main__':
    sys.exit(main())
