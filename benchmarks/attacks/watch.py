"""What an attack may not do, noticed by an audit hook in this process and in those that it forks."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

SECONDS = 60
MEMORY_BYTES = 1 << 30
LIMIT_BYTES = 8 << 30
RUNS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn")
CONNECTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
ELSEWHERE = ("/dev/", "/proc/", "/sys/")


class TooLongError(BaseException):
    """An attack that is not over in time; no `except Exception` may hide it."""


class Watch:
    """Notes what must not happen while `noting`.

    Args:
        folder: Files may be written in it, in the folder for temporary files and nowhere else.
        secret: A file that nobody may open.
    """

    def __init__(self, folder: Path, secret: Path) -> None:
        self.folder, self.secret = str(folder.resolve()), str(secret)
        self._allowed = (self.folder, tempfile.gettempdir(), *ELSEWHERE)
        self._on = False
        self._notes = os.open(folder / "notes", os.O_RDWR | os.O_CREAT | os.O_APPEND)  # forks write here as well
        self._write, self._fsdecode = os.write, os.fsdecode
        sys.addaudithook(self._heard)  # for good: a hook cannot be taken away

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event in RUNS:
            self._note(f"it ran something ({event})")
        elif event in CONNECTS and not self._is_local(event, arguments):
            self._note(f"it connected ({event})")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            self._look(self._fsdecode(arguments[0]), arguments[2] if isinstance(arguments[2], int) else 0)

    def _is_local(self, event: str, arguments: tuple[Any, ...]) -> bool:
        """Whether a connection is one between processes of this machine, through a socket in the file system."""
        return event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], str | bytes)

    def _look(self, path: str, flags: int) -> None:
        path = os.path.abspath(path)  # noqa: PTH100 - links stay
        if path == self.secret:
            self._note("it opened a file that it must not")
        elif flags & WRITES and not path.startswith(self._allowed) and "__pycache__" not in path:
            self._note(f"it wrote to {path}")

    def _note(self, text: str) -> None:
        self._write(self._notes, text.encode("utf-8", "backslashreplace") + b"\n")

    @contextlib.contextmanager
    def noting(self) -> Iterator[list[str]]:
        """Watch within, for so many seconds at most; the list holds what was noted once it is over."""
        found: list[str] = []
        os.ftruncate(self._notes, 0)
        before = peak_bytes()
        handler = signal.signal(signal.SIGALRM, too_long)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        self._on = True
        try:
            yield found
        finally:
            self._on = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
            text = os.pread(self._notes, 1 << 16, 0).decode("utf-8", "replace")
            found.extend(dict.fromkeys(text.splitlines()))
            if peak_bytes() - before > MEMORY_BYTES:
                found.append(f"it took {(peak_bytes() - before) >> 20} MiB of memory")


def limit_memory() -> None:
    """Let this process have some GiB more at most, so that an attack that takes them ends here and not the machine."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + LIMIT_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))


def too_long(number: int, frame: FrameType | None) -> None:
    """End what takes too long."""
    raise TooLongError(f"it took more than {SECONDS} seconds")


def peak_bytes() -> int:
    """Return the most memory that this process has had."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes << 10
