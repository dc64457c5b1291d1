"""Networks; importing registers them."""

from .nafnet_arch import NAFNet, NAFNetLocal
from .restormer_arch import Restormer
from .unfoldldm_arch import UnfoldLDM
from .vlunet_arch import VLUNet

__all__ = ['NAFNet', 'NAFNetLocal', 'Restormer', 'UnfoldLDM', 'VLUNet']
