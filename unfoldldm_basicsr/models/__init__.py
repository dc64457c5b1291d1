"""Models of BasicSR's trainer; importing registers them."""

from .restoration_model import RestorationModel
from .unfoldldm_phase1_model import UnfoldLDMPhase1Model
from .unfoldldm_phase2_model import UnfoldLDMPhase2Model

__all__ = ['RestorationModel', 'UnfoldLDMPhase1Model', 'UnfoldLDMPhase2Model']
