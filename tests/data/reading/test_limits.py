"""Too little shared memory or too few open files: one sentence at once, and less read ahead where that helps."""

from __future__ import annotations

import os
import resource
from types import SimpleNamespace
from typing import Any

import pytest

from dovetail.data.loader import AHEAD_BATCHES, make_loader
from dovetail.data.reading.limits import batches_ahead, check_open_files
from dovetail.data.sources import DatasetSource
from dovetail.errors import DovetailError
from dovetail.views.plan import ViewPlan, ViewSpec
from tests.data.photos import smooth

PLAN = ViewPlan((ViewSpec(64), ViewSpec(64)))
MIB = 1 << 20


def free_of(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """Let shared memory have so many bytes free."""
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=num_bytes, f_frsize=1))


@pytest.mark.parametrize(("free", "ahead"), [(1000 * MIB, 4), (56 * MIB, 4), (45 * MIB, 3), (24 * MIB, 1)])
def test_less_is_read_ahead_where_there_is_little_room(
    monkeypatch: pytest.MonkeyPatch, free: int, ahead: int, caplog: pytest.LogCaptureFixture
) -> None:
    free_of(monkeypatch, free)
    assert batches_ahead(4, batch_bytes=5 * MIB, processes=2) == ahead
    assert (f"prefetches {ahead} batches" in caplog.text) == (ahead < 4)


def test_no_room_at_all_gets_a_sentence_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    free_of(monkeypatch, MIB)
    source = DatasetSource([smooth(64, 64, seed=seed) for seed in range(64)])
    for workers in (0, 2):
        with pytest.raises(DovetailError, match=r"Shared memory \(/dev/shm\) has 1 MiB free.*--shm-size"):
            make_loader(source, PLAN, global_batch=64, total_steps=1, seed=0, num_workers=workers)
    free_of(monkeypatch, 100 * MIB)
    loader = make_loader(source, PLAN, global_batch=64, total_steps=1, seed=0, num_workers=2)
    assert loader._ahead == AHEAD_BATCHES
    assert len(list(loader)) == 1


def test_the_limit_of_open_files_is_raised_or_told(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[Any] = [(24, 24)]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limit: limits.append(limit))
    with pytest.raises(DovetailError, match=r"At most 24 files may be open at once.*ulimit -n 186"):
        check_open_files(processes=2, ahead=4, tensors=9)
    limits[:] = [(24, 4096)]
    check_open_files(processes=2, ahead=4, tensors=9)
    assert limits[-1] == (186, 4096)
    check_open_files(processes=1, ahead=1, tensors=9)
    assert len(limits) == 2
