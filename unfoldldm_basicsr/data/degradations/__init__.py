"""Synthetic degradations, and chains of them."""

from unfoldldm_basicsr.data.degradations.catalogue import (
    DEGRADATIONS,
    ChainOptions,
    DegradationChain,
)
from unfoldldm_basicsr.data.degradations.degradation import Degradation, Parameter

__all__ = ['DEGRADATIONS', 'ChainOptions', 'Degradation', 'DegradationChain', 'Parameter']
