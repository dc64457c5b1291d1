"""What the programs of this package decide about their process before torch is loaded."""

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Iterable, Iterator

PROGRAMS = (
    'unfoldldm', 'unfoldldm_basicsr.cli', 'unfoldldm_basicsr.train', 'unfoldldm_basicsr.test'
)  # fmt: skip
# Each says that the user has decided how OpenMP's threads wait.
WAITING = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME')
IMPORT = 'UNFOLDLDM_IMPORT'


def is_program() -> bool:
    """Whether this process runs a program of this package, and is no copy that one started.

    Such a copy has the arguments of its parent, which are not those that it was started with.
    """
    started, name = sys.orig_argv[1:], (sys.argv or [''])[0]
    if name == '-m':  # the module is being looked for
        return '-m' in started and started[started.index('-m') + 1] in PROGRAMS
    return name in started and os.path.basename(name).removesuffix('.exe') in PROGRAMS


def let_threads_sleep() -> None:
    """OpenMP's threads sleep while they wait for work, unless the user decided.

    By default they spin, which takes the core from whatever else wants to run on it: on shared
    cores a training step becomes many times slower (docs/speed.md). OpenMP reads the variable when
    torch loads it; processes started from this one inherit it.
    """
    if is_program() and not any(name in os.environ for name in WAITING):
        os.environ['OMP_WAIT_POLICY'] = 'PASSIVE'


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Imports leave next to no garbage; looking for it takes a sixth of the time of torch's."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def import_packages(more: Iterable[str] = ()) -> None:
    """Imports the user's packages of UNFOLDLDM_IMPORT, for the classes that they register.

    Args:
        more: packages to add to the variable, which processes started from this one inherit.

    Raises ImportError: there is no such package here or in the current folder.
    """
    packages = [name for name in os.environ.get(IMPORT, '').split(',') if name] + list(more)
    if not packages:
        return
    os.environ[IMPORT] = ','.join(dict.fromkeys(packages))
    sys.path.insert(0, '')  # packages of the current folder, as a script there would find them
    for package in packages:
        importlib.import_module(package)
