"""What is done for the models of BasicSR itself, which keep their own training step."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from unfoldldm_basicsr.common.errors import RunFailure


class NonFiniteLossError(RunFailure, FloatingPointError):
    """A loss is not a number, or infinite."""

    on_all_ranks = True


def reduce_loss_dict(self, loss_dict: Mapping[str, Tensor]) -> dict[str, float]:
    """Replaces ``BaseModel.reduce_loss_dict``: a loss that is not finite ends the training.

    BasicSR trains on with NaN weights, saves them and logs a metric for them. Its models have made
    the step when they come here, so that it cannot be skipped; the last checkpoint is still whole.
    Models of this package have their own step, which skips.

    Raises:
        NonFiniteLossError: names the losses.
    """
    losses = reduce_loss_dict.replaces(self, loss_dict)
    faulty = [name for name, value in losses.items() if not math.isfinite(value)]
    if faulty:
        raise NonFiniteLossError(
            f'{", ".join(faulty)} not finite: training stopped before such weights are saved. '
            'Resume from the last checkpoint with a lower learning rate, or use model_type: '
            'RestorationModel, which skips such steps.'
        )
    return losses
