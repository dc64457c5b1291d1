"""Functions of BasicSR's own that end a run, hang it, or let it go on when it should end."""

import logging
import math
import queue
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from unfoldldm_basicsr.common.errors import RunFailure


def reduce_loss_dict(self, loss_dict: Mapping[str, Tensor]) -> dict[str, float]:
    """Replaces ``BaseModel.reduce_loss_dict``: a loss that is not finite ends the training.

    BasicSR trains on with NaN weights, saves them and logs a metric for them. Its models have made
    the step when they come here, so that it cannot be skipped; the last checkpoint is still whole.
    Models of this package have their own step, which skips.

    Raises RunFailure: names the losses.
    """
    losses = reduce_loss_dict.replaces(self, loss_dict)
    if not type(self).__module__.startswith('basicsr.'):
        return losses  # a project's own model may log what it likes
    faulty = [n for n, value in losses.items() if n.startswith('l_') and not math.isfinite(value)]
    if faulty:
        raise RunFailure(
            f'{", ".join(faulty)} not finite: training stopped before such weights are saved. '
            'Resume from the last checkpoint with a lower learning rate.'
        )
    return losses


def get_root_logger(
    logger_name: str = 'basicsr', log_level: int = logging.INFO, log_file: str | None = None
) -> logging.Logger:
    """Replaces ``basicsr.utils.get_root_logger``, whose log file loses messages.

    A message with the name of a file that the encoding of the log lacks is not written at all.
    """
    logger = get_root_logger.replaces(logger_name, log_level, log_file)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler) and handler.stream.errors == 'strict':
            handler.stream.reconfigure(errors='backslashreplace')
    return logger


def message_logger_call(self, log_vars: dict) -> None:
    """Replaces ``MessageLogger.__call__``, whose lines count the step that is done as one to come.

    The last line promised an end in -1 day.
    """
    self.max_iters += 1
    message_logger_call.replaces(self, log_vars)
    self.max_iters -= 1


def copy_opt_file(opt_file: str, experiments_root: str) -> None:
    """Replaces ``basicsr.utils.options.copy_opt_file``, which cannot copy a file onto itself.

    That happens when a run is resumed from the copy in its own folder. Names in the command line
    that are no UTF-8 are escaped.
    """
    from basicsr.utils.dist_util import get_dist_info

    target = Path(experiments_root) / Path(opt_file).name
    if get_dist_info()[0] != 0 or (target.exists() and target.samefile(opt_file)):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    text = Path(opt_file).read_text(encoding='utf-8')
    command = shlex.join(sys.argv).replace('\n', '\n# ')
    header = f'# GENERATE TIME: {time.asctime()}\n# CMD:\n# {command}\n\n'
    target.write_text(header + text, encoding='utf-8', errors='backslashreplace')


# ---- loader processes and prefetching ------------------------------------------------------------


def prefetch_run(self) -> None:
    """Replaces ``PrefetchGenerator.run``: an error in the thread used to hang the training."""
    try:
        for item in self.generator:
            self.queue.put(item)
    except BaseException as error:  # noqa: BLE001  (re-raised in the consuming thread)
        self.queue.put(error)
    else:
        self.queue.put(None)


def prefetch_next(self) -> object:
    """Replaces ``PrefetchGenerator.__next__``: raises what the reading thread met.

    With an attribute ``timeout`` it waits no longer than so many seconds.
    """
    patience = getattr(self, 'timeout', None)
    try:
        item = self.queue.get(timeout=patience)
    except queue.Empty as error:
        raise RuntimeError(f'DataLoader timed out after {patience:g} seconds') from error
    if isinstance(item, BaseException):
        raise item
    if item is None:
        raise StopIteration
    return item
