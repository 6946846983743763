"""Watches what every worker is reading, and since when, to find and stop decoders that hang.

Most slow reads are interrupted within the worker (`dovetail.data.reading.deadline`). A single long call into a library
can only be stopped together with its process. So each worker records in shared memory which image it starts to read.
While the main process waits for a batch, it terminates a worker that takes too long, and restarts without that image.
Recording takes some microseconds and blocks nothing.

A separate thread of the main process does the polling, because the main thread may itself wait for a stuck worker when
it takes over a batch.

Time is counted in polls and not by the clock. Otherwise a run that was suspended (Ctrl-Z, a preempting scheduler)
would give up the images that it was reading, and end with different weights.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import TypeVar

import torch
from torch.utils.data import get_worker_info

Batch = TypeVar("Batch")

GRACE_SECONDS = 2.0  # for the worker's own alarm, which stops almost all slow reads
_NOTHING = -1.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _signals(*names: str) -> tuple[signal.Signals, ...]:
    """Return the signals that exist on this system: Windows lacks some."""
    return tuple(signal.Signals[name] for name in names if hasattr(signal, name))


# Signals of a crash in the process itself. Other signals come from outside, and no image causes them.
_CRASHES = _signals("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL")
# Clusters and terminals ask all processes of a job to stop. The training process may need some batches more.
_REQUESTS = _signals("SIGTERM", "SIGUSR1", "SIGHUP", "SIGQUIT")


_KILLED = [-number for number in _signals("SIGKILL")]  # sent by a system that runs out of memory


class ReadingWatch:
    """Records for each worker which image it is reading, and when it started."""

    def __init__(self, num_workers: int) -> None:
        """Allocate shared memory. Pass the watch to the workers before they start."""
        self._lines = torch.full((num_workers, 2), _NOTHING, dtype=torch.float64)
        self._lines.share_memory_()  # type: ignore[no-untyped-call]
        self._seen: list[tuple[list[float], int]] = [([], 0)] * num_workers  # the last record, and its number of polls
        self._stuck: dict[int, str] = {}

    @contextmanager
    def reading(self, index: int) -> Iterator[None]:
        """Record in a worker that image `index` is read in the block. Does nothing in the main process."""
        worker = get_worker_info()
        if worker is None:
            yield
            return
        line = self._lines[worker.id]
        line[1] = time.monotonic()  # all processes share this clock
        line[0] = index
        try:
            yield
        finally:
            line[0] = _NOTHING

    @contextmanager
    def looking(self, workers: Sequence[BaseProcess], *, seconds: float, poll: float) -> Iterator[None]:
        """Terminate workers that are stuck, while the block waits for a batch.

        Args:
            workers: Worker processes, ordered by worker id.
            seconds: Time limit for one image, in seconds.
            poll: Polling interval in seconds.
        """
        if not workers:
            yield
            return
        done = threading.Event()

        def look() -> None:
            while not done.wait(poll):
                self._end_stuck(workers, seconds=seconds, poll=poll)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _end_stuck(self, workers: Sequence[BaseProcess], *, seconds: float, poll: float) -> None:
        for number, (worker, line) in enumerate(zip(workers, self._lines.tolist(), strict=True)):
            index = line[0]
            before, polls = self._seen[number]
            polls = polls + 1 if line == before else 0
            self._seen[number] = (line, polls)
            if index != _NOTHING and polls * poll > seconds + GRACE_SECONDS and worker.exitcode is None:
                self._stuck[int(index)] = f"it could not be read within {seconds:g} seconds"
                # torch's workers exit on this signal without returning to Python.
                worker.terminate()

    def lost(self, workers: Sequence[BaseProcess]) -> dict[int, str]:
        """Return the images that made a worker hang or crash, with the reason, by image index."""
        found = dict(self._stuck)
        for worker, line in zip(workers, self._lines.tolist(), strict=True):
            if line[0] != _NOTHING and worker.exitcode is not None and -worker.exitcode in _CRASHES:
                name = signal.Signals(-worker.exitcode).name
                found[int(line[0])] = f"its decoder crashed ({name})"
        return found

    def killed(self, workers: Sequence[BaseProcess]) -> list[int | None]:
        """Return the image that each worker killed from outside was reading; None if it was not reading."""
        lines = zip(workers, self._lines.tolist(), strict=True)
        return [None if line[0] == _NOTHING else int(line[0]) for worker, line in lines if worker.exitcode in _KILLED]


def asked_to_stop(workers: Sequence[BaseProcess]) -> bool:
    """Return whether a worker ended because of a request to stop, and not because of a crash."""
    # Until torch sets its own handlers, a worker has those of `dovetail.train.interrupts`.
    ends = {code for number in _REQUESTS for code in (-number, 128 + number)}
    return any(worker.exitcode in ends for worker in workers)


def next_of(batches: Iterator[Batch], workers: Sequence[BaseProcess]) -> Batch:
    """Return the next of `batches`, which `workers` load.

    Raises:
        RuntimeError: A worker died. This is the error that torch raises; it is also raised if the shared memory of a
            finished batch was lost with the worker.
    """
    try:
        return next(batches)
    except (EOFError, OSError) as error:
        until = time.monotonic() + GRACE_SECONDS  # its socket closes before its exit code is visible
        while workers and time.monotonic() < until:
            for worker in workers:
                if worker.exitcode is not None:
                    raise RuntimeError(f"DataLoader worker (pid {worker.pid}) ended") from error
            time.sleep(0.01)
        raise


def remove_worker_death_handler() -> None:
    """Remove torch's SIGCHLD handler, which raises at any point of the main process when a worker dies.

    `dovetail` notices a dead worker when it waits for the next batch, where it can recover.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return  # handlers can only be set in the main thread; Windows has no such signal
    handler = signal.getsignal(signal.SIGCHLD)
    if getattr(handler, "__module__", None) == "torch.utils.data._utils.signal_handling":
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def can_fork() -> bool:
    """Return whether this process may fork: forked workers start at once, and need no pickling.

    Forking is used on Linux only, as libraries of other systems break in a forked process. The processes of a
    `multiprocessing.Pool` may not start others.
    """
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


def end(workers: Sequence[BaseProcess]) -> None:
    """Kill workers whose batches are not needed any more.

    A worker that hangs would keep the main process from exiting. It would also outlive the run for as long as somebody
    keeps the error, as notebooks do: the error keeps torch's iterator, which ends its workers only when it is freed.
    """
    for worker in workers:
        worker.kill()


def end_with_parent() -> None:
    """Make Linux kill this process when its parent exits for whatever reason.

    Otherwise a decoder that hangs would keep a core busy forever after the run was killed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
