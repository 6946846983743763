"""Silences the warnings of Pillow and libtiff, and lifts Pillow's pixel limit, while an image is read."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from PIL import Image

# An entry of `warnings.filters` for Pillow's warnings about odd files.
_REMARKS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings and lift its pixel limit in this block. The caller enforces its own limit."""
    _quiet_libtiff()
    _readers.begin()
    try:
        yield
    finally:
        _readers.end()


class _Readers:
    """Lifts Pillow's pixel limit and silences its warnings while any thread reads.

    Both settings belong to the process. If each thread restored what it found, overlapping threads would restore the
    wrong values. So the first thread to begin changes them, and the last one to end restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._limit: int | None = None
        self._follows_forks = False

    def begin(self) -> None:
        """Register a thread that starts reading."""
        with self._lock:
            self._follow_forks()
            if self._count == 0:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                # Not `catch_warnings`, which would also revert what other threads change meanwhile.
                warnings.filters = [_REMARKS, *warnings.filters]
            self._count += 1

    def end(self) -> None:
        """Unregister a thread that has finished reading."""
        with self._lock:
            self._count = max(self._count - 1, 0)  # a forked process may end what it has not begun
            if self._count == 0:
                self._put_back()

    def _follow_forks(self) -> None:
        """Reset forked processes, from the first read on."""
        if not self._follows_forks and hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(
                before=self._lock.acquire, after_in_parent=self._lock.release, after_in_child=self._begin_anew
            )
        self._follows_forks = True

    def _put_back(self) -> None:
        Image.MAX_IMAGE_PIXELS = self._limit
        warnings.filters = [entry for entry in warnings.filters if entry is not _REMARKS]

    def _begin_anew(self) -> None:
        """Reset after a fork: the new process has no other threads that read."""
        if self._count > 0:
            self._count = 0
            self._put_back()
        self._lock.release()


_readers = _Readers()


@functools.cache
def _quiet_libtiff() -> None:
    """Keep libtiff from writing errors on damaged TIFFs to the terminal. Pillow raises the same errors.

    Pillow silences libtiff's warnings itself. Where libtiff is compiled into Pillow, as on Windows, it still writes.
    """
    with suppress(AttributeError, OSError):
        # Symbols are also looked up in the libraries that this one was linked with.
        library = ctypes.CDLL(Image.core.__file__)  # type: ignore[attr-defined]
        library.TIFFSetErrorHandler(ctypes.c_void_p(None))
