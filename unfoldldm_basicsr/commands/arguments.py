"""The command line of ``unfoldldm``: every command, its help and its options.

Apart from the commands themselves, and without torch or BasicSR, so that ``--help`` and mistyped
options are answered at once.
"""

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path

from unfoldldm_basicsr.preparing.new_training import NETWORKS, TASKS


def _init(parser: argparse.ArgumentParser) -> None:
    """write the option files of a training on your own images, sized for this machine"""
    add = parser.add_argument
    add('clean', help='folder or LMDB of clean images, or a set that unfoldldm prepare wrote')
    add('--degraded', help='their degraded partners of equal names; else --task')
    add('--val', help='clean images to validate on (default: a tenth, at most 20, is held back)')
    add('--val-degraded', help='their degraded partners')
    add(
        '--task', choices=TASKS, help='how clean images are degraded (default: blind, blur + noise)'
    )
    add(
        '--network', choices=NETWORKS, metavar='NAME',
        help=f'{", ".join(NETWORKS)} (default: unfoldldm-tiny on a CPU, -small on a GPU)',
    )  # fmt: skip
    add(
        '--memory', metavar='GIB', help='GiB of the GPU to train on, or cpu (default: what is here)'
    )
    add(
        '--hours', type=float,
        help='how long the training may take on this machine (default: by the number of images)',
    )  # fmt: skip
    add('--name', default='mine', help='of the experiment and the files (mine)')
    add('-o', '--output', type=Path, default=Path(), help='folder for the files (default: here)')
    add('--overwrite', action='store_true', help='replace existing files')


def _list(parser: argparse.ArgumentParser) -> None:
    """registered networks, models, losses, data sets and metrics, and the sizes of the networks"""
    parser.add_argument(
        '--options', metavar='FOLDER', help='folder with option files (default: ./options)'
    )


def _check(parser: argparse.ArgumentParser) -> None:
    """find all mistakes in option files before a run is started"""
    add = parser.add_argument
    add('-opt', '--opt', required=True, nargs='+', metavar='FILE', help='option files')
    add(
        '--no-data', action='store_true',
        help='leave out what belongs to one machine: data, weights, GPUs',
    )  # fmt: skip
    add('--no-strict', action='store_true', help='warn about unknown keys instead of refusing them')
    add('--force_yml', nargs='+', default=[], metavar='KEY:KEY=VALUE', help='as in training')


def _migrate(parser: argparse.ArgumentParser) -> None:
    """translate an option file of Restormer or NAFNet, with one comment per replaced key"""
    parser.add_argument('file', help='option file')
    parser.add_argument('-o', '--output', help='new option file (default: standard output)')


def _prepare(parser: argparse.ArgumentParser) -> None:
    """check an unpacked data set, pair its images, write LMDBs"""
    add = parser.add_argument
    add(
        'set', nargs='?', metavar='SET',
        help='name of a set, or folder for your own images; without it: which sets there are',
    )  # fmt: skip
    add('-i', '--input', type=Path, help='where it is unpacked; without it: what is expected there')
    add(
        '-o', '--output', type=Path,
        help='folder of the LMDBs (default: datasets/SET); for a folder of clean images NAME.lmdb',
    )  # fmt: skip
    add('--incomplete', action='store_true', help='take what there is of a set, with a note')
    add('--force', action='store_true', help='replace existing LMDBs')
    add('--threads', type=int, default=min(8, os.cpu_count() or 1), help='default: %(default)s')
    own = parser.add_argument_group('for a folder')
    own.add_argument(
        '--gt', metavar='PATHS',
        help="where the clean images lie, such as 'sharp/{name}' (default: everywhere)",
    )  # fmt: skip
    own.add_argument(
        '--lq', metavar='PATHS',
        help="where their degraded ones lie, such as 'blur/{name}' or 'hazy/{name}_{haze}': "
        'what has one name in braces must agree',
    )  # fmt: skip
    own.add_argument('--part', help='name of the LMDBs: PART_gt.lmdb (default: train)')
    own.add_argument('--crop-size', type=int, help='cut into overlapping squares of this side')
    own.add_argument('--step', type=int, help='distance of the squares (default: half a side)')
    own.add_argument(
        '--thresh-size', type=int,
        help='no further square for a rest of at most this many pixels (default: 0)',
    )  # fmt: skip
    own.add_argument(
        '--payload', choices=('png', 'bmp', 'source'),
        help='png (default); bmp: larger but decodes much faster; source: the files as they are',
    )  # fmt: skip


def _restore(parser: argparse.ArgumentParser) -> None:
    """restore photos with trained weights"""
    add = parser.add_argument
    add('-i', '--input', required=True, nargs='+', type=Path, help='images, or folders with images')
    add(
        '-o', '--output', required=True, type=Path,
        help='folder for the results, or for one image the name of its result: x.png',
    )  # fmt: skip
    _weights(parser)
    add('--tile', type=int, help='restore in tiles of this many pixels (default: in one piece)')
    add('--tile-overlap', type=int, default=32, help='pixels shared by neighbouring tiles (32)')
    add(
        '--global-statistics', action=argparse.BooleanOptionalAction, default=True,
        help='the same statistics of the image for all its tiles, which is closer to the result'
        ' without tiles, or those of each tile (default: the same, where the network has any)',
    )  # fmt: skip
    add('--suffix', default='', help='added to the names of the results')
    add('--recursive', action='store_true', help='also the folders inside')
    add(
        '--keep-metadata', action=argparse.BooleanOptionalAction, default=True,
        help='results keep EXIF and XMP of their images, with the orientation set to normal; those'
        ' in TIFF XMP alone (yes)',
    )  # fmt: skip
    add('--save-trace', action='store_true', help='also a picture of every stage (UnfoldLDM)')
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument('--overwrite', action='store_true', help='replace existing results')
    existing.add_argument(
        '--skip-existing', action='store_true', help='leave out images whose results exist'
    )


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
    add(
        '--classes', type=re.compile(r'\s*,\s*').split, metavar='A,B,...',
        help='names of the degradations in the order of their indices (default: the released'
        ' order: noise15, noise25, noise50, rain, haze, blur, lowlight)',
    )  # fmt: skip
    add(
        '--unsafe-pickle', action='store_true',
        help='also read files that run code while they are read; only from a source you trust',
    )  # fmt: skip
    add('--overwrite', action='store_true', help='replace an existing file')


