"""``unfoldldm doctor``: is this installation sound, and if not, what mends it?

Starts on a broken installation too, so nothing of the package is imported here at the top.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from typing import NamedTuple

# What is needed, and which versions, is in the metadata of the installed package (setup.py).
PACKAGE = 'unfoldldm_basicsr'
COMPILED = {
    'torch': 'torch', 'torchvision': 'torchvision', 'numpy': 'numpy', 'scipy': 'scipy',
    'opencv-python': 'cv2', 'scikit-image': 'skimage', 'lmdb': 'lmdb', 'imagecodecs': 'imagecodecs',
    'safetensors': 'safetensors', 'pydantic': 'pydantic', 'matplotlib': 'matplotlib',
}  # fmt: skip
FIXES = {
    'torch': "pip install 'torch>=2.4' torchvision",
    'torchvision': "pip install 'torch>=2.4' torchvision",
    'basicsr': 'pip install --no-build-isolation basicsr==1.4.2',
}
OPENCV = ('opencv-python', 'opencv-contrib-python', 'opencv-python-headless')  # one folder
CV2_FIX = 'apt install libgl1 libglib2.0-0 (or the same packages of your system)'


class Line(NamedTuple):
    """One finding; ``fix`` is empty when nothing is wrong."""

    name: str
    state: str
    fix: str = ''
    mark: str = 'ok'


def run_doctor(args: argparse.Namespace) -> int:
    """Prints what is found; returns 1 if something is broken."""
    faults = 0
    for title, check in {
        'Needed packages': check_required,
        'This package': check_package,
        'Device and selective scan': check_device,
        'System': check_system,
    }.items():
        print(title)
        for line in check():
            print(f'  {"FAULT" if line.fix else line.mark:<6}{line.name:<16} {line.state}')
            if line.fix:
                faults += 1
                print(f'        fix: {line.fix}')
    print(f'\n{faults} faults found.' if faults else '\nEverything needed is in place.')
    return 1 if faults else 0


def check_required() -> Iterator[Line]:
    """Versions, and whether the packages with compiled parts can be imported."""
    from packaging.requirements import Requirement

    yield Line('python', platform.python_version())
    try:
        needed = [Requirement(line) for line in importlib.metadata.requires(PACKAGE) or []]
    except importlib.metadata.PackageNotFoundError:
        needed = []
        yield Line(PACKAGE, 'not installed', 'pip install --no-build-isolation -e . (see README)')
    for need in needed:
        if need.marker is not None:  # of an extra
            continue
        name, version = need.name, installed_version(need.name)
        fix = FIXES.get(name, f"pip install '{need}'")
        if version is None:
            yield Line(name, 'not installed', fix)
        elif not need.specifier.contains(version, prereleases=True):
            yield Line(name, f'{version}, but {need.specifier} is needed', fix)
        else:
            fault = import_fault(COMPILED[name]) if name in COMPILED else ''
            hint = CV2_FIX if 'libGL' in fault or 'libgthread' in fault else f'{fix} (reinstall)'
            yield Line(name, f'{version}{fault}', hint if fault else '')


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


def check_device() -> Iterator[Line]:
    """GPUs, those that torch does not see, and the scan backend that is taken here."""
    if import_fault('torch'):
        yield Line('GPU', 'unknown, as torch cannot be imported')
        return
    import torch

    on_gpu = torch.cuda.is_available()
    gpus = range(torch.cuda.device_count() * on_gpu)
    for properties in map(torch.cuda.get_device_properties, gpus):
        yield Line('GPU', f'{properties.name}, {properties.total_memory / 2**30:.0f} GiB')
    if not on_gpu and shutil.which('nvidia-smi'):
        state = f'torch (CUDA: {torch.version.cuda or "none"}) sees none, nvidia-smi is there'
        fix = 'if nvidia-smi shows a GPU: the torch build for its driver, or a newer driver'
        yield Line('GPU', state, fix)
    elif not on_gpu:
        yield Line('GPU', 'none seen: everything runs on the CPU')

    from unfoldldm_basicsr.ops.ss2d import chosen_backend, describe_backends
    from unfoldldm_basicsr.ops.ss2d.dispatch import ENVIRONMENT

    states = describe_backends()
    usable = [name for name, state in states.items() if state.startswith('usable')]
    for name, state in states.items():
        yield Line(name, state, mark='ok' if name in usable else '-')
    named = os.environ.get(ENVIRONMENT, '').strip()
    try:
        taken = chosen_backend('cuda' if on_gpu else 'cpu')
    except ValueError as error:
        fix = f'unset {ENVIRONMENT}, or set it to one of: {", ".join(usable)}'
        yield Line('taken', str(error), fix)
        return
    # Only the CPU does not take what is named.
    note = f', {ENVIRONMENT}={named} only counts on a GPU' if named not in ('', taken) else ''
    yield Line('taken', f'{taken} (on the {"GPU" if on_gpu else "CPU"}{note})')


def check_system() -> Iterator[Line]:
    """Shared memory, through which loader processes hand over batches."""
    if os.path.isdir('/dev/shm'):  # other systems have no such folder and no such limit
        size = shutil.disk_usage('/dev/shm').total / 2**20
        fix = 'more shared memory (docker run --shm-size=8g), or num_worker_per_gpu: 0'
        yield Line('shared memory', f'{size:.0f} MiB', fix if size < 128 else '')


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, or of one that provides the same package."""
    for name in OPENCV if distribution in OPENCV else (distribution,):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def import_fault(module: str) -> str:
    """What goes wrong when a module is imported, '' if nothing."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f', but importing it fails: {error}'
    return ''
