"""What an unfolding network did to an image.

Shapes: H, W of the image; h, w of a stage; N prompts; g x g patches of CLIP.
"""

from typing import NamedTuple

import numpy as np


class StageImages(NamedTuple):
    """What one stage made of one image: estimates after the holistic and the decomposed gradient
    step and the stage's output, (H, W, 3) float RGB in [0, 1]; the prior (C_p,), empty without one;
    ``x`` of a run with the null prior, or None.
    """

    x_hat: np.ndarray
    x_tilde: np.ndarray
    x: np.ndarray
    prior: np.ndarray
    x_null: np.ndarray | None


class Trace(NamedTuple):
    """Input and output (H, W, 3) float RGB in [0, 1], and the stages between them."""

    lq: np.ndarray
    stages: tuple[StageImages, ...]
    output: np.ndarray


class ClipAttention(NamedTuple):
    """Where CLIP looks. All maps are (g, g) float32 shares of the patches that sum to 1.

    Attributes:
        view: (S, S, 3) float RGB, the part of the image that CLIP sees.
        texts: N texts that the image is compared with; ``asked`` is the one of the relevance.
        attention: attention of the class token in the last block, mean over heads.
        before, after: relevance for the text, by CLIP alone and by the tuned adapters.
        scores_before, scores_after: (N,) probabilities of the texts.
    """

    view: np.ndarray
    texts: tuple[str, ...]
    asked: int
    attention: np.ndarray
    before: np.ndarray
    after: np.ndarray
    scores_before: np.ndarray
    scores_after: np.ndarray


class StageSteps(NamedTuple):
    """One gradient step of VLU-Net.

    Attributes:
        weights: (N,) weights of the prompts, sum 1.
        channels: C, over which the maps are means.
        residual, step: (h, w) mean |Phi(x) - y|, and mean |what was subtracted from x|.
        scale: pixels of the image per pixel of the maps, in rows and columns.
    """

    name: str
    weights: np.ndarray
    channels: int
    residual: np.ndarray
    step: np.ndarray
    scale: int


class VLUExplanation(NamedTuple):
    """What VLU-Net did to one image: input and output (H, W, 3) float RGB in [0, 1], names of the
    degradations by index, the eight stages, CLIP's attention, or None and the reason.
    """

    lq: np.ndarray
    output: np.ndarray
    classes: tuple[str, ...]
    stages: tuple[StageSteps, ...]
    attention: ClipAttention | None
    attention_note: str

    @property
    def prompt_names(self) -> list[str]:
        """Names of the prompts: the degradations if there are as many, else numbers."""
        count = len(self.stages[0].weights)
        if count == len(self.classes):
            return list(self.classes)
        return [f'prompt {number}' for number in range(1, count + 1)]


def levels(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference of two images in [0, 1], in levels of 255."""
    return float(np.abs(first - second).mean() * 255)
