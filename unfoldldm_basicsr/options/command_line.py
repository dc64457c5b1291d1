"""The command line of trainings and tests; without torch, so that help is there at once."""

from __future__ import annotations

import argparse


def build_parser() -> argparse.ArgumentParser:
    """BasicSR's command line, with ``--local-rank`` as newer launchers spell it."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        epilog='python -m unfoldldm_basicsr.train and .test also take --root FOLDER: where '
        'experiments/ and results/ are (default: the current folder).',
    )
    add = parser.add_argument
    add('-opt', required=True, help='option file (YAML)')
    add(
        '--launcher',
        choices=['none', 'pytorch', 'slurm'],
        default='none',
        help='pytorch under torchrun, slurm under srun (default: none)',
    )
    add('--auto_resume', action='store_true', help='go on from the newest state of this experiment')
    add('--debug', action='store_true', help="name 'debug_...', log every step, validate every 8")
    add('--local_rank', '--local-rank', type=int, default=0, help='set by old launchers, not used')
    add(
        '--force_yml',
        nargs='+',
        metavar='KEY:KEY=VALUE',
        help='change options, for example train:total_iter=1000 train:optim_g:lr=1e-4',
    )
    add('--no-strict', action='store_true', help='warn about unknown keys instead of refusing them')
    return parser
