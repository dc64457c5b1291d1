"""UnfoldLDM and VLU-Net for BasicSR. Importing this package registers everything it offers."""

from unfoldldm_basicsr.common import process as _process

_process.let_threads_sleep()  # before the next line loads torch

from unfoldldm_basicsr import compat as _compat  # noqa: E402

__version__ = '0.1.0'

try:
    _compat.apply()
except ImportError:
    if not _process.asked_for_doctor():
        raise
else:
    from unfoldldm_basicsr import archs, data, losses, metrics, models  # noqa: F401
    from unfoldldm_basicsr.training.pipeline import install as _install

    _install()
    _process.import_packages()
