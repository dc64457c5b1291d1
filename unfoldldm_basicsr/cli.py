"""The command ``unfoldldm``: its commands, their help and their options.

Without torch or BasicSR, which the module of a command loads, so that ``--help`` and mistyped
options are answered at once.
"""

import argparse
import importlib
import io
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import unfoldldm_basicsr
from unfoldldm_basicsr.common.process import import_packages
from unfoldldm_basicsr.compat.imports import load_data_only
from unfoldldm_basicsr.preparing.new_training import NETWORKS, TASKS
from unfoldldm_basicsr.training.memory import prefer_huge_pages


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command: ``run_NAME(args)`` of its module gives the exit status.

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
        name = MODULES.get(args.command, args.command)
        command = importlib.import_module(f'unfoldldm_basicsr.commands.{name}_command')
        status = getattr(command, f'run_{args.command}')(args)
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


def _init(parser: argparse.ArgumentParser) -> None:
    """write the option files of a training on your own images, sized for this machine"""
    add = parser.add_argument
    add('clean', help='folder or LMDB of clean images, or a set that unfoldldm prepare wrote')
    add('--degraded', help='their degraded partners of equal names; else --task')
    add('--val', help='clean images to validate on (default: a tenth, at most 20, is held back)')
    add('--val-degraded', help='their degraded partners')
    add('--task', choices=TASKS, help='how clean images are degraded (blind: blur and noise)')
    sizes = f'{", ".join(NETWORKS)} (default: unfoldldm-tiny on a CPU, -small on a GPU)'
    add('--network', choices=NETWORKS, metavar='NAME', help=sizes)
    add('--memory', metavar='GIB', help='of the GPU to train on, or cpu (default: what is here)')
    add('--hours', type=float, help='of the training, on this machine (default: by the images)')
    add('--name', default='mine', help='of the experiment and the files (mine)')
    add('-o', '--output', type=Path, default=Path(), help='folder for the files (default: here)')
    add('--overwrite', action='store_true', help='replace existing files')


def _list(parser: argparse.ArgumentParser) -> None:
    """registered networks, models, losses, data sets and metrics, and the sizes of the networks"""
    parser.add_argument('--options', metavar='FOLDER', help='of option files (./options)')


def _check(parser: argparse.ArgumentParser) -> None:
    """find all mistakes in option files before a run is started"""
    add = parser.add_argument
    files = 'option files, and folders of comparisons'
    add('-opt', '--opt', required=True, nargs='+', metavar='FILE', help=files)
    add('--no-data', action='store_true', help='leave out data, weights and GPUs of this machine')
    add('--no-strict', action='store_true', help='warn about unknown keys instead of refusing them')
    add('--force_yml', nargs='+', default=[], metavar='KEY:KEY=VALUE', help='as in training')


def _migrate(parser: argparse.ArgumentParser) -> None:
    """translate an option file of Restormer or NAFNet, with one comment per replaced key"""
    add = parser.add_argument
    add('file', type=Path, help='option file')
    add('-o', '--output', type=Path, help='new option file (default: standard output)')
    add('--overwrite', action='store_true', help='replace an existing file')


def _prepare(parser: argparse.ArgumentParser) -> None:
    """check an unpacked data set, pair its images, write LMDBs"""
    add = parser.add_argument
    add('set', nargs='?', metavar='SET', help='one of those shown without it; folder: your images')
    add('-i', '--input', type=Path, help='where it is unpacked; without it: what is expected there')
    add('-o', '--output', type=Path, help='folder (datasets/SET), or for clean images NAME.lmdb')
    add('--incomplete', action='store_true', help='take what there is of a set, with a note')
    add('--force', action='store_true', help='replace existing LMDBs')
    add('--threads', type=int, default=min(8, os.cpu_count() or 1), help='default: %(default)s')
    add = parser.add_argument_group('for a folder').add_argument
    add('--gt', metavar='PATHS', help="of clean images, such as 'sharp/{name}' (default: all)")
    lq = "of degraded ones, such as 'blur/{name}' or 'hazy/{name}_{haze}': equal names must agree"
    add('--lq', metavar='PATHS', help=lq)
    add('--part', help='name of the LMDBs: PART_gt.lmdb (default: train)')
    add('--crop-size', type=int, help='cut into overlapping squares of this side')
    add('--step', type=int, help='distance of the squares (default: half a side)')
    add('--thresh-size', type=int, help='largest rest that gets no square of its own (0)')
    kinds = 'png (default); bmp: larger, decodes much faster; source: the files as they are'
    add('--payload', choices=('png', 'bmp', 'source'), help=kinds)


