"""What has to be put right before ``import basicsr`` can succeed."""

import functools
import importlib.util
import os
import re
import sys
import types
import warnings
from pathlib import Path

BASICSR_VERSION = '1.4.2'
INSTALL = (
    'pip install torch torchvision',
    "pip install 'setuptools>=68' wheel cython numpy",
    f'pip install --no-build-isolation basicsr=={BASICSR_VERSION}',
)


def require_packages() -> None:
    """torch, torchvision and BasicSR must be there, and BasicSR must be the known release.

    Raises:
        ImportError: with the commands that install what is missing, or with the place of the
            package that goes by the name of ``basicsr`` but is another one.
    """
    missing = [n for n in ('torch', 'torchvision', 'basicsr') if not is_installed(n)]
    if missing:
        commands = ''.join(f'\n    {command}' for command in INSTALL)
        raise ImportError(
            f'unfoldldm_basicsr needs {" and ".join(missing)}, not installed for '
            f'{sys.executable}. Install, in this order:{commands}'
        )
    version, folder = find_basicsr()
    if version != BASICSR_VERSION:
        raise ImportError(
            f'unfoldldm_basicsr needs BasicSR {BASICSR_VERSION}, but "import basicsr" finds '
            f'{"version " + version if version else "a package without version.py"} in {folder}: '
            'another release, or the copy that some repositories carry under the same name. '
            f'Start Python outside that folder, or: {INSTALL[-1]}'
        )


def is_installed(name: str) -> bool:
    """Whether ``import name`` would find a package, without importing it."""
    if name in sys.modules:
        return sys.modules[name] is not None
    return importlib.util.find_spec(name) is not None


def find_basicsr() -> tuple[str, Path]:
    """Version ('' if not stated) and folder of the package that ``import basicsr`` gives.

    The files are read, not imported: BasicSR cannot be imported before the shims are in place.
    """
    spec = importlib.util.find_spec('basicsr')
    places = list(spec.submodule_search_locations or []) or [spec.origin]
    folder = Path(places[0])
    version_file = folder / 'version.py'
    if not version_file.is_file():
        return '', folder
    text = version_file.read_text(encoding='utf-8')
    found = re.search(r"^__version__ = ['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return (found.group(1) if found else ''), folder


def provide_removed_modules() -> None:
    """Stands in for modules that BasicSR imports and newer releases lack.

    ``basicsr.data.degradations``, reached by every import of BasicSR, takes a function from a
    private module that torchvision 0.17 removed; NIQE one from a module that SciPy 2 removes.
    """
    transforms = 'torchvision.transforms.functional'
    for name, source, function in (
        (f'{transforms}_tensor', transforms, 'rgb_to_grayscale'),
        ('scipy.ndimage.filters', 'scipy.ndimage', 'convolve'),
    ):
        if not is_installed(name):
            module = types.ModuleType(name, 'Stands in for a module that was removed.')
            setattr(module, function, getattr(importlib.import_module(source), function))
            sys.modules[name] = module


def load_data_only() -> None:
    """From here on ``torch.load`` unpickles no code in this process unless its caller says so.

    Some networks of BasicSR load the file that an argument names as any pickle, which torch before
    2.6 executes, and later ones when an environment variable says so. An explicit
    ``weights_only=False`` is the decision of whoever wrote it. For entries only: a notebook may
    want to load its own files as it likes.
    """
    import torch

    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
    stock = torch.load
    if hasattr(stock, 'replaces'):
        return

    @functools.wraps(stock)
    def load(*args: object, weights_only: bool | None = None, **kwargs: object) -> object:
        return stock(*args, weights_only=weights_only is not False, **kwargs)

    load.replaces = stock
    torch.load = load


def provide_distutils() -> None:
    """BasicSR imports ``distutils``, which Python 3.12 has only through setuptools.

    Raises ImportError: neither is there.
    """
    if is_installed('distutils'):
        return
    if not is_installed('setuptools'):
        raise ImportError(
            'BasicSR needs distutils, which setuptools provides: pip install setuptools'
        )
    import setuptools  # noqa: F401  (puts its distutils into sys.modules)


def import_basicsr() -> None:
    """Imports BasicSR and the modules that are patched, without its deprecation warning.

    With ``python -W error`` that warning alone would make BasicSR impossible to import.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            'ignore', message='.*scipy.ndimage.filters', category=DeprecationWarning
        )
        import basicsr
        import basicsr.data.prefetch_dataloader
        import basicsr.test
        import basicsr.train
        import basicsr.utils.dist_util
        import basicsr.utils.options  # noqa: F401
