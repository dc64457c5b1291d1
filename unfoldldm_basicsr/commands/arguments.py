"""The command line of ``unfoldldm``: every command, its help and its options.

Apart from the commands themselves, and without torch or BasicSR, so that ``--help`` and mistyped
options are answered at once.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path

from unfoldldm_basicsr.preparing.new_training import NETWORKS, TASKS


def _init(parser: argparse.ArgumentParser) -> None:
    """write the option files of a training on your own images, sized for this machine"""
    parser.add_argument(
        'clean', help='folder or LMDB of clean images, or a set that unfoldldm prepare wrote'
    )
    parser.add_argument('--degraded', help='their degraded partners of equal names; else --task')
    parser.add_argument('--val', help='clean images to validate on (default: a tenth is held back)')
    parser.add_argument('--val-degraded', help='their degraded partners')
    parser.add_argument(
        '--task', choices=TASKS, help='how clean images are degraded (default: blind, blur + noise)'
    )
    parser.add_argument(
        '--network', choices=NETWORKS, metavar='NAME',
        help=f'{", ".join(NETWORKS)} (default: unfoldldm-tiny on a CPU, -small on a GPU)',
    )  # fmt: skip
    parser.add_argument(
        '--memory', metavar='GIB', help='GiB of the GPU to train on, or cpu (default: what is here)'
    )
    parser.add_argument(
        '--hours', type=float,
        help='how long the training may take on this machine (default: by the number of images)',
    )  # fmt: skip
    parser.add_argument('--name', default='mine', help='of the experiment and the files (mine)')
    parser.add_argument(
        '-o', '--output', type=Path, default=Path(), help='folder for the files (default: here)'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace existing files')


def _list(parser: argparse.ArgumentParser) -> None:
    """registered networks, models, losses, data sets and metrics, and the sizes of the networks"""
    parser.add_argument(
        '--options', metavar='FOLDER', help='folder with option files (default: ./options)'
    )


def _check(parser: argparse.ArgumentParser) -> None:
    """find all mistakes in option files before a run is started"""
    parser.add_argument(
        '-opt', '--opt', required=True, nargs='+', metavar='FILE', help='option files'
    )
    parser.add_argument(
        '--no-data', action='store_true',
        help='leave out what belongs to one machine: data, weights, GPUs',
    )  # fmt: skip
    parser.add_argument(
        '--no-strict', action='store_true', help='warn about unknown keys instead of refusing them'
    )
    parser.add_argument(
        '--force_yml', nargs='+', default=[], metavar='KEY:KEY=VALUE', help='as in training'
    )


def _migrate(parser: argparse.ArgumentParser) -> None:
    """translate an option file of Restormer or NAFNet, with one comment per replaced key"""
    parser.add_argument('file', help='option file')
    parser.add_argument('-o', '--output', help='new option file (default: standard output)')


def _prepare(parser: argparse.ArgumentParser) -> None:
    """check an unpacked data set, pair its images, write LMDBs"""
    parser.add_argument(
        'set', nargs='?', metavar='SET',
        help='name of a set, or folder for your own images; without it: which sets there are',
    )  # fmt: skip
    parser.add_argument(
        '-i', '--input', type=Path, help='where it is unpacked; without it: what is expected there'
    )
    parser.add_argument(
        '-o', '--output', type=Path,
        help='folder of the LMDBs (default: datasets/SET); for a folder of clean images NAME.lmdb',
    )  # fmt: skip
    parser.add_argument(
        '--incomplete', action='store_true', help='take what there is of a set, with a note'
    )
    parser.add_argument('--force', action='store_true', help='replace existing LMDBs')
    parser.add_argument(
        '--threads', type=int, default=min(8, os.cpu_count() or 1), help='default: %(default)s'
    )
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
    parser.add_argument(
        '-i', '--input', required=True, nargs='+', type=Path, help='images, or folders with images'
    )
    parser.add_argument(
        '-o', '--output', required=True, type=Path,
        help='folder for the results, or for one image the name of its result: x.png',
    )  # fmt: skip
    _weights(parser)
    parser.add_argument(
        '--tile', type=int, help='restore in tiles of this many pixels (default: in one piece)'
    )
    parser.add_argument(
        '--tile-overlap', type=int, default=32, help='pixels shared by neighbouring tiles (32)'
    )
    parser.add_argument(
        '--global-statistics', action=argparse.BooleanOptionalAction,
        help='the same statistics of the image for all its tiles, which is closer to the result'
        ' without tiles, or those of each tile (default: the same, where the network has any)',
    )  # fmt: skip
    parser.add_argument('--suffix', default='', help='added to the names of the results')
    parser.add_argument('--recursive', action='store_true', help='also the folders inside')
    parser.add_argument(
        '--keep-metadata', action=argparse.BooleanOptionalAction, default=True,
        help='results keep EXIF and XMP of their images, with the orientation set to normal (yes)',
    )  # fmt: skip
    parser.add_argument(
        '--save-trace', action='store_true',
        help='also a picture of every stage (UnfoldLDM)',
    )  # fmt: skip
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument('--overwrite', action='store_true', help='replace existing results')
    existing.add_argument(
        '--skip-existing', action='store_true', help='leave out images whose results exist'
    )


def _export(parser: argparse.ArgumentParser) -> None:
    """turn a training checkpoint into a smaller file for restoring"""
    parser.add_argument('-w', '--weights', required=True, help='checkpoint, models/net_g_*.pth')
    parser.add_argument('-o', '--output', required=True, help='file to write, for example x.pth')
    _reading(parser)
    parser.add_argument('--half', action='store_true', help='float16 values: half the size')
    parser.add_argument('--overwrite', action='store_true', help='replace an existing file')


def _convert(parser: argparse.ArgumentParser) -> None:
    """turn released VLU-Net files (Lightning checkpoints, clip_tuned.pth) into BasicSR files"""
    parser.add_argument('file', help='Lightning checkpoint, or clip_tuned.pth')
    parser.add_argument(
        '-o', '--output', help='file to write (default: NAME_basicsr.pth beside the input)'
    )
    parser.add_argument(
        '--classes', type=re.compile(r'\s*,\s*').split, metavar='A,B,...',
        help='names of the degradations in the order of their indices (default: the released'
        ' order: noise15, noise25, noise50, rain, haze, blur, lowlight)',
    )  # fmt: skip
    parser.add_argument(
        '--unsafe-pickle', action='store_true',
        help='also read files that run code while they are read; only from a source you trust',
    )  # fmt: skip
    parser.add_argument('--overwrite', action='store_true', help='replace an existing file')


def _explain(parser: argparse.ArgumentParser) -> None:
    """show what the stages of UnfoldLDM or VLU-Net do to an image"""
    parser.add_argument('image', type=Path, help='the image, as the network would get it')
    _weights(parser)
    parser.add_argument(
        '-o', '--output', type=Path, default=Path(), help='folder for the results (default: here)'
    )
    parser.add_argument(
        '--max-size', type=int, default=512,
        help='images with a longer side are reduced to this many pixels first (512)',
    )  # fmt: skip
    parser.add_argument('--overwrite', action='store_true', help='replace existing results')


def _degrade(parser: argparse.ArgumentParser) -> None:
    """preview the degradations of an option file on a photo"""
    parser.add_argument('image', type=Path, help='a clean photo')
    parser.add_argument('-o', '--output', type=Path, required=True, help='the sheet, .png or .jpg')
    parser.add_argument(
        '-opt', '--opt', type=Path,
        help='option file whose degradations to show (default: all there are, at their defaults)',
    )  # fmt: skip
    parser.add_argument(
        '--dataset', help='section of datasets in the option file (default: the first that fits)'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the random numbers (0)')


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
    finished.add_argument('--sizes', type=int, nargs='+', default=[256], help='of costs (256)')
    finished.add_argument('--threads', type=int, default=1, help='of tests and costs (1)')
    finished.add_argument('--reference', metavar='NAME', help='that the others are compared with')
    finished.add_argument('-o', '--output', type=Path, help='folder (results/runs)')


def _ablate(parser: argparse.ArgumentParser) -> None:
    """train, test and compare one network with parts changed (options/ablate/...)"""
    parser.set_defaults(runs=[])
    parser.add_argument(
        '-opt', '--opt', type=Path, metavar='FOLDER',
        help='folder of common.yml and a file for each network, or of rows.yml (an ablation)',
    )  # fmt: skip
    parser.add_argument(
        '--root', type=Path, default=Path(),
        help='where experiments/ and results/ are (default: the current folder)',
    )  # fmt: skip
    parser.add_argument(
        '--force_yml', nargs='+', default=[], metavar='KEY:KEY=VALUE',
        help='changes to common.yml, for example compare:budget:amount=2400',
    )  # fmt: skip
    parser.add_argument(
        '--only', nargs='+', default=[], metavar='NAME', help='only these (default: all)'
    )


def _report(parser: argparse.ArgumentParser) -> None:
    """draw the curves of a training and say what its prior is worth"""
    parser.add_argument(
        'folders', type=Path, nargs='*', metavar='RUN',
        help='a name below experiments/, or its folder; with --page: folders of reports',
    )  # fmt: skip
    parser.add_argument('-o', '--output', type=Path, help='folder (results/report_RUN)')
    parser.add_argument(
        '--root', type=Path, default=Path(), help='where experiments/ and results/ are'
    )
    parser.add_argument(
        '--page', type=Path, metavar='FILE.md',
        help='copy the tables and pictures of reports beside this page, and write it anew',
    )  # fmt: skip
    parser.add_argument(
        '--no-crops', action='store_true',
        help='with --page: leave out crops of photos that may not be published',
    )  # fmt: skip


def _weights(parser: argparse.ArgumentParser) -> None:
    """Defines ``-w`` and what belongs to it."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        '-w', '--weights', help='weights, for example net_g.pth (default: those of the package)'
    )
    which.add_argument(
        '--pretrained', metavar='NAME', help='weights of the package; unfoldldm list shows them'
    )
    _reading(parser)
    parser.add_argument(
        '--degradation', default='auto', metavar='NAME',
        help='VLU-Net: name or index of the degradation, for weights that cannot tell it (auto)',
    )  # fmt: skip
    parser.add_argument(
        '--clip-weights', metavar='FILE',
        help='VLU-Net: OpenCLIP weights, or their tag, for weights stored without CLIP',
    )  # fmt: skip
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:1, ... (auto)')


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