def _restore(parser: argparse.ArgumentParser) -> None:
    """restore photos with trained weights"""
    add = parser.add_argument
    add('-i', '--input', required=True, nargs='+', type=Path, help='images, or folders with images')
    add('-o', '--output', required=True, type=Path, help='folder, or for one image x.png')
    _weights(parser)
    add('--tile', type=int, help='restore in tiles of this many pixels (default: in one piece)')
    add('--tile-overlap', type=int, help='pixels shared by neighbouring tiles (32)')
    yes_or_no = {'action': argparse.BooleanOptionalAction, 'default': True}
    one = 'the same statistics of the image for all its tiles, or each its own (the same)'
    add('--global-statistics', **yes_or_no, help=one)
    add('--suffix', default='', help='added to the names of the results')
    add('--recursive', action='store_true', help='also the folders inside')
    kept = 'results keep EXIF and XMP, in TIFF XMP alone, with the orientation set to normal (yes)'
    add('--keep-metadata', **yes_or_no, help=kept)
    add = parser.add_mutually_exclusive_group().add_argument
    add('--overwrite', action='store_true', help='replace existing results')
    add('--skip-existing', action='store_true', help='leave out images whose results exist')


def _export(parser: argparse.ArgumentParser) -> None:
    """turn a training checkpoint into a smaller file for restoring"""
    add = parser.add_argument
    add('-w', '--weights', required=True, help='checkpoint, models/net_g_*.pth')
    add('-o', '--output', required=True, help='file to write, for example x.pth')
    _reading(parser)
    add('--half', action='store_true', help='float16 values: half the size')
    add('--overwrite', action='store_true', help='replace an existing file')


def _convert(parser: argparse.ArgumentParser) -> None:
    """turn released VLU-Net files (Lightning checkpoints, clip_tuned.pth) into BasicSR files"""
    add = parser.add_argument
    add('file', help='Lightning checkpoint, or clip_tuned.pth')
    add('-o', '--output', help='file to write (default: NAME_basicsr.pth beside the input)')
    order = 'names of the degradations in order (noise15,noise25,noise50,rain,haze,blur,lowlight)'
    add('--classes', type=re.compile(r'\s*,\s*').split, metavar='A,B,...', help=order)
    trust = 'also read files that run code while they are read; only from a source you trust'
    add('--unsafe-pickle', action='store_true', help=trust)
    add('--overwrite', action='store_true', help='replace an existing file')


def _explain(parser: argparse.ArgumentParser) -> None:
    """show what the stages of UnfoldLDM or VLU-Net do to an image"""
    add = parser.add_argument
    add('image', type=Path, help='the image, as the network would get it')
    _weights(parser)
    add('-o', '--output', type=Path, default=Path(), help='folder for the results (default: here)')
    add('--max-size', type=int, default=512, help='of a side; larger images are reduced (512)')
    add('--overwrite', action='store_true', help='replace existing results')


def _degrade(parser: argparse.ArgumentParser) -> None:
    """preview the degradations of an option file on a photo"""
    add = parser.add_argument
    add('image', type=Path, help='a clean photo')
    add('-o', '--output', type=Path, required=True, help='the sheet, .png or .jpg')
    add('-opt', '--opt', type=Path, help='option file (default: all degradations there are)')
    add('--seed', type=int, default=0, help='seed of the random numbers (0)')
    add('--overwrite', action='store_true', help='replace an existing file')


