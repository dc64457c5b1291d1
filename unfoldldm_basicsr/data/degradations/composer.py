"""Chains of degradations from option files.

A chain is a list of steps, applied in order::

    degradations:
      - {type: gaussian_blur, prob: 0.5, sigma: [0.2, 2.0]}   # uniform in the range
      - {type: gaussian_noise, sigma: 25}                     # fixed value
      - {type: jpeg, quality: [30, 90]}                       # whole numbers, ends included

A parameter that is left out takes the default of :mod:`.catalogue`; ``prob`` is 1 by default.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator

from unfoldldm_basicsr.common.declaration import Options, takes
from unfoldldm_basicsr.data.degradations.catalogue import DEGRADATIONS, read_step

Step = Annotated[Any, BeforeValidator(read_step)]


def _listed(steps: object) -> list:
    if not isinstance(steps, list | tuple) or not steps:
        raise ValueError(f'must be a list with at least one {{type: ...}}, got {steps!r}.')
    return list(steps)


class ChainOptions(Options):
    """A chain of degradations."""

    degradations: Annotated[list[Step], BeforeValidator(_listed)]
    """Steps in order: {type, prob, parameter: value or [low, high]}."""
    lq_output: Literal['clip', 'uint8', 'unclipped'] = 'clip'
    """What becomes of the last step's values: clip to [0, 1], uint8 rounds to the 256 levels of a
    saved photo, unclipped leaves them, as the usual Gaussian denoising benchmark does."""


@takes(ChainOptions)
class DegradationChain:
    """Applies a list of degradations with parameters drawn from their ranges."""

    def __init__(self, options: ChainOptions) -> None:
        self.steps, self.output = options.degradations, options.lq_output

    @property
    def name(self) -> str:
        """The steps' types joined by ``+``."""
        return '+'.join(step.type for step in self.steps)

    @property
    def reach(self) -> int:
        """How many pixels away an output pixel depends on the input."""
        return sum(step.reach for step in self.steps if step.prob > 0)

    def sample(self, rng: np.random.Generator) -> list[tuple[str, dict[str, float]]]:
        """Draws which steps act and their parameters: (type, parameters), in order."""
        drawn = []
        for step in self.steps:
            acts = step.prob >= 1 or rng.random() < step.prob
            parameters = step.sample(rng)
            if acts:
                drawn.append((step.type, parameters))
        return drawn

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Degrades float32 H W C (RGB or one channel), [0, 1]; all randomness is of ``rng``."""
        for name, parameters in self.sample(rng):
            image = DEGRADATIONS[name].apply(image, rng, **parameters)
        if self.output == 'unclipped':
            return image.astype(np.float32)
        image = np.clip(image, 0.0, 1.0)
        if self.output == 'uint8':
            image = np.round(image * 255.0) / np.float32(255.0)
        return image.astype(np.float32)
