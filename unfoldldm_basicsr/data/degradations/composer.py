"""Chains of degradations from option files.

A chain is a list of steps, applied in order::

    degradations:
      - {type: gaussian_blur, prob: 0.5, sigma: [0.2, 2.0]}   # uniform in the range
      - {type: gaussian_noise, sigma: 25}                     # fixed value
      - {type: jpeg, quality: [30, 90]}                       # whole numbers, ends included

A parameter that is left out takes the default of :mod:`.catalogue`; ``prob`` is 1 by default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unfoldldm_basicsr.common.suggest import did_you_mean
from unfoldldm_basicsr.data.degradations.catalogue import DEGRADATIONS, Degradation, Parameter

OUTPUTS = ('clip', 'uint8', 'unclipped')


@dataclass(frozen=True)
class Step:
    """One degradation of a chain with the range of each parameter (low == high: fixed)."""

    type: str
    prob: float
    ranges: dict[str, tuple[float, float]]

    @property
    def degradation(self) -> Degradation:
        return DEGRADATIONS[self.type]

    def sample(self, rng: np.random.Generator) -> dict[str, float]:
        """Draws every parameter; fixed ones use no random number."""
        values: dict[str, float] = {}
        for name, (low, high) in self.ranges.items():
            if low == high:
                values[name] = low
            elif self.degradation.parameters[name].integer:
                values[name] = int(rng.integers(int(low), int(high), endpoint=True))
            else:
                values[name] = float(rng.uniform(low, high))
        return values

    def at_strength(self, strength: float) -> dict[str, float]:
        """Parameters at ``strength`` in [0, 1] of their ranges, 1 degrading most."""
        values: dict[str, float] = {}
        for name, (low, high) in self.ranges.items():
            parameter = self.degradation.parameters[name]
            share = 1 - strength if parameter.stronger == 'down' else strength
            value = low + (high - low) * share
            values[name] = round(value) if parameter.integer else value
        return values

    @property
    def has_strengths(self) -> bool:
        """Whether the ranges leave the strength open, not only the appearance."""
        return any(
            low < high and self.degradation.parameters[name].stronger != 'neither'
            for name, (low, high) in self.ranges.items()
        )

    @property
    def reach(self) -> int:
        """Radius in pixels of the neighbourhood that an output pixel depends on."""
        return self.degradation.reach({name: high for name, (_, high) in self.ranges.items()})


class DegradationChain:
    """Applies a list of degradations with parameters drawn from their ranges.

    Args:
        steps: the list of an option file, see the module docstring.
        output: what becomes of the last step's values: ``'clip'`` to [0, 1], ``'uint8'`` rounds
            them to 256 levels as a saved photo has, ``'unclipped'`` leaves them, as the usual
            Gaussian denoising benchmark does.

    Raises:
        ValueError: with every problem of the list, each with its place and the nearest valid name.
    """

    def __init__(self, steps: Sequence[Mapping], *, output: str = 'clip') -> None:
        self.steps, problems = parse_steps(steps)
        if output not in OUTPUTS:
            problems.append(('lq_output', f"'{output}' is unknown.{did_you_mean(output, OUTPUTS)}"))
        if problems:
            raise ValueError('; '.join(f'{place}: {text}' for place, text in problems))
        self.output = output

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
        """Degrades float32 H W 3 RGB [0, 1]; all randomness comes from ``rng``."""
        for name, parameters in self.sample(rng):
            image = DEGRADATIONS[name].apply(image, rng, **parameters)
        if self.output == 'unclipped':
            return image.astype(np.float32)
        image = np.clip(image, 0.0, 1.0)
        if self.output == 'uint8':
            image = np.round(image * 255.0) / np.float32(255.0)
        return image.astype(np.float32)


def parse_steps(steps: object) -> tuple[list[Step], list[tuple[str, str]]]:
    """Reads a ``degradations`` list.

    Returns:
        The valid steps, and the problems as (place such as ``degradations[1].sigma``, message).
    """
    if isinstance(steps, str | Mapping) or not isinstance(steps, Sequence) or not steps:
        return [], [
            ('degradations', f'must be a list with at least one {{type: ...}}, got {steps!r}.')
        ]
    parsed: list[Step] = []
    problems: list[tuple[str, str]] = []
    for index, entry in enumerate(steps):
        step, found = _parse_step(entry, f'degradations[{index}]')
        problems += found
        if step is not None:
            parsed.append(step)
    return parsed, problems


def _parse_step(entry: object, place: str) -> tuple[Step | None, list[tuple[str, str]]]:
    if not isinstance(entry, Mapping) or 'type' not in entry:
        return None, [(place, f'must be a mapping with a type, got {entry!r}.')]
    name = entry['type']
    if name not in DEGRADATIONS:
        return None, [
            (f'{place}.type', f"no degradation '{name}'.{did_you_mean(name, DEGRADATIONS)}")
        ]
    known = DEGRADATIONS[name].parameters
    problems: list[tuple[str, str]] = []
    for key in entry:
        if key not in known and key not in ('type', 'prob'):
            hint = did_you_mean(key, [*known, 'prob'])
            message = f'not a parameter of {name}, the type of this step.{hint}'
            problems.append((f'{place}.{key}', message))
    prob = entry.get('prob', 1.0)
    if not _is_number(prob) or not 0 <= prob <= 1:
        problems.append((f'{place}.prob', f'must be a probability in 0..1, got {prob!r}.'))
        prob = 1.0
    ranges = {}
    for key, parameter in known.items():
        given = entry.get(key, parameter.default)
        message = _range_problem(given, parameter)
        if message:
            problems.append((f'{place}.{key}', message))
        else:
            low, high = (given, given) if _is_number(given) else given
            ranges[key] = (low, high)
    return Step(name, float(prob), ranges) if not problems else None, problems


def _range_problem(given: object, parameter: Parameter) -> str | None:
    wanted = f'{parameter.help}; a number or [low, high]'
    if isinstance(given, str):
        return (
            f'got the text {given!r} ({wanted}). YAML needs a dot in exponents: 1.0e-3, not 1e-3.'
        )
    if _is_number(given):
        values = [given, given]
    elif isinstance(given, list | tuple) and len(given) == 2 and all(map(_is_number, given)):
        values = list(given)
    else:
        return f'got {given!r} ({wanted}).'
    if values[0] > values[1]:
        return f'the range {values} is upside down: low comes first.'
    for value in values:
        if not parameter.minimum <= value <= parameter.maximum:
            limits = f'{parameter.minimum:g}..{parameter.maximum:g}'
            return f'{value} is outside {limits} ({parameter.help}).'
        if parameter.integer and value != int(value):
            return f'{value} is not a whole number ({parameter.help}).'
    return None


def _is_number(value: object) -> bool:
    return (
        isinstance(value, int | float | np.number)
        and not isinstance(value, bool)
        and math.isfinite(value)
    )
