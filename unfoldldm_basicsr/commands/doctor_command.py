"""``unfoldldm doctor``: is this installation sound, and if not, what mends it?

Starts on a broken installation too, so nothing of the package is imported here at the top.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

NAME = 'doctor'
HELP = 'versions, scan backends and GPU of this installation, and the fix for every fault'

# What is needed, and which versions, is in the metadata of the installed package (setup.py).
PACKAGE = 'unfoldldm_basicsr'
COMPILED = {'torch': 'torch', 'torchvision': 'torchvision', 'numpy': 'numpy', 'scipy': 'scipy',
            'opencv-python': 'cv2', 'scikit-image': 'skimage', 'lmdb': 'lmdb',
            'imagecodecs': 'imagecodecs', 'safetensors': 'safetensors',
            'pydantic': 'pydantic', 'matplotlib': 'matplotlib'}  # fmt: skip
FIXES = {
    'torch': "pip install 'torch>=2.4' torchvision",
    'torchvision': "pip install 'torch>=2.4' torchvision",
    'basicsr': 'pip install --no-build-isolation basicsr==1.4.2',
}
OPTIONAL = (
    (
        'mamba-ssm',
        'MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation --no-deps mamba-ssm',
        'scan backend, NVIDIA only',
    ),
    ('triton', 'pip install triton', 'scan backend, comes with the CUDA builds of torch'),
    ('lpips', 'pip install lpips', 'metric calculate_lpips'),
    ('tensorboard', 'pip install tensorboard', 'logger.use_tb_logger'),
)
ALIASES = {
    'opencv-python': ('opencv-contrib-python', 'opencv-python-headless'),
    'tensorboard': ('tb-nightly',),  # what BasicSR depends on
}
CV2_FIX = 'apt install libgl1 libglib2.0-0 (or the same packages of your system)'


class Line(NamedTuple):
    """One finding; ``fix`` is empty when nothing is wrong."""

    name: str
    state: str
    fix: str = ''
    mark: str = 'ok'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no options."""


def run(args: argparse.Namespace) -> int:
    """Prints what is found.

    Returns:
        0, or 1 if something is broken.
    """
    faults = 0
    for title, check in CHECKS.items():
        print(title)
        for line in check():
            print(f'  {"FAULT" if line.fix else line.mark:<6}{line.name:<16} {line.state}')
            if line.fix:
                faults += 1
                print(f'        fix: {line.fix}')
    print(f'\n{faults} faults found.' if faults else '\nEverything needed is in place.')
    return 1 if faults else 0


def check_python() -> Iterator[Line]:
    """BasicSR 1.4.2 sets the range."""
    version = '.'.join(map(str, sys.version_info[:3]))
    if (3, 10) <= sys.version_info[:2] <= (3, 12):
        yield Line('python', version)
    else:
        yield Line(
            'python',
            f'{version}: BasicSR 1.4.2 cannot be built here',
            'make an environment with Python 3.10, 3.11 or 3.12: python3.12 -m venv .venv',
        )


def check_required() -> Iterator[Line]:
    """Versions, and whether the packages with compiled parts can be imported."""
    needed = [line for line in requirements() if 'extra' not in line]
    if not needed:
        yield Line(PACKAGE, 'not installed', 'pip install --no-build-isolation -e . (see README)')
    for line in needed:
        name = re.match(r'[\w.-]+', line).group()
        fix = FIXES.get(name, f"pip install '{line.replace(' ', '')}'")
        version, limits = installed_version(name), line[len(name) :].strip()
        if version is None:
            yield Line(name, 'not installed', fix)
        elif not fits(version, limits):
            yield Line(name, f'{version}, but {limits} is needed', fix)
        else:
            fault = import_fault(COMPILED[name]) if name in COMPILED else ''
            hint = CV2_FIX if 'libGL' in fault or 'libgthread' in fault else f'{fix} (reinstall)'
            yield Line(name, f'{version}{fault}', hint if fault else '')
    if version_of('opencv-python') and version_of('opencv-python-headless'):
        yield Line(
            'opencv',
            'opencv-python and opencv-python-headless write the same folder',
            'pip uninstall opencv-python-headless; pip install --force-reinstall opencv-python',
        )


def check_optional() -> Iterator[Line]:
    """What is there beyond the needed; absence is no fault."""
    for name, install, purpose in OPTIONAL:
        version = installed_version(name)
        if version is None:
            yield Line(name, f'not installed ({purpose}): {install}', mark='-')
        else:
            yield Line(name, version)


