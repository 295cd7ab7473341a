"""How a worker process of the input pipeline behaves: it outlives signals meant for the run, and never the run itself."""

import faulthandler
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading

_SECONDS = 30  # that the run has, after a signal that reached its workers too, before they end on their own


def begin(index: int, count: int) -> None:
    """To be called first in a worker process; the arguments are Grain's, its number and how many there are.

    A launcher, or Ctrl-C in a terminal, signals a run's workers along with it; they must live until the run has saved. A run that
    is killed leaves no worker behind. SIGUSR1 writes the stacks of all threads to stderr.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)
    faulthandler.register(signal.SIGUSR1)
    threading.Thread(target=_end_with_parent, name="vitlab-parent", daemon=True).start()


def _end_later(number: int, frame) -> None:
    timer = threading.Timer(_SECONDS, os._exit, (128 + number,))
    timer.daemon = True
    timer.start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
