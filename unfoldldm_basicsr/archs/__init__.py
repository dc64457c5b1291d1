"""Networks; importing registers them."""

from .degradation_embedding import (
    CLIPDegradationEmbedding,
    LabelDegradationEmbedding,
    LearnedDegradationEmbedding,
)
from .nafnet_arch import NAFNet, NAFNetLocal
from .restormer_arch import Restormer
from .unfoldldm_arch import UnfoldLDM
from .vlunet_arch import VLUNet
from .vlunet_prior_arch import VLUNetPrior

__all__ = [
    'CLIPDegradationEmbedding',
    'LabelDegradationEmbedding',
    'LearnedDegradationEmbedding',
    'NAFNet',
    'NAFNetLocal',
    'Restormer',
    'UnfoldLDM',
    'VLUNet',
    'VLUNetPrior',
]
