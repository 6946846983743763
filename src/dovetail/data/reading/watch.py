"""What every loading process is reading, and since when: how a decoder that never comes back is found and given up.

An image that waits or is decoded piece by piece is ended within its process (`dovetail.data.reading.deadline`). One
long call into a library can only be ended with its process. So each process notes what it begins to read in memory that
all share; the main process, while it waits for a batch, ends the process of what takes too long, and starts anew
without that image. Noting costs some microseconds, and nothing waits for it.

A thread of the main process looks, as the main one may itself wait for a process that is stuck: a batch that is taken
from a process is handed over by it, and one long call holds that up too.

Time is counted in polls of the main process, not by the clock: a run that was suspended (Ctrl-Z, a scheduler that lets
another job go first) would otherwise give up what it was reading, and end in other weights.
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

GRACE_SECONDS = 2.0  # for the process's own alarm, which is enough for almost all
_NOTHING = -1.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _signals(*names: str) -> tuple[signal.Signals, ...]:
    """Return those of the signals that this system has: Windows lacks some."""
    return tuple(signal.Signals[name] for name in names if hasattr(signal, name))


# How a process ends by what it computes; other signals come from outside, and no image is to blame for them.
_CRASHES = _signals("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL")
# Clusters and terminals ask all processes of a job to stop: the training one answers, and may need some batches more.
_REQUESTS = _signals("SIGTERM", "SIGUSR1", "SIGHUP", "SIGQUIT")


_KILLED = [-number for number in _signals("SIGKILL")]  # as systems do that run out of memory


class ReadingWatch:
    """One line for each loading process: the image that it reads, and when it began."""

    def __init__(self, num_workers: int) -> None:
        """Take shared memory; give this to the processes before they start."""
        self._lines = torch.full((num_workers, 2), _NOTHING, dtype=torch.float64)
        self._lines.share_memory_()  # type: ignore[no-untyped-call]
        self._seen: list[tuple[list[float], int]] = [([], 0)] * num_workers  # at the last poll, and in how many polls
        self._stuck: dict[int, str] = {}

    @contextmanager
    def reading(self, index: int) -> Iterator[None]:
        """Note in a loading process that image `index` is read within; does nothing in the main process."""
        worker = get_worker_info()
        if worker is None:
            yield
            return
        line = self._lines[worker.id]
        line[1] = time.monotonic()  # the same clock in all processes
        line[0] = index
        try:
            yield
        finally:
            line[0] = _NOTHING

    @contextmanager
    def looking(self, workers: Sequence[BaseProcess], *, seconds: float, poll: float) -> Iterator[None]:
        """End the processes that are stuck with an image, while a batch of theirs is waited for within.

        Args:
            workers: The processes, in the order of their numbers.
            seconds: What an image may take.
            poll: Seconds from one look to the next.
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
                # torch's workers leave on this signal without going back to Python.
                worker.terminate()

    def lost(self, workers: Sequence[BaseProcess]) -> dict[int, str]:
        """Return why images have to be given up, by number: processes are stuck with them, or died of them."""
        found = dict(self._stuck)
        for worker, line in zip(workers, self._lines.tolist(), strict=True):
            if line[0] != _NOTHING and worker.exitcode is not None and -worker.exitcode in _CRASHES:
                name = signal.Signals(-worker.exitcode).name
                found[int(line[0])] = f"the library that decodes it crashed ({name})"
        return found

    def killed(self, workers: Sequence[BaseProcess]) -> list[int | None]:
        """Return what each loading process read that was killed from outside; None for one that read nothing."""
        lines = zip(workers, self._lines.tolist(), strict=True)
        return [None if line[0] == _NOTHING else int(line[0]) for worker, line in lines if worker.exitcode in _KILLED]


def asked_to_stop(workers: Sequence[BaseProcess]) -> bool:
    """Whether a loading process ended because it was asked to, and not by what it did."""
    # Before torch has set its own handlers, a process has those of `dovetail.train.interrupts`.
    ends = {code for number in _REQUESTS for code in (-number, 128 + number)}
    return any(worker.exitcode in ends for worker in workers)


def next_of(batches: Iterator[Batch], workers: Sequence[BaseProcess]) -> Batch:
    """Return the next of `batches`, which `workers` load.

    Raises:
        RuntimeError: As torch raises it for a process that has ended, also where that one had handed over a batch whose
            memory went with it.
    """
    try:
        return next(batches)
    except (EOFError, OSError) as error:
        until = time.monotonic() + GRACE_SECONDS  # its socket closes before it can be seen to have ended
        while workers and time.monotonic() < until:
            for worker in workers:
                if worker.exitcode is not None:
                    raise RuntimeError(f"DataLoader worker (pid {worker.pid}) ended") from error
            time.sleep(0.01)
        raise


def leave_deaths_to_us() -> None:
    """Take back torch's handler that raises in the middle of whatever this process does when a worker ends.

    Here it is noticed when a batch is wanted, where it can be helped.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return  # torch sets none there, and handlers can be set in no other thread; Windows has no such signal
    handler = signal.getsignal(signal.SIGCHLD)
    if getattr(handler, "__module__", None) == "torch.utils.data._utils.signal_handling":
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def can_fork() -> bool:
    """Whether this process may start copies of itself: what they read need not be picklable, and they start at once.

    Only on Linux, as other systems' libraries break in a copy; and a `multiprocessing.Pool`'s processes may start none.
    """
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


def end_with_parent() -> None:
    """Let Linux end this process when the one that started it ends, however that ends.

    A decoder that never comes back would otherwise keep a core busy for ever after a run that was killed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
