"""A run goes on with more or fewer devices: the images of a step stay the same."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dovetail
from dovetail.data.order import StepSampler
from dovetail.errors import DovetailError
from dovetail.run.elastic import share_batch, shared_anew
from dovetail.run.folder import write_config
from dovetail.run.options import PretrainOptions
from dovetail.run.resume import defaults, resumed
from tests.data.photos import folder_of

RUN = {"batch_size": 32, "accumulate": 1, "devices": 8, "num_nodes": 2}


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 64))
def test_devices_share_a_batch_as_evenly_as_memory_allows(share: int, world_size: int, most: int) -> None:
    batch, accumulate = share_batch(share * world_size, world_size, most=most)
    assert batch * accumulate == share
    assert 1 <= batch <= most
    assert not any(share % larger == 0 for larger in range(batch + 1, min(most, share) + 1))


def test_a_batch_that_does_not_divide_names_devices_that_do() -> None:
    with pytest.raises(DovetailError, match="96 is not divisible by 5 devices; resume with --devices 4 or 6"):
        share_batch(96, 5, most=8)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, (32, 1)),
        ({"devices": 8, "num_nodes": 1}, (32, 2)),
        ({"devices": 8, "num_nodes": 4}, (16, 1)),
        ({"devices": 8, "num_nodes": 1, "batch_size": 64}, (64, 1)),
        ({"devices": 1, "num_nodes": 1, "batch_size": 48}, (32, 16)),
        ({"batch_size": 16}, (16, 2)),
        ({"accumulate": 4}, (8, 4)),
        ({"devices": 8, "num_nodes": 1, "batch_size": 32}, (32, 2)),  # the first command over again on half the nodes
    ],
)
def test_the_batch_of_a_step_stays(asked: dict[str, int], expected: tuple[int, int], tmp_path: Path) -> None:
    found = shared_anew(RUN, asked, RUN | asked)
    assert (found["batch_size"], found["accumulate"]) == expected
    every: dict[str, Any] = {
        **defaults(),
        "data": "photos",
        "model": "timm/resnet50",
        "out": str(tmp_path),
    }
    write_config(tmp_path, every | RUN)
    options = resumed(PretrainOptions.given(asked), tmp_path)
    assert (options.batch_size, options.accumulate) == expected
    assert (options.devices, options.num_nodes) == (asked.get("devices", 8), asked.get("num_nodes", 2))


def test_options_that_are_no_numbers_are_left_to_others() -> None:
    assert shared_anew(RUN | {"devices": "auto"}, {}, RUN) == {}
    assert shared_anew(RUN, {}, RUN | {"devices": 0}) == {}
    assert shared_anew(RUN, {"accumulate": 0}, RUN) == {}


@given(
    seed=st.integers(0, 2**32),
    changes=st.lists(
        st.tuples(st.integers(1, 11), st.sampled_from([(1, 1), (2, 1), (4, 1), (1, 4), (2, 2)])), max_size=4
    ),
)
def test_the_order_of_images_is_that_of_seed_and_epoch_whatever_the_devices_were(
    seed: int, changes: list[tuple[int, tuple[int, int]]]
) -> None:
    """A run that changes its devices at any steps sees in every step what a run on one device sees."""
    whole = [sorted(step) for step in StepSampler(21, 4, seed=seed, total_steps=12)]
    starts = sorted(dict(changes).items())
    seen = []
    for (start, (ranks, passes)), end in zip([(0, (1, 1)), *starts], [*(step for step, _ in starts), 12], strict=True):
        parts = [
            list(
                StepSampler(
                    21,
                    4,
                    seed=seed,
                    total_steps=12,
                    start_step=start,
                    rank=rank,
                    world_size=ranks,
                    micro_batches=passes,
                )
            )
            for rank in range(ranks)
        ]
        for step in range(end - start):
            lists = [one for part in parts for one in part[step * passes : (step + 1) * passes]]
            seen.append(sorted(key for keys in lists for key in keys))
    assert seen == whole


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_with_two_from_the_command_line(tmp_path: Path) -> None:
    folder_of(tmp_path / "photos", 17)
    options: dict[str, Any] = {
        "data": tmp_path / "photos",
        "model": "timm/test_resnet",
        "method": "slotcon",
        "epochs": 2,
        "batch_size": 8,
        "image_size": 64,
        "accelerator": "cpu",
        "workers": 0,
        "precision": "32-true",
        "report_every_minutes": 0,
        "keep_every_epochs": 1,
        "lr": 0.05,
        "log_every_steps": 1,
        "recipe": {"hidden": 16, "dim": 8, "prototypes": 6},
    }
    dovetail.pretrain(**options, out=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    checkpoints = tmp_path / "cut" / "checkpoints"
    shutil.copy(checkpoints / "epoch-0001.ckpt", checkpoints / "last.ckpt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    command += ["-m", "dovetail.cli", "pretrain", "--resume", "--out", str(tmp_path / "cut"), "--devices", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, timeout=1500, capture_output=True)
    config = (tmp_path / "cut" / "config.yaml").read_text()
    assert "batch_size: 4\n" in config
    assert "devices: 2\n" in config
    whole, cut = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    )
    assert [line["step"] for line in cut] == [1, 2, 3, 4]
    assert [line["loss"] for line in cut] == pytest.approx([line["loss"] for line in whole], rel=1e-4)
    one, two = (torch.load(tmp_path / name / "checkpoints" / "last.ckpt")["learner"] for name in ("whole", "cut"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4, msg=name)