def _compare(parser: argparse.ArgumentParser) -> None:
    """train, test and compare networks at an equal budget"""
    add = parser.add_argument
    folder = 'of common.yml and a file for each network, or of rows.yml (an ablation)'
    add('-opt', '--opt', type=Path, metavar='FOLDER', help=folder)
    add('--root', type=Path, default=Path(), help='where experiments/ and results/ are')
    changes = 'changes to common.yml, for example compare:budget:amount=2400'
    add('--force_yml', nargs='+', default=[], metavar='KEY:KEY=VALUE', help=changes)
    add('--only', nargs='+', default=[], metavar='NAME', help='only these (default: all)')
    add = parser.add_argument_group('finished runs and weights in place of trainings').add_argument
    names = 'below experiments/, folders, or weight files; -opt then names the test sets alone'
    add('--runs', nargs='+', default=[], metavar='RUN', help=names)
    add('--allow', nargs='+', metavar='KEY', help='option keys in which they may differ')
    add('--sizes', type=int, nargs='+', help='of costs (256)')
    add('--threads', type=int, help='of tests and costs (1)')
    add('--reference', metavar='NAME', help='that the others are compared with')
    add('-o', '--output', type=Path, help='folder (results/runs)')


def _ablate(parser: argparse.ArgumentParser) -> None:
    """train, test and compare one network with parts changed (options/ablate/...)"""
    _compare(parser)


def _report(parser: argparse.ArgumentParser) -> None:
    """draw the curves of a training and say what its prior is worth"""
    add = parser.add_argument
    runs = 'a name below experiments/, or its folder; with --page: folders of reports'
    add('folders', type=Path, nargs='*', metavar='RUN', help=runs)
    add('-o', '--output', type=Path, help='folder (results/report_RUN)')
    add('--root', type=Path, default=Path(), help='where experiments/ and results/ are')
    page = 'copy the tables and pictures of reports beside this page, and write it anew'
    add('--page', type=Path, metavar='FILE.md', help=page)
    add('--no-crops', action='store_true', help='for --page, of photos not to be published')


def _weights(parser: argparse.ArgumentParser) -> None:
    """Defines ``-w`` and what belongs to it."""
    add = parser.add_mutually_exclusive_group().add_argument
    add('-w', '--weights', help='for example net_g.pth (default: those of the package)')
    add('--pretrained', metavar='NAME', help='weights of the package; unfoldldm list shows them')
    _reading(parser)
    add = parser.add_argument
    told = 'VLU-Net: name or index of the degradation, for weights that cannot tell it (auto)'
    add('--degradation', default='auto', metavar='NAME', help=told)
    clip = 'VLU-Net: OpenCLIP weights, or their tag, for weights stored without CLIP'
    add('--clip-weights', metavar='FILE', help=clip)
    add('--device', default='auto', help='auto, cpu, cuda, cuda:1, ... (auto)')


def _reading(parser: argparse.ArgumentParser) -> None:
    """Defines how a weight file is read."""
    add = parser.add_argument
    add('-opt', '--opt', help='option file, for weights without metadata')
    add('--param-key', help='weights to take: params_ema (default where present) or params')


def _doctor(parser: argparse.ArgumentParser) -> None:
    """versions, scan backends and GPU of this installation, and the fix for every fault"""


# name -> function that adds its options; what it says of itself is the help
COMMANDS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    add_arguments.__name__[1:]: add_arguments
    for add_arguments in (
        _init, _list, _check, _migrate, _doctor, _prepare, _restore, _export, _convert, _explain,
        _degrade, _compare, _ablate, _report,
    )
}  # fmt: skip
# commands in the module of another
MODULES = {'migrate': 'check', 'convert': 'export', 'ablate': 'compare', 'report': 'compare'}


if __name__ == '__main__':
    sys.exit(main())
