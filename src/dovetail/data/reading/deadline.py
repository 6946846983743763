"""A time limit for reading one image."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dovetail.data.reading.decode import UnreadableError

TICKS = 2
AGAIN_SECONDS = 1.0  # a decoder may have swallowed the first exception


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise `UnreadableError` in the block if it takes more than `seconds`.

    This interrupts reads from a file system or a pipe, and decoders that return to Python now and then. A single long
    call into a library is not interrupted; `dovetail.data.reading.watch` handles that. Outside the main thread and on
    systems without such timers, nothing is limited. A timer that was running before continues afterwards.

    Time is counted in ticks of a timer. A suspended process gets only one tick, however long it is suspended, so an
    image is not given up because the run was paused while reading it.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    ticks = 0

    def tick(number: int, frame: FrameType | None) -> None:
        nonlocal ticks
        ticks += 1
        if ticks >= TICKS:
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS, AGAIN_SECONDS)
            raise UnreadableError(f"it could not be read within {seconds:g} seconds")

    began = time.monotonic()
    handler = signal.signal(signal.SIGALRM, tick)
    before, interval = signal.setitimer(signal.ITIMER_REAL, seconds / TICKS, seconds / TICKS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        if before:
            left = max(before - (time.monotonic() - began), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, left, interval)
