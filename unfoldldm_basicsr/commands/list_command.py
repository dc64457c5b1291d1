"""``unfoldldm list``: what importing the package registers, and what the option files build."""

import argparse
import inspect
import json
import os
from pathlib import Path

from basicsr.utils import registry
from tabulate import tabulate

from unfoldldm_basicsr.common.cost import SIZE, network_cost
from unfoldldm_basicsr.common.option_files import read_option_file
from unfoldldm_basicsr.common.process import IMPORT
from unfoldldm_basicsr.weights.packaged import packaged_weights, summary


def run_list(args: argparse.Namespace) -> int:
    """Prints both lists; 1 if an option file or its network is faulty."""
    packaged = [(name, summary(path)) for name, path in packaged_weights().items()]
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
    rows, faulty = networks_in(folder)
    print(f'Networks in {folder} (GMACs for one {SIZE} x {SIZE} image)')
    head = ['network', 'parameters', 'GMACs', 'option files']
    sides = 'left', 'right', 'right', 'left'
    print(tabulate(rows, head, 'plain', colalign=sides, disable_numparse=True))
    return int(faulty)


def registered_classes() -> dict[str, list[tuple[str, str]]]:
    """Name and first line of documentation of what this package and ``--import`` register."""
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
            (name, inspect.cleandoc(obj.__doc__ or '').partition('\n')[0])
            for name, obj in entries
            if f'{obj.__module__}.'.startswith(ours)
        )
        for title, entries in registries.items()
    }


def networks_in(folder: Path) -> tuple[list[list[str]], bool]:
    """Rows of name, parameters, GMACs and files of every distinct network of the option files below
    a folder, smallest first (a fault has a row of its own); whether any is faulty.
    """
    networks: dict[str, tuple[dict, list[str]]] = {}
    found, faulty = [], []
    for file in sorted([*folder.rglob('*.yml'), *folder.rglob('*.yaml')]):
        name = str(file.relative_to(folder))
        try:
            network = read_option_file(file).get('network_g')
        except ValueError as error:
            faulty += [['?', '-', '-', name], ['', '', '', str(error)]]
            continue
        if isinstance(network, dict) and 'type' in network:
            text = json.dumps(network, sort_keys=True, default=str)
            networks.setdefault(text, (network, []))[1].append(name)
    for network, files in networks.values():
        name, where = str(network['type']), ', '.join(files)
        try:
            params, macs = network_cost(network)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            faulty += [[name, '-', '-', where], ['', '', '', f'{type(error).__name__}: {error}']]
        else:
            row = [name, f'{params / 1e6:.2f} M', f'{macs / 1e9:.1f}', where]
            found.append((name, params, row))
    return [*(row for *_, row in sorted(found)), *faulty], bool(faulty)
