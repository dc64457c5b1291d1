"""Models of BasicSR's trainer; importing registers them."""

from .degradation_clip_model import DegradationCLIPModel
from .restoration_model import RestorationModel
from .unfoldldm_phase1_model import UnfoldLDMPhase1Model
from .unfoldldm_phase2_model import UnfoldLDMPhase2Model
from .vlunet_model import VLUNetModel
from .vlunet_prior_model import VLUNetPriorPhase1Model, VLUNetPriorPhase2Model

__all__ = [
    'DegradationCLIPModel',
    'RestorationModel',
    'UnfoldLDMPhase1Model',
    'UnfoldLDMPhase2Model',
    'VLUNetModel',
    'VLUNetPriorPhase1Model',
    'VLUNetPriorPhase2Model',
]
