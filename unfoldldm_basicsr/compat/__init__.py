"""Makes the PyPI release of BasicSR (1.4.2) work on today's stack, and removes its traps.

This is the only place that knows what is broken around BasicSR. Every remedy is one small function
that does nothing where its fault is absent; :func:`apply` lists them all. What each stock function
does wrong is in the docstring of its replacement. Nothing here imports the rooms above: what
BasicSR's pipelines call in this package is installed by :mod:`..training.pipeline`.
"""

import logging
import sys
from collections.abc import Callable
from types import ModuleType

from unfoldldm_basicsr.common.registration import do_register, module_of, whose
from unfoldldm_basicsr.compat import imports


def apply() -> None:
    """Applies every remedy; a second call changes nothing.

    Raises:
        ImportError: torch, torchvision or BasicSR is missing or another release; the message holds
            the commands that put it right.
    """
    imports.require_packages()
    imports.provide_distutils()
    imports.provide_removed_modules()
    imports.import_basicsr()

    import basicsr

    from unfoldldm_basicsr.compat import distributed, repairs

    options, dist_util = basicsr.utils.options, basicsr.utils.dist_util
    prefetch, base = basicsr.data.prefetch_dataloader, basicsr.models.base_model.BaseModel
    for owner, name, replacement in (
        (basicsr.utils.registry.Registry, '_do_register', do_register),
        (options, 'copy_opt_file', repairs.copy_opt_file),
        (basicsr.utils.logger, 'get_root_logger', repairs.get_root_logger),
        (basicsr.utils.logger.MessageLogger, '__call__', repairs.message_logger_call),
        (dist_util, '_init_dist_pytorch', distributed.init_dist_pytorch),
        (dist_util, '_init_dist_slurm', distributed.init_dist_slurm),
        (prefetch.PrefetchGenerator, 'run', repairs.prefetch_run),
        (prefetch.PrefetchGenerator, '__next__', repairs.prefetch_next),
        (base, 'model_to_device', distributed.model_to_device),
        (base, 'reduce_loss_dict', repairs.reduce_loss_dict),
    ):
        replace(owner, name, replacement)


def stock(function: Callable) -> Callable:
    """The function of BasicSR behind ``function``, or ``function`` itself if it replaces none."""
    return getattr(function, 'replaces', function)


def replace(owner: ModuleType | type, name: str, replacement: Callable) -> None:
    """Puts ``replacement`` where BasicSR keeps ``owner.name``; a second call changes nothing.

    One that a project has put there stays, with a warning.

    BasicSR imports functions by name (``from basicsr.utils.options import parse_options``), so a
    function of a module is replaced in every loaded module of BasicSR that holds it. The original
    stays readable as ``replacement.replaces``.

    Raises ImportError: ``owner`` has no such function, so this BasicSR is not the one known here.
    """
    current = getattr(owner, name, None)
    if current is None:
        raise ImportError(
            f'{owner.__name__}.{name} does not exist, so the installed BasicSR is not the 1.4.2 '
            'that unfoldldm_basicsr knows. Fix: pip install --no-build-isolation '
            '--force-reinstall --no-deps basicsr==1.4.2'
        )
    if current is replacement:
        return
    modules = [m for n, m in [*sys.modules.items()] if n.partition('.')[0] == 'basicsr']
    if whose(current) == 'theirs':
        text = '%s.%s is that of %s, and stays: import unfoldldm_basicsr before replacing it.'
        logging.getLogger('basicsr').warning(text, owner.__name__, name, module_of(current))
        held = (getattr(module, name, None) for module in modules)  # imported elsewhere before
        current = next((f for f in held if whose(f) == 'basicsr'), None)
    if current is None:
        return
    replacement.replaces = stock(current)
    if isinstance(owner, type):
        setattr(owner, name, replacement)
        return
    for module in modules:
        if getattr(module, name, None) is current:
            setattr(module, name, replacement)
