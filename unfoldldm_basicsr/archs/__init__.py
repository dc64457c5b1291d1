"""Networks; importing registers them."""

from unfoldldm_basicsr.archs.degradation_embedding import (
    CLIPDegradationEmbedding,
    LabelDegradationEmbedding,
    LearnedDegradationEmbedding,
)
from unfoldldm_basicsr.archs.nafnet_arch import NAFNet, NAFNetLocal
from unfoldldm_basicsr.archs.restormer_arch import Restormer
from unfoldldm_basicsr.archs.unfoldldm_arch import UnfoldLDM
from unfoldldm_basicsr.archs.vlunet_arch import VLUNet

__all__ = [
    'CLIPDegradationEmbedding',
    'LabelDegradationEmbedding',
    'LearnedDegradationEmbedding',
    'NAFNet',
    'NAFNetLocal',
    'Restormer',
    'UnfoldLDM',
    'VLUNet',
]
