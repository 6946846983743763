"""Reading in another process: results, exceptions, hangs, crashes."""

from __future__ import annotations

import ctypes
import os

import pytest
import torch

from dovetail.data.isolated import run_isolated
from dovetail.data.reading.decode import UnreadableError


def hang() -> None:
    sum(range(10**15))


def crash() -> None:
    ctypes.string_at(0)


def wrong() -> None:
    raise KeyError("a mistake")


def test_results_come_from_another_process_and_draw_no_random_numbers() -> None:
    torch.manual_seed(1)
    names, pid, pixels = run_isolated(lambda: (["a", "b"], os.getpid(), torch.ones(3, dtype=torch.uint8)), seconds=60)
    assert torch.rand(1).equal(torch.rand(1, generator=torch.Generator().manual_seed(1)))
    assert names == ["a", "b"]
    assert pid != os.getpid()
    assert pixels.tolist() == [1, 1, 1]


def test_hangs_and_crashes_get_a_reason() -> None:
    with pytest.raises(UnreadableError, match=r"more than 0\.3 seconds"):
        run_isolated(hang, seconds=0.3)
    with pytest.raises(UnreadableError, match="process that was reading it died"):
        run_isolated(crash, seconds=60)


def test_mistakes_are_raised_as_they_are() -> None:
    with pytest.raises(KeyError, match="a mistake"):
        run_isolated(wrong, seconds=60)
