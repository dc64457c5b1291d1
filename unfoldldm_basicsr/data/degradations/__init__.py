"""Synthetic degradations: pure functions of an image, parameters and a random generator."""

from unfoldldm_basicsr.data.degradations.catalogue import (
    DEGRADATIONS,
    ChainOptions,
    Degradation,
    DegradationChain,
    Parameter,
)

__all__ = ['DEGRADATIONS', 'ChainOptions', 'Degradation', 'DegradationChain', 'Parameter']