def check_package() -> Iterator[Line]:
    """The package itself: BasicSR's remedies and the registered classes."""
    from unfoldldm_basicsr import compat

    try:
        compat.apply()
        importlib.import_module('unfoldldm_basicsr.models')
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        yield Line('import', type(error).__name__, str(error))
        return
    from unfoldldm_basicsr.commands.list_command import registered_classes

    found = sum(len(entries) for entries in registered_classes().values())
    yield Line('import', f'BasicSR usable, {found} classes of this package registered')


def check_gpu() -> Iterator[Line]:
    """GPUs that torch sees, and whether there are some that it does not."""
    if import_fault('torch'):
        yield Line('GPU', 'unknown, as torch cannot be imported')
        return
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = properties.total_memory / 2**30
            yield Line(f'GPU {index}', f'{properties.name}, {memory:.0f} GiB')
    elif shutil.which('nvidia-smi'):
        built = f'built for CUDA {torch.version.cuda}' if torch.version.cuda else 'built for CPU'
        yield Line(
            'GPU',
            f'torch ({built}) sees none, although nvidia-smi is there',
            'run nvidia-smi: if it shows a GPU, install the torch build for that driver (see '
            'pytorch.org, Get Started), or update the driver',
        )
    else:
        yield Line('GPU', 'none seen: everything runs on the CPU')


def check_backends() -> Iterator[Line]:
    """Backends of the selective scan, and the one that a scan on this machine takes."""
    if import_fault('torch'):
        yield Line('scan', 'unknown, as torch cannot be imported')
        return
    import torch

    from unfoldldm_basicsr.ops.ss2d import chosen_backend, describe_backends
    from unfoldldm_basicsr.ops.ss2d.dispatch import ENVIRONMENT

    states = describe_backends()
    for name, state in states.items():
        yield Line(name, state, mark='ok' if state.startswith('usable') else '-')
    kind = 'cuda' if torch.cuda.is_available() else 'cpu'
    named = os.environ.get(ENVIRONMENT, '').strip()
    try:
        taken = chosen_backend(kind)
    except ValueError as error:
        usable = ', '.join(name for name, state in states.items() if state.startswith('usable'))
        yield Line('taken', str(error), f'unset {ENVIRONMENT}, or set it to one of: {usable}')
        return
    # Only the CPU does not take what is named.
    note = f', {ENVIRONMENT}={named} only counts on a GPU' if named not in ('', taken) else ''
    yield Line('taken', f'{taken} (on {"the GPU" if kind == "cuda" else "the CPU"}{note})')


def check_system() -> Iterator[Line]:
    """Pages of large tensors; shared memory, through which loader processes hand over batches."""
    from unfoldldm_basicsr.training import huge_pages

    state = huge_pages.state()
    yield Line('large pages', state, mark='ok' if state.startswith('on') else '-')
    try:
        free = shutil.disk_usage('/dev/shm').total / 2**20
    except OSError:  # other systems have no such folder and no such limit
        return
    fix = 'more shared memory (docker run --shm-size=8g), or datasets.train.num_worker_per_gpu: 0'
    yield Line('shared memory', f'{free:.0f} MiB', fix if free < 128 else '')


CHECKS: dict[str, Callable[[], Iterator[Line]]] = {
    'Python': check_python,
    'Needed packages': check_required,
    'Optional packages': check_optional,
    'This package': check_package,
    'Device': check_gpu,
    'Selective scan backends': check_backends,
    'System': check_system,
}


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, or of one that provides the same package."""
    versions = map(version_of, (distribution, *ALIASES.get(distribution, ())))
    return next((version for version in versions if version is not None), None)


def version_of(distribution: str) -> str | None:
    """Version of exactly this distribution, None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements() -> list[str]:
    """Lines like ``scipy<2`` of this package, those of its extras as well."""
    try:
        return importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def fits(version: str, limits: str) -> bool:
    """Whether a version is within ``>=2.4,<3``; only numbers count."""
    compare = {'>=': tuple.__ge__, '==': tuple.__eq__, '<': tuple.__lt__}
    return all(
        compare[sign](parsed(version), parsed(limit))
        for sign, limit in re.findall(r'(>=|==|<)\s*([\d.]+)', limits)
    )


def parsed(version: str) -> tuple[int, ...]:
    """Leading numbers of a version, for comparison."""
    return tuple(int(n) for n in re.match(r'\d+(?:\.\d+)*', version).group().split('.'))


def import_fault(module: str) -> str:
    """What goes wrong when a module is imported, '' if nothing."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f', but importing it fails: {error}'
    return ''
