"""Commands whose output nobody reads any more: jobs go on, and those that only print end quietly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dovetail.cli import ENDED_BY_PIPE, VERBS, only_prints, run

DOVETAIL = [sys.executable, "-m", "dovetail.cli"]
TINY = (
    *("--model", "timm/test_resnet+fpn(channels=16)", "--image-size", "64", "--batch-size", "4", "--workers", "0"),
    *("--precision", "32-true", "--accelerator", "cpu", "--report-every-minutes", "0", "--log-every-steps", "1"),
    *("--recipe.hidden", "16", "--recipe.dim", "8", "--recipe.prototypes", "6", "--recipe.decoder-grid", "8"),
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes as Unix has them")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def test_a_run_goes_on_when_nobody_reads_its_output(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [*DOVETAIL, "pretrain", "--data", str(photos), "--out", str(out), "--max-steps", "3", *TINY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "Loading PyTorch …\n".encode()
        assert process.stdout.readline() == "Listing the images …\n".encode()
        assert process.stdout.readline() == "Building the model for 4 images …\n".encode()
        assert process.stdout.readline().startswith(b"Method decon-sl, because ")
        assert not (out / "exported").exists()
        process.stdout.close()
        code = process.wait(timeout=1500)
    log = (out / "train.log").read_text()
    assert code == 0, log
    assert (out / "exported" / "model.safetensors").is_file()
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 3
    assert log.count("Cannot write to standard error any more; the run continues") == 1


@pytest.mark.parametrize("arguments", [["methods"], ["--help"]])
def test_a_command_that_only_prints_ends_quietly(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*DOVETAIL, *arguments], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode == ENDED_BY_PIPE == 141


def test_a_broken_pipe_within_a_job_is_no_quiet_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a loading process that died."""

    def broken(*_: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr("dovetail.cli.call", broken)
    with pytest.raises(BrokenPipeError):
        run(["pretrain"])


def test_jobs_are_told_from_commands_that_only_print() -> None:
    printing = {name for name in VERBS if only_prints(name.split())}
    assert printing == {"show", "methods", "models"}
    assert only_prints([])
    assert only_prints(["pretrain", "--help"])
    assert only_prints(["evaluate", "--help"])
    assert not only_prints(["finetune", "segment", "--steps", "1"])
