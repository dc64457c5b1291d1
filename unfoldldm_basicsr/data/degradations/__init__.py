"""Synthetic degradations: pure functions of an image, parameters and a random generator."""

from unfoldldm_basicsr.data.degradations.catalogue import DEGRADATIONS, Degradation, Parameter
from unfoldldm_basicsr.data.degradations.composer import DegradationChain, Step, parse_steps

__all__ = ['DEGRADATIONS', 'Degradation', 'DegradationChain', 'Parameter', 'Step', 'parse_steps']
