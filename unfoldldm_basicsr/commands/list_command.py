"""``unfoldldm list``: what importing the package registers, and what the option files build."""

from __future__ import annotations

import argparse
import inspect
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from unfoldldm_basicsr.common.cost import Cost, network_cost
from unfoldldm_basicsr.common.process import IMPORT
from unfoldldm_basicsr.options.read import read_option_file
from unfoldldm_basicsr.weights.packaged import packaged_weights

SIZE = 256  # of the image that the operations are counted for


class Row(NamedTuple):
    """A network and the option files that hold it."""

    network: str
    files: tuple[str, ...]
    cost: Cost | None
    fault: str


def run(args: argparse.Namespace) -> int:
    """Prints both lists.

    Returns:
        0, or 1 if an option file or its network is faulty.

    Raises:
        FileNotFoundError: the folder of ``--options`` does not exist.
    """
    packaged = [(name, weights.summary) for name, weights in packaged_weights().items()]
    groups = registered_classes()
    groups['Weights of the package, the default first (restore --pretrained NAME)'] = packaged
    for title, entries in groups.items():
        if entries:
            print(f'{title}\n{tabulate(entries, tablefmt="plain", disable_numparse=True)}\n')
    folder = Path(args.options or 'options')
    if not folder.is_dir():
        if args.options:
            raise FileNotFoundError(f'--options {folder}: no such folder.')
        print('No folder ./options here: give one with --options to see the networks in it.')
        return 0
    rows = networks_in(folder)
    print_networks(folder, rows)
    return 1 if any(row.fault for row in rows) else 0


def registered_classes() -> dict[str, list[tuple[str, str]]]:
    """Name and first line of documentation of what this package and ``--import`` register."""
    from basicsr.utils import registry

    packages = ('unfoldldm_basicsr', *os.environ.get(IMPORT, '').split(','))
    ours = tuple(f'{package}.' for package in packages if package)
    registries = {
        'Networks (network_g: type)': registry.ARCH_REGISTRY,
        'Models (model_type)': registry.MODEL_REGISTRY,
        'Losses (train: ..._opt: type)': registry.LOSS_REGISTRY,
        'Data sets (datasets: ...: type)': registry.DATASET_REGISTRY,
        'Metrics (val: metrics: ...: type)': registry.METRIC_REGISTRY,
    }
    return {
        title: sorted(
            (name, (inspect.getdoc(obj) or '').partition('\n')[0])
            for name, obj in entries
            if f'{obj.__module__}.'.startswith(ours)
        )
        for title, entries in registries.items()
    }


def networks_in(folder: Path) -> list[Row]:
    """Every distinct network of the option files below ``folder``, smallest first."""
    networks: dict[str, tuple[dict, list[str]]] = {}
    faulty = []
    for file in sorted([*folder.rglob('*.yml'), *folder.rglob('*.yaml')]):
        name = str(file.relative_to(folder))
        try:
            network = read_option_file(file).get('network_g')
        except ValueError as error:
            faulty.append(Row('?', (name,), None, str(error)))
            continue
        if isinstance(network, dict) and 'type' in network:
            text = json.dumps(network, sort_keys=True, default=str)
            networks.setdefault(text, (network, []))[1].append(name)
    rows = [_row(network, files) for network, files in networks.values()]
    return sorted(rows, key=lambda r: (r.network, r.cost or Cost(0, 0))) + faulty


def _row(network: dict[str, Any], files: list[str]) -> Row:
    try:
        return Row(str(network['type']), tuple(files), network_cost(network, SIZE), '')
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        return Row(str(network['type']), tuple(files), None, f'{type(error).__name__}: {error}')


def print_networks(folder: Path, rows: list[Row]) -> None:
    """Prints a table of networks."""
    print(f'Networks in {folder} (GMACs for one {SIZE} x {SIZE} image)')
    head, cells = ['network', 'parameters', 'GMACs', 'option files'], []
    for name, files, cost, fault in rows:
        figures = ('-', '-')
        if cost is not None:
            figures = (f'{cost.params / 1e6:.2f} M', f'{cost.macs / 1e9:.1f}')
        cells.append([name, *figures, ', '.join(files)])
        if fault:
            cells.append(['', '', '', fault])
    sides = ('left', 'right', 'right', 'left')
    print(tabulate(cells, head, 'plain', colalign=sides, disable_numparse=True))
