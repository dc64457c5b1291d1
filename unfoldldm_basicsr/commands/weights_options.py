"""The network that the options of a command ask for."""

from __future__ import annotations

import argparse
from typing import Any

from unfoldldm_basicsr.restoring.restorer import Restorer
from unfoldldm_basicsr.weights.packaged import packaged_file


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
