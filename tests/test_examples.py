"""The examples for clusters: the script is sound, calls what there is, and the container copies what it needs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from dovetail.cli import parser_of
from dovetail.errors import Interrupted
from dovetail.parsing import underscored

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "examples" / "cluster"
SCRIPT = CLUSTER / "pretrain.sbatch"


def test_the_script_is_sound() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck")
    linted = subprocess.run(["shellcheck", "--shell=bash", str(SCRIPT)], capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize("image", ["", "dovetail.sif"])
def test_the_script_calls_what_there_is(image: str, tmp_path: Path) -> None:
    """SLURM's `srun` is played by a script that prints what it was to start."""
    stub = tmp_path / "srun"
    stub.write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"\n")
    stub.chmod(0o755)
    given = ["--data", "my shards", "--model", "timm/resnet50+fpn", "--method", "decon-sl", "--out", "runs/a"]
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_NNODES": "3",
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_CPUS_PER_TASK": "6",
        "DOVETAIL_IMAGE": image,
    }
    said = subprocess.run(["bash", str(SCRIPT), *given], env=environment, check=True, capture_output=True, text=True)
    options, *call = said.stdout.splitlines()
    assert options == "--kill-on-bad-exit=1"
    before = ["apptainer", "exec", "--nv", image] if image else []
    assert call[: len(before) + 2] == [*before, "dovetail", "pretrain"]
    rest = [underscored(argument) for argument in call[len(before) + 2 :]]
    parsed = parser_of("pretrain", rest).parse_args(rest)
    assert (parsed.data, parsed.devices, parsed.num_nodes, parsed.workers) == ("my shards", 4, 3, 5)


@pytest.mark.parametrize(
    ("image", "code", "queued"),
    [("dovetail.sif", 138, True), ("dovetail.sif", 143, False), ("dovetail.sif", 1, False), ("", 138, False)],
)
def test_a_run_in_a_container_is_queued_again_from_outside(image: str, code: int, queued: bool, tmp_path: Path) -> None:
    """138 is the end of a run that SIGUSR1 has stopped; outside a container it has put itself into the queue."""
    assert Interrupted("", signal_number=signal.SIGUSR1).exit_code == 138
    for name, line in (("srun", f"exit {code}"), ("scontrol", f"echo \"$@\" >> '{tmp_path}/said'; exit 7")):
        stub = tmp_path / name
        stub.write_text(f"#!/bin/bash\n{line}\n")
        stub.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = {"PATH": path, "SLURM_NNODES": "1", "SLURM_JOB_ID": "12", "DOVETAIL_IMAGE": image}
    ended = subprocess.run(["bash", str(SCRIPT), "--out", "runs/a"], env=environment, capture_output=True, text=True)
    assert ended.returncode == code
    said = tmp_path / "said"
    assert (said.read_text() if said.exists() else "") == ("requeue 12\n" if queued else "")
    assert ("did not requeue job 12" in ended.stderr) is queued


def test_the_script_asks_for_as_many_tasks_as_gpus_and_is_queued_again() -> None:
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SCRIPT.read_text(), re.MULTILINE))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert "requeue" in asked
    assert asked["open-mode"] == "append"
    assert asked["signal"].startswith("SIGUSR1@")


def test_the_container_copies_what_there_is() -> None:
    text = (CLUSTER / "Containerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for name in line.split()]
    assert {"pyproject.toml", "constraints.txt", "src", "README.md", "LICENSE"} == set(copied)
    assert all((ROOT / name).exists() for name in copied)
    assert re.search(r"^USER (?!root)", text, re.MULTILINE)
