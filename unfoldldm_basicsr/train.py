"""Training: ``python -m unfoldldm_basicsr.train -opt FILE [--root FOLDER] [--import PACKAGE] ...``.

The option file is checked as a whole, then BasicSR's own pipeline runs. Experiments go below the
current folder, or below ``--root``.
"""

import argparse
import importlib
import os
import sys

import unfoldldm_basicsr
from unfoldldm_basicsr.common.option_files import build_parser
from unfoldldm_basicsr.common.process import IMPORT, import_packages
from unfoldldm_basicsr.training.memory import prefer_huge_pages


def take_own(argv: list[str]) -> tuple[str, list[str], list[str]]:
    """Splits ``--root FOLDER`` (default: current folder) and every ``--import`` off; the rest."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--root', default=os.curdir)
    parser.add_argument('--import', dest='packages', action='append', default=[])
    known, rest = parser.parse_known_args(argv)
    return os.path.abspath(os.path.expanduser(known.root)), known.packages, rest


def run(program: str, argv: list[str] | None) -> None:
    """Runs BasicSR's pipeline of a program, ``train`` or ``test``.

    A problem with the options ends with status 2; what stops a run that has begun (a full disk,
    images that cannot be read, the loss of another process, ...) with one message and status 1.
    """
    prefer_huge_pages()
    root, packages, rest = take_own(sys.argv[1:] if argv is None else argv)
    build_parser().parse_args(rest)  # help and mistyped options are answered before torch is loaded
    try:
        unfoldldm_basicsr.register()
        import_packages(packages)
        from unfoldldm_basicsr.common.errors import run_to_end

        module = importlib.import_module(f'basicsr.{program}')
        sys.argv[1:] = rest  # where BasicSR reads its options
        run_to_end(getattr(module, f'{program}_pipeline'), root)
    except ModuleNotFoundError as error:
        asked = os.environ.get(IMPORT, '').split(',')
        if not any(f'{package}.'.startswith(f'{error.name}.') for package in asked):
            raise
        sys.stderr.write(f'--import: {error}; start in the folder that holds it, or install it.\n')
        raise SystemExit(2) from None
    except KeyboardInterrupt:  # of a start; a training that has begun saves and ends by itself
        sys.stderr.write('Stopped. The same command starts again.\n')
        raise SystemExit(130) from None


def main(argv: list[str] | None = None) -> None:
    """Trains, see :func:`run`."""
    run('train', argv)


if __name__ == '__main__':
    main()
