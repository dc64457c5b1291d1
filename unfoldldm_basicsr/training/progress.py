"""What the hooks of BasicSR's pipelines tell each other within one run."""

from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import DataLoader, Dataset

from unfoldldm_basicsr.weights.training_state import Checkpoint


@dataclass
class Progress:
    """Facts that one hook finds and a later one needs; the option dict is BasicSR's."""

    notes: tuple[str, ...] = ()  # translated keys and warnings, one line each, for the log
    seed_drawn: bool = False  # ``manual_seed`` was drawn, as the option file names none
    built: list[tuple[dict, Dataset]] = field(default_factory=list)  # data sets of the check
    resumed: Checkpoint | None = None
    data: dict[str, Any] | None = None  # fingerprint of the training set
    steps_per_epoch: int | None = None
    val_loaders: list[DataLoader] = field(default_factory=list)

    def begin(self) -> None:
        """Forgets an earlier run of this process."""
        self.__init__()


progress = Progress()
