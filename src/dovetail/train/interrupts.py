"""Signal handling: a signal sets a flag, and the run finishes its step, saves a checkpoint and stops."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)


class StopRequests:
    """Handles the signals of `stop_signals`: Ctrl-C, the end of a terminal or job, and SLURM's signal.

    A second Ctrl-C interrupts immediately, without a checkpoint.

    Attributes:
        received: Signal that this or another process of the run received; None before.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._received_at = 0.0
        self._own: int | None = None  # the last signal to this process
        self._pid = os.getpid()
        self._before: dict[int, Any] = {}

    def listen(self, *numbers: int) -> None:
        """Handle these signals too, or again if another handler replaced this one; only in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in numbers:
            before = signal.signal(number, self._receive)
            self._before.setdefault(number, before)

    def restore(self) -> None:
        """Restore the previous handler of every signal."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a loading process inherited this handler
            if number != signal.SIGINT:  # the training process handles Ctrl-C
                os._exit(128 + number)
            return
        if self._own == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            self._received_at = time.monotonic()
            acknowledge(number)
        self._own = self.received = number

    def waited(self, seconds: float) -> bool:
        """Whether a signal arrived at least this many seconds ago."""
        return self.received is not None and time.monotonic() - self._received_at >= seconds


def acknowledge(number: int) -> None:
    """Say at once that a run is about to stop, because its step may take minutes.

    Only the first process says so. A handler may interrupt any line of Python, including a print to a buffered stream,
    so it writes to the descriptor of standard error.
    """
    from dovetail.distributed import rank  # imports PyTorch, unlike this module, which `dovetail try` imports

    if rank() == 0:
        again = "; press Ctrl-C again to stop now" if number == signal.SIGINT else ""
        with suppress(OSError):
            os.write(2, f"\n{signal_name(number)}: stopping after this step{again}.\n".encode())


def stop_signals() -> tuple[int, ...]:
    """Return the signals that stop this process.

    SIGINT and SIGTERM; SIGQUIT if the system has it; SIGHUP unless `nohup` ignores it; in a SLURM job also SIGUSR1,
    which requeues the job.
    """
    found = [signal.SIGINT, signal.SIGTERM]
    if os.name == "posix":
        found += [number for number in (signal.SIGHUP, signal.SIGQUIT) if signal.getsignal(number) != signal.SIG_IGN]
        found += [signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else []
    return tuple(found)


def signal_name(number: int) -> str:
    """Return a signal's name, and the key that sends it.

    >>> signal_name(signal.SIGINT)
    'Ctrl-C (SIGINT)'
    """
    name = signal.Signals(number).name
    return f"Ctrl-C ({name})" if number == signal.SIGINT else name


@contextmanager
def stopped_at_once() -> Iterator[list[int]]:
    """Raise `KeyboardInterrupt` for the signals of `stop_signals`; the list contains the signals received.

    Use it for work that is already saved in parts, where there is nothing to wait for.
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
    """Requeue this SLURM job."""
    scontrol, job = shutil.which("scontrol"), os.environ.get("SLURM_JOB_ID", "")
    if scontrol is None or not job.isdecimal():
        log.warning("This SLURM job cannot be requeued: scontrol or the job ID is missing.")
        return
    done = subprocess.run([scontrol, "requeue", job], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        log.warning("SLURM did not requeue job %s: %s", job, done.stderr.strip())
