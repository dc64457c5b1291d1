"""Models of BasicSR's trainer; importing registers them."""

from unfoldldm_basicsr.models.degradation_clip_model import DegradationCLIPModel
from unfoldldm_basicsr.models.unfoldldm_phase1_model import UnfoldLDMPhase1Model
from unfoldldm_basicsr.models.unfoldldm_phase2_model import UnfoldLDMPhase2Model
from unfoldldm_basicsr.models.vlunet_model import VLUNetModel
from unfoldldm_basicsr.training.restoration_model import RestorationModel

__all__ = [
    'DegradationCLIPModel',
    'RestorationModel',
    'UnfoldLDMPhase1Model',
    'UnfoldLDMPhase2Model',
    'VLUNetModel',
]
