"""The log of what could not be read, when others write it too or were killed while they did."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dovetail.data.reading.skipped import SkippedLog
from dovetail.views.batch import Skipped


def batch_without(name: str) -> Any:
    """Return a batch that took another image instead of an unreadable one."""
    return SimpleNamespace(used=torch.arange(32), skipped=(Skipped(ord(name[0]), name, "r"),))


def named_in(file: Path) -> list[str]:
    """Return what a log names, without lines that are none."""
    found = []
    for line in file.read_text().splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line)["path"])
    return found


def test_a_line_cut_short_does_not_swallow_the_next(tmp_path: Path) -> None:
    file = tmp_path / "skipped.jsonl"
    file.write_text('{"path": "a.jpg", "reason": "r"}\n{"path": "b.j')
    log = SkippedLog(file, 4)
    assert log.count == 1
    log.record(batch_without("c.jpg"))
    assert named_in(file) == ["a.jpg", "c.jpg"]
    assert SkippedLog(file, 4).count == log.count == 2


def test_only_what_was_appended_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "skipped.jsonl"
    file.write_text('{"path": "a.jpg", "reason": "r"}\n')
    log = SkippedLog(file, 400)
    file.write_text('{"path": "z.jpg", "reason": "r"}\n{"path": "b.jpg", "rea')  # the other process writes slowly
    log.record(batch_without("a.jpg"))
    assert log.count == 1
    with file.open("a") as other:
        other.write('son": "r"}\n{"path": "c.jpg", "reason": "r"}\n')
    for name in ("b.jpg", "c.jpg", "d.jpg"):
        log.record(batch_without(name))
    assert named_in(file) == ["z.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert log.count == 4  # z.jpg lies where a.jpg was read


def test_a_line_completed_later_is_not_lost(tmp_path: Path) -> None:
    file = tmp_path / "skipped.jsonl"
    log = SkippedLog(file, 400)
    file.write_text('{"path": "b.j')
    assert log._read()
    with file.open("a") as other:
        other.write('pg", "reason": "r"}\n')
    assert not log._read()
    assert log.count == 1


def test_an_image_has_one_line_in_every_spelling_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "scan.nii").touch()
    file = tmp_path / "skipped.jsonl"
    log = SkippedLog(file, 400)
    for name in ("photos/a.jpg", "./photos/../photos/a.jpg", "scan.nii#3", "Photos[3]"):
        log.record(batch_without(name))
    again = SkippedLog(file, 400)
    for name in (str(tmp_path / "photos" / "a.jpg"), str(tmp_path / "scan.nii#3"), "Photos[3]"):
        again.record(batch_without(name))
    assert named_in(file) == [str(tmp_path / "photos" / "a.jpg"), str(tmp_path / "scan.nii#3"), "Photos[3]"]
    assert log.count == again.count == 3


def test_lines_with_relative_paths_of_older_runs_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    file = tmp_path / "skipped.jsonl"
    file.write_text('{"path": "photos/a.jpg", "reason": "r"}\n')
    SkippedLog(file, 400).record(batch_without(str(tmp_path / "photos" / "a.jpg")))
    assert named_in(file) == ["photos/a.jpg"]
