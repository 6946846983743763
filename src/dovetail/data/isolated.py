"""Reads a few images outside the loader, in a separate process that can be terminated."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from dovetail.data.reading.decode import UnreadableError
from dovetail.data.reading.watch import can_fork, end_with_parent, remove_worker_death_handler

POLL_SECONDS = 0.5

Result = TypeVar("Result")


class _Once(Dataset[Result], Generic[Result]):
    """A dataset with one item: the return value of a function."""

    def __init__(self, function: Callable[[], Result]) -> None:
        self._function = function

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Result:
        return self._function()


def run_isolated(function: Callable[[], Result], *, seconds: float) -> Result:
    """Call `function` in another process and return its result. Exceptions of the function are raised here.

    Raises:
        UnreadableError: The call took more than `seconds`, or the process died.
    """
    loader: DataLoader[Result] = DataLoader(
        _Once(function),
        batch_size=None,
        num_workers=1,
        collate_fn=_unchanged,
        worker_init_fn=_start_worker,
        multiprocessing_context="fork" if can_fork() else None,  # a dataset need not be picklable
        timeout=min(seconds, POLL_SECONDS),
        generator=torch.Generator(),  # the global one belongs to the training
    )
    results: Any = iter(loader)
    remove_worker_death_handler()
    until = time.monotonic() + seconds
    while True:
        try:
            result: Result = next(results)
        except RuntimeError as error:
            if "DataLoader worker (pid" in str(error):
                raise UnreadableError("the process that was reading it died") from error
            if "timed out" not in str(error):
                raise
            if time.monotonic() >= until:
                results._workers[0].terminate()
                raise UnreadableError(f"reading took more than {seconds:g} seconds") from error
        else:
            return result


def _unchanged(item: Result) -> Result:
    return item


def _start_worker(_: int) -> None:
    end_with_parent()
    torch.set_num_threads(1)
