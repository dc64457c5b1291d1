"""Makes the PyPI release of BasicSR (1.4.2) work on today's stack, and removes its traps.

This is the only place that knows what is broken around BasicSR. Every remedy is one small function
that does nothing where its fault is absent; :func:`apply` lists them all. What each stock function
does wrong is in the docstring of its replacement.
"""

from __future__ import annotations

import sys

from unfoldldm_basicsr.compat import imports
from unfoldldm_basicsr.compat.patching import replace


def apply() -> None:
    """Applies every remedy; a second call changes nothing.

    Raises:
        ImportError: torch, torchvision or BasicSR is missing or another release; the message holds
            the commands that put it right.
    """
    imports.require_packages()
    imports.provide_distutils()
    imports.shim_functional_tensor()
    imports.shim_scipy_filters()
    imports.import_basicsr()
    _patch_basicsr()


def asked_for_doctor() -> bool:
    """Whether this process is ``unfoldldm doctor``, which must start on a broken installation."""
    words = sys.orig_argv[1:]
    ours = any(w.endswith(('unfoldldm', 'unfoldldm.exe', 'unfoldldm_basicsr.cli')) for w in words)
    return ours and 'doctor' in words


def _patch_basicsr() -> None:
    import basicsr

    from unfoldldm_basicsr.compat import distributed, stock_models
    from unfoldldm_basicsr.data import loaders
    from unfoldldm_basicsr.metrics import calculate as metrics
    from unfoldldm_basicsr.options import parse as options
    from unfoldldm_basicsr.options import read as yaml_options
    from unfoldldm_basicsr.training import resume

    dist_util, prefetch = basicsr.utils.dist_util, basicsr.data.prefetch_dataloader
    replace(basicsr.utils.options, 'ordered_yaml', yaml_options.ordered_yaml)
    replace(basicsr.utils.options, '_postprocess_yml_value', yaml_options.parse_value)
    replace(basicsr.utils.options, 'parse_options', options.parse_options)
    replace(basicsr.utils.options, 'copy_opt_file', options.copy_opt_file)
    replace(dist_util, '_init_dist_pytorch', distributed.init_dist_pytorch)
    replace(dist_util, '_init_dist_slurm', distributed.init_dist_slurm)
    replace(basicsr.train, 'load_resume_state', resume.load_resume_state)
    replace(basicsr.train, 'create_train_val_dataloader', loaders.create_train_val_dataloader)
    replace(basicsr.data, 'worker_init_fn', loaders.worker_init_fn)
    replace(prefetch.PrefetchGenerator, 'run', loaders.prefetch_run)
    replace(prefetch.PrefetchGenerator, '__next__', loaders.prefetch_next)
    replace(prefetch.CPUPrefetcher, '__init__', loaders.cpu_prefetcher_init)
    replace(basicsr.metrics, 'calculate_metric', metrics.calculate_metric)
    replace(basicsr.models.base_model.BaseModel, 'reduce_loss_dict', stock_models.reduce_loss_dict)
    loaders.make_stock_datasets_picklable()
