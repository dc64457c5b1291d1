"""UnfoldLDM and VLU-Net for BasicSR. Importing this package registers everything it offers."""

from functools import cache as _cache

from unfoldldm_basicsr.common import process as _process

_process.let_threads_sleep()  # before register() loads torch

__version__ = '0.2.0'


@_cache
def register() -> None:
    """Repairs BasicSR and registers everything; again changes nothing.

    Raises:
        ImportError: torch, torchvision or BasicSR is missing or another release, or a package of
            UNFOLDLDM_IMPORT is.
    """
    with _process.collector_paused():
        from unfoldldm_basicsr import compat

        compat.apply()
        from unfoldldm_basicsr import archs, data, losses, metrics, models  # noqa: F401
        from unfoldldm_basicsr.training.pipeline import install

        install()
    _process.import_packages()


if not _process.is_program():  # which does it after a look at its options
    register()