def _explain(parser: argparse.ArgumentParser) -> None:
    """show what the stages of UnfoldLDM or VLU-Net do to an image"""
    add = parser.add_argument
    add('image', type=Path, help='the image, as the network would get it')
    _weights(parser)
    add('-o', '--output', type=Path, default=Path(), help='folder for the results (default: here)')
    add(
        '--max-size', type=int, default=512,
        help='images with a longer side are reduced to this many pixels first (512)',
    )  # fmt: skip
    add('--overwrite', action='store_true', help='replace existing results')


def _degrade(parser: argparse.ArgumentParser) -> None:
    """preview the degradations of an option file on a photo"""
    add = parser.add_argument
    add('image', type=Path, help='a clean photo')
    add('-o', '--output', type=Path, required=True, help='the sheet, .png or .jpg')
    add(
        '-opt', '--opt', type=Path,
        help='option file whose degradations to show (default: all there are, at their defaults)',
    )  # fmt: skip
    add('--dataset', help='section of datasets in the option file (default: the first that fits)')
    add('--seed', type=int, default=0, help='seed of the random numbers (0)')
    add('--overwrite', action='store_true', help='replace an existing file')


def _compare(parser: argparse.ArgumentParser) -> None:
    """train, test and compare networks at an equal budget"""
    _ablate(parser)
    finished = parser.add_argument_group('finished runs and weights in place of trainings')
    finished.add_argument(
        '--runs', nargs='+', default=[], metavar='RUN',
        help='names below experiments/, their folders, or weight files; -opt then only names the '
        'test sets (default: the validation sets of the first run)',
    )  # fmt: skip
    finished.add_argument(
        '--allow', nargs='+', default=[], metavar='KEY', help='option keys in which they may differ'
    )
    finished.add_argument('--sizes', type=int, nargs='+', help='of costs (256)')
    finished.add_argument('--threads', type=int, help='of tests and costs (1)')
    finished.add_argument('--reference', metavar='NAME', help='that the others are compared with')
    finished.add_argument('-o', '--output', type=Path, help='folder (results/runs)')


def _ablate(parser: argparse.ArgumentParser) -> None:
    """train, test and compare one network with parts changed (options/ablate/...)"""
    add = parser.add_argument
    parser.set_defaults(runs=[])
    add(
        '-opt', '--opt', type=Path, metavar='FOLDER',
        help='folder of common.yml and a file for each network, or of rows.yml (an ablation)',
    )  # fmt: skip
    add(
        '--root', type=Path, default=Path(),
        help='where experiments/ and results/ are (default: the current folder)',
    )  # fmt: skip
    add(
        '--force_yml', nargs='+', default=[], metavar='KEY:KEY=VALUE',
        help='changes to common.yml, for example compare:budget:amount=2400',
    )  # fmt: skip
    add('--only', nargs='+', default=[], metavar='NAME', help='only these (default: all)')


def _report(parser: argparse.ArgumentParser) -> None:
    """draw the curves of a training and say what its prior is worth"""
    add = parser.add_argument
    add(
        'folders', type=Path, nargs='*', metavar='RUN',
        help='a name below experiments/, or its folder; with --page: folders of reports',
    )  # fmt: skip
    add('-o', '--output', type=Path, help='folder (results/report_RUN)')
    add('--root', type=Path, default=Path(), help='where experiments/ and results/ are')
    add(
        '--page', type=Path, metavar='FILE.md',
        help='copy the tables and pictures of reports beside this page, and write it anew',
    )  # fmt: skip
    add(
        '--no-crops', action='store_true',
        help='with --page: leave out crops of photos that may not be published',
    )  # fmt: skip


def _weights(parser: argparse.ArgumentParser) -> None:
    """Defines ``-w`` and what belongs to it."""
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        '-w', '--weights', help='weights, for example net_g.pth (default: those of the package)'
    )
    which.add_argument(
        '--pretrained', metavar='NAME', help='weights of the package; unfoldldm list shows them'
    )
    _reading(parser)
    add(
        '--degradation', default='auto', metavar='NAME',
        help='VLU-Net: name or index of the degradation, for weights that cannot tell it (auto)',
    )  # fmt: skip
    add(
        '--clip-weights', metavar='FILE',
        help='VLU-Net: OpenCLIP weights, or their tag, for weights stored without CLIP',
    )  # fmt: skip
    add('--device', default='auto', help='auto, cpu, cuda, cuda:1, ... (auto)')


def _reading(parser: argparse.ArgumentParser) -> None:
    """Defines how a weight file is read."""
    parser.add_argument('-opt', '--opt', help='option file, for weights without metadata')
    parser.add_argument(
        '--param-key', help='weights to take: params_ema (default where present) or params'
    )


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
