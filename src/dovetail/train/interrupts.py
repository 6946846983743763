"""Being asked to stop: a signal sets a flag, the run writes a checkpoint after its step and leaves."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)


class StopRequests:
    """Listens for the signals of `stop_signals`: Ctrl-C, the end of a terminal or of a job, or SLURM's.

    A second Ctrl-C interrupts at once, without a checkpoint.

    Attributes:
        received: The signal that came, to this process or to another one of the run; None before.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._received_at = 0.0
        self._own: int | None = None  # the last that came to this process
        self._pid = os.getpid()
        self._before: dict[int, Any] = {}

    def listen(self, *numbers: int) -> None:
        """Listen for these signals too, or again where something else has taken them; not outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in numbers:
            before = signal.signal(number, self._receive)
            self._before.setdefault(number, before)

    def restore(self) -> None:
        """Give every signal back the handler that it had before."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a loading process that inherited this handler
            if number != signal.SIGINT:  # Ctrl-C is the training process's to answer
                os._exit(128 + number)
            return
        if self._own == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            self._received_at = time.monotonic()
        self._own = self.received = number

    def waited(self, seconds: float) -> bool:
        """Whether a signal came, and so many seconds have gone by since."""
        return self.received is not None and time.monotonic() - self._received_at >= seconds


def stop_signals() -> tuple[int, ...]:
    """Return the signals that ask this process to stop.

    SIGINT and SIGTERM; where the system has them SIGQUIT, and SIGHUP unless `nohup` had it ignored; in a SLURM job
    SIGUSR1, which asks to be queued again.
    """
    found = [signal.SIGINT, signal.SIGTERM]
    if os.name == "posix":
        found += [number for number in (signal.SIGHUP, signal.SIGQUIT) if signal.getsignal(number) != signal.SIG_IGN]
        found += [signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else []
    return tuple(found)


@contextmanager
def stopped_at_once() -> Iterator[list[int]]:
    """Let the signals of `stop_signals` raise `KeyboardInterrupt` within, as Ctrl-C does; the list tells which came.

    For work whose finished parts are on disk already, so that there is nothing to wait for.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, stop) for number in stop_signals() if number != signal.SIGINT}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def requeue_slurm_job() -> None:
    """Put this SLURM job into the queue again."""
    scontrol, job = shutil.which("scontrol"), os.environ.get("SLURM_JOB_ID", "")
    if scontrol is None or not job.isdecimal():
        log.warning("This SLURM job could not be queued again from here: scontrol or the job's number is missing.")
        return
    done = subprocess.run([scontrol, "requeue", job], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        log.warning("SLURM did not queue job %s again: %s", job, done.stderr.strip())
