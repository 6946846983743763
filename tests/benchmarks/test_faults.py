"""The harness of faults: runs that are killed and resumed end in the same bits, and a difference is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.faults import Case, digests_of, report
from benchmarks.loader_faults import LoaderCase, lines_of


@pytest.mark.slow
def test_killed_runs_end_in_the_same_bits(tmp_path: Path) -> None:
    """In a process of its own: forks are only safe of one that has computed nothing."""
    page = tmp_path / "faults.md"
    command = [sys.executable, "-m", "benchmarks.faults", "--runs", "2", "--output", str(page)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    text = page.read_text()
    assert "**2 of 2 runs end in the same bits**" in text
    assert "checkpoint write, step" in text
    assert "**9 of 9 held**" in text


def test_a_difference_stands_in_the_report() -> None:
    same, other = Case(0, kills=["training, step 3"], starts=2, equal=True), Case(1, starts=2)
    text = report([same, other], "python -m benchmarks.faults")
    assert "**1 of 2 runs end in the same bits**, after 1 kills in 1 of them;" in text
    assert "| 2 | ended before | 2 | NO |" in text


def test_faults_of_loading_stand_in_the_report() -> None:
    cases = [
        LoaderCase("SIGTERM while reading hangs", 143, 1.25, 0, True, True),
        LoaderCase("the data are deleted", 2, 3.0, 1, None, False),
    ]
    text = report([Case(0)], "python -m benchmarks.faults", lines_of(cases))
    assert "**1 of 2 held**; SIGTERM while reading hangs was answered within\n1.2 s." in text
    assert "| SIGTERM while reading hangs | 143 | 1.2 s | 0 | yes |" in text
    assert "| the data are deleted | 2 | 3.0 s | 1 | images were left out |" in text


def test_digests_tell_files_apart(tmp_path: Path) -> None:
    (tmp_path / "exported").mkdir()
    file = tmp_path / "exported" / "model.safetensors"
    file.write_bytes(b"one")
    before = digests_of(tmp_path)
    assert list(before) == ["model.safetensors"]
    file.write_bytes(b"two")
    assert digests_of(tmp_path) != before
