"""SIGTERM and SIGINT ask for a stop at the next iteration boundary, so that it can be saved.

The first signal is remembered, a later one acts at once as it would have without this module.
One signal may arrive twice: a job system sends it to every process, and torchrun passes it on.
"""

import logging
import os
import signal
import threading
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
REPEATED_AFTER = 2.0  # seconds after the first signal from which another one counts


class StopRequest:
    """Remembers the first SIGTERM or SIGINT of this process in ``signum`` (0: none)."""

    def __init__(self):
        self.signum = 0
        self._since = 0.0
        self._previous: dict[int, object] = {}

    def install(self) -> None:
        """Takes over the signals; only the main thread can, elsewhere nothing happens.

        A signal that the parent process ignores (``nohup``, jobs in the background) stays ignored.
        """
        if threading.current_thread() is not threading.main_thread() or self._previous:
            return
        for signum in SIGNALS:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._previous[signum] = signal.signal(signum, self._handle)

    def remove(self) -> None:
        """Gives the signals back and forgets the request."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}
        self.signum = 0

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            if time.monotonic() - self._since >= REPEATED_AFTER:
                self.remove()
                os.kill(os.getpid(), signum)
            return
        self.signum, self._since = signum, time.monotonic()
        logging.getLogger('basicsr').warning(
            '%s received: the run is saved and stopped after this iteration (or image of a '
            'validation). Send it again after %g s to stop at once, without saving.',
            signal.Signals(signum).name,
            REPEATED_AFTER,
        )


stop_request = StopRequest()
