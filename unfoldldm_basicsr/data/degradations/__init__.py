"""Synthetic degradations: pure functions of an image, parameters and a random generator."""

from unfoldldm_basicsr.data.degradations.catalogue import DEGRADATIONS, Degradation, Parameter
from unfoldldm_basicsr.data.degradations.composer import ChainOptions, DegradationChain

__all__ = ['DEGRADATIONS', 'ChainOptions', 'Degradation', 'DegradationChain', 'Parameter']
