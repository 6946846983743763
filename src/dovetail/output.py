"""Standard output and standard error of a job that outlives whoever reads them."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

# A pipe without a reader, a terminal that was closed, a file on a full disk.
LOST = frozenset({errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ECONNRESET})

_lost: list[str] = []


class Forgiving(io.RawIOBase):
    """Writes to a file descriptor, and drops what the descriptor no longer takes."""

    def __init__(self, descriptor: int, name: str) -> None:
        """Write to `descriptor`, which stays open when this is closed; `name` is how `lost_outputs` reports it."""
        self._descriptor = descriptor
        self._name = name

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        """Write a part of the data or drop all of it; return how many bytes are done."""
        try:
            return os.write(self._descriptor, data)
        except OSError as error:
            if error.errno not in LOST:
                raise
            if self._name not in _lost:
                _lost.append(self._name)
            return memoryview(data).nbytes


def lost_outputs() -> tuple[str, ...]:
    """Return which of "standard output" and "standard error" have dropped something."""
    return tuple(_lost)


@contextmanager
def outliving_readers() -> Iterator[None]:
    """Let the process's own output and error streams drop what nobody takes, instead of raising.

    `dovetail pretrain … | head` then trains to its end. Lines are written at once, also into a pipe.
    """
    before = sys.stdout, sys.stderr
    sys.stdout = _forgiving(sys.stdout, sys.__stdout__, "standard output")
    sys.stderr = _forgiving(sys.stderr, sys.__stderr__, "standard error")
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


def _forgiving(stream: TextIO, own: TextIO | None, name: str) -> TextIO:
    """Return a stream that drops what nobody takes; `stream` itself where it is not the process's `own`."""
    if stream is None or stream is not own:
        return stream
    stream.flush()
    raw = io.BufferedWriter(Forgiving(stream.fileno(), name))
    return io.TextIOWrapper(raw, encoding=stream.encoding, errors="backslashreplace", line_buffering=True)


def drop_standard_output() -> None:
    """Send what is still to be written to standard output nowhere, so that the process can end without a complaint."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
