"""The options of every command that loads a network, and the network that they ask for."""

from __future__ import annotations

import argparse
from typing import Any

from unfoldldm_basicsr.restoring.restorer import Restorer
from unfoldldm_basicsr.weights.conditioning import AUTO
from unfoldldm_basicsr.weights.packaged import packaged_file


def add_weights_options(parser: argparse.ArgumentParser) -> None:
    """Defines ``-w`` and what belongs to it."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        '-w', '--weights', help='weights, for example net_g.pth (default: those of the package)'
    )
    which.add_argument(
        '--pretrained', metavar='NAME', help='weights of the package; unfoldldm list shows them'
    )
    parser.add_argument('-opt', '--opt', help='option file, for weights without metadata')
    parser.add_argument(
        '--param-key', help='weights to take: params_ema (default where present) or params'
    )
    parser.add_argument(
        '--degradation', default=AUTO, metavar='NAME',
        help='VLU-Net: name or index of the degradation, for weights that cannot tell it (auto)',
    )  # fmt: skip
    parser.add_argument(
        '--clip-weights', metavar='FILE',
        help='VLU-Net: OpenCLIP weights, or their tag, for weights stored without CLIP',
    )  # fmt: skip
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:1, ... (auto)')


def restorer_of(args: argparse.Namespace, **more: Any) -> Restorer:
    """The network of these options; ``more`` are further arguments of :class:`Restorer`.

    Raises:
        FileNotFoundError, ValueError, OSError: see :class:`Restorer`.
    """
    return Restorer(
        args.weights or packaged_file(args.pretrained),
        device=args.device,
        opt_file=args.opt,
        param_key=args.param_key,
        degradation=args.degradation,
        clip_weights=args.clip_weights,
        **more,
    )
