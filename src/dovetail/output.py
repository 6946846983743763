"""Standard output and standard error that survive the loss of their reader."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

# A pipe without a reader, a closed terminal, a full disk.
LOST = frozenset({errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ECONNRESET})

_lost: list[str] = []


class Forgiving(io.RawIOBase):
    """Writes to a file descriptor, and drops data that cannot be written."""

    def __init__(self, descriptor: int, name: str) -> None:
        """Write to `descriptor`, which stays open when this is closed. `lost_outputs` reports it as `name`."""
        self._descriptor = descriptor
        self._name = name

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        """Write part of the data or drop all of it. Return the number of bytes handled."""
        try:
            return os.write(self._descriptor, data)
        except OSError as error:
            if error.errno not in LOST:
                raise
            if self._name not in _lost:
                _lost.append(self._name)
            return memoryview(data).nbytes


def lost_outputs() -> tuple[str, ...]:
    """Return which of "standard output" and "standard error" have dropped data."""
    return tuple(_lost)


@contextmanager
def outliving_readers() -> Iterator[None]:
    """Make the output and error streams of the process drop data without a reader, instead of raising.

    `dovetail pretrain … | head` then trains to the end. Lines are written immediately, also to a pipe.
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
    """Return a stream that drops data without a reader, or `stream` itself if it is not the process's `own` stream."""
    if stream is None or stream is not own:
        return stream
    stream.flush()
    raw = io.BufferedWriter(Forgiving(stream.fileno(), name))
    return io.TextIOWrapper(raw, encoding=stream.encoding, errors="backslashreplace", line_buffering=True)


def drop_standard_output() -> None:
    """Discard pending standard output, so that the process can exit without an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
