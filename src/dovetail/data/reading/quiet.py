"""What Pillow and libtiff say on odd files, and Pillow's own limit of pixels, out of the way while an image is read."""

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

# Of `warnings.filters`: what Pillow says on odd files.
_REMARKS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's remarks on odd files and take its limit of pixels away within; whoever reads has its own."""
    _quiet_libtiff()
    _readers.begin()
    try:
        yield
    finally:
        _readers.end()


class _Readers:
    """Takes Pillow's limit of pixels and its remarks away while any thread reads.

    Both belong to the process. Would each thread put back what it had found, one that begins amid another's reading
    would put back nothing; so the first to begin takes them away, and the last to end puts them back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._limit: int | None = None
        self._follows_forks = False

    def begin(self) -> None:
        """Note that a thread begins to read."""
        with self._lock:
            self._follow_forks()
            if self._count == 0:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                # Not by `catch_warnings`, which would also take back what other threads change meanwhile.
                warnings.filters = [_REMARKS, *warnings.filters]
            self._count += 1

    def end(self) -> None:
        """Note that it has ended."""
        with self._lock:
            self._count = max(self._count - 1, 0)  # a copy of the process may end what it has not begun
            if self._count == 0:
                self._put_back()

    def _follow_forks(self) -> None:
        """Keep copies of this process in order, from the first reading on."""
        if not self._follows_forks and hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(
                before=self._lock.acquire, after_in_parent=self._lock.release, after_in_child=self._begin_anew
            )
        self._follows_forks = True

    def _put_back(self) -> None:
        Image.MAX_IMAGE_PIXELS = self._limit
        warnings.filters = [entry for entry in warnings.filters if entry is not _REMARKS]

    def _begin_anew(self) -> None:
        """In a copy of this process, which has no other threads that read."""
        if self._count > 0:
            self._count = 0
            self._put_back()
        self._lock.release()


_readers = _Readers()


@functools.cache
def _quiet_libtiff() -> None:
    """Keep what libtiff itself writes to the terminal on damaged TIFFs from it, for good; Pillow raises the same.

    Pillow does so with its warnings. Where libtiff is a part of Pillow's own library, as on Windows, it still writes.
    """
    with suppress(AttributeError, OSError):
        # A library's names are looked up in those that it was linked with, too.
        library = ctypes.CDLL(Image.core.__file__)  # type: ignore[attr-defined]
        library.TIFFSetErrorHandler(ctypes.c_void_p(None))
