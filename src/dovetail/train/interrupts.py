"""Being asked to stop: a signal sets a flag, the run writes a checkpoint after its step and leaves."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

from dovetail.errors import DovetailError

log = logging.getLogger(__name__)


class Interrupted(DovetailError):
    """A run that was asked to stop and has saved itself. `exit_code` is the shell's convention, 128 + signal."""

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """What the process should exit with."""
        return 128 + self.signal_number


class StopRequests:
    """Listens for SIGINT and SIGTERM, and in a SLURM job for SIGUSR1, which asks to be queued again.

    A second Ctrl-C interrupts at once, without a checkpoint.

    Attributes:
        received: The signal that came, to this process or to another one of the run; None before.
    """

    def __init__(self) -> None:
        self.received: int | None = None
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
        self._own = self.received = number


def stop_signals() -> tuple[int, ...]:
    """Return the signals that ask this process to stop."""
    in_slurm = "SLURM_JOB_ID" in os.environ
    return (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if in_slurm and os.name == "posix" else []))


def requeue_slurm_job() -> None:
    """Put this SLURM job into the queue again."""
    scontrol, job = shutil.which("scontrol"), os.environ.get("SLURM_JOB_ID", "")
    if scontrol is None or not job.isdecimal():
        log.warning("This SLURM job could not be queued again from here: scontrol or the job's number is missing.")
        return
    done = subprocess.run([scontrol, "requeue", job], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        log.warning("SLURM did not queue job %s again: %s", job, done.stderr.strip())
