"""Missing files of labelled datasets: an error, or listed by `--check`, which then reads the other files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from dovetail.errors import MissingFilesError

_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)


@contextmanager
def collecting_missing() -> Iterator[list[str]]:
    """Yield a list that gets a sentence for each missing file that is found in the block."""
    found: list[str] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def refuse_missing_files(sentence: str, faults: Sequence[str], *, left: int) -> None:
    """Raise `MissingFilesError`, or collect the faults.

    Args:
        sentence: Message of the error.
        faults: A sentence for each missing file.
        left: Number of complete images. Without any, the error is raised in any case.
    """
    found = _collected.get()
    if found is None or not left:
        raise MissingFilesError(sentence, tuple(faults))
    found += faults
