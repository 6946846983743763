"""The comparison of two trees: fingerprints tell what changed, equal trees are equal, another number is found."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.bit_equality.__main__ import ROOT, checkout, row, run_tree
from benchmarks.bit_equality.inputs import write_inputs
from benchmarks.bit_equality.jobs import JOBS, chosen
from benchmarks.bit_equality.manifest import difference, digest, file_manifest, manifest_of, results_manifest
from PIL import Image

WEIGHTS = {"head": {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)}, "lr": 0.1}


def changed(**tensors: Any) -> dict[str, Any]:
    """Return the weights with other tensors under "head"."""
    return {**WEIGHTS, "head": {**WEIGHTS["head"], **tensors}}


def flipped_bit() -> torch.Tensor:
    """Return the weight with the lowest bit of one number flipped."""
    weight = WEIGHTS["head"]["weight"].clone()
    weight.view(torch.int32)[1, 2] ^= 1
    return weight


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (changed(weight=flipped_bit()), "run/head/weight has other bits"),
        (changed(weight=WEIGHTS["head"]["weight"].double()), "run/head/weight has dtype float64, not float32"),
        (changed(weight=torch.arange(6.0).reshape(3, 2)), "run/head/weight has shape [3, 2], not [2, 3]"),
        (changed(weight=torch.arange(6.0).view(torch.int32).reshape(2, 3)), "dtype int32, not float32"),
        (changed(bias=torch.zeros(2)), "nothing changed, and 1 of 4 are only in the new tree, first run/head/bias"),
        ({"head": WEIGHTS["head"]}, "run/lr is missing in the new tree"),
        ({**WEIGHTS, "lr": np.nextafter(0.1, 1).item()}, "run/lr has other bits"),
        ({"tail": WEIGHTS["head"], "lr": 0.1}, "run/head/weight is missing in the new tree (and 3 more of 5)"),
    ],
)
def test_a_difference_is_named(other: dict[str, Any], said: str) -> None:
    old, new = manifest_of(WEIGHTS, "run"), manifest_of(other, "run")
    assert said in difference(old, new)
    assert digest(old) != digest(new)


def test_equal_values_are_equal_whatever_their_memory() -> None:
    strided = torch.arange(6.0).reshape(3, 2).t().contiguous().t()
    assert manifest_of(strided, "x") == manifest_of(torch.arange(6.0).reshape(3, 2), "x")
    special = torch.tensor([float("nan"), -0.0])
    assert difference(manifest_of(special, "x"), manifest_of(special.clone(), "x")) == ""
    assert difference(manifest_of(torch.tensor(-0.0), "x"), manifest_of(torch.tensor(0.0), "x"))
    assert digest({"a": "1", "b": "2"}) == digest({"b": "2", "a": "1"})


def test_files_are_told_by_what_they_hold(tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    before = file_manifest(tmp_path / "mask.png")
    Image.fromarray(pixels).save(tmp_path / "mask.png", compress_level=0)
    assert file_manifest(tmp_path / "mask.png") == before
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    assert difference(before, file_manifest(tmp_path / "mask.png")) == "mask.png/pixels has other bits"
    (tmp_path / "results.json").write_text('{"task": "x", "rows": [{"mean": 0.5}], "device": "cpu"}')
    scores = results_manifest(tmp_path)
    (tmp_path / "results.json").write_text('{"task": "x", "rows": [{"mean": 0.25}], "device": "other"}')
    assert difference(scores, results_manifest(tmp_path)) == "results/rows/0/mean has other bits"


def test_a_job_that_fails_is_no_equality() -> None:
    fails, works = {"manifest": None, "error": "RuntimeError: no"}, {"manifest": {"x": "int [] 0"}, "error": None}
    assert row("job", works, works)[3] == "equal"
    assert row("job", works, fails)[3] == "new fails: RuntimeError: no"
    assert row("job", fails, fails)[3] == "old fails: RuntimeError: no; new fails: RuntimeError: no"


def test_jobs_come_after_those_that_they_need() -> None:
    assert chosen("predict/seg") == ["pretrain/decon-sl", "finetune/segment", "predict/segment"]
    assert chosen("pretrain/vi*") == ["pretrain/vicreg"]
    assert chosen("nothing of this name") == []
    order = list(JOBS)
    assert all(order.index(need) < order.index(name) for name, job in JOBS.items() for need in job.needs)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a copy without git's history has no commits")
def test_a_commit_is_checked_out_for_a_while() -> None:
    with checkout("HEAD") as tree:
        assert (tree / "src").is_dir()
        listed = subprocess.run(
            ["git", "-C", str(ROOT), "worktree", "list"], capture_output=True, text=True, check=True
        )
        assert str(tree) in listed.stdout
    assert not tree.exists()
    with pytest.raises(SystemExit, match="git cannot check out 'no-such-commit'"), checkout("no-such-commit"):
        pass


@pytest.mark.slow
def test_a_tree_equals_itself_and_another_number_is_found(tmp_path: Path) -> None:
    """The second tree is a copy in which one function of torch gives slightly other numbers."""
    write_inputs(tmp_path / "inputs")
    names = ["pretrain/dino", "load/dino"]
    shutil.copytree(ROOT / "src", tmp_path / "copy" / "src")
    with (tmp_path / "copy" / "src" / "dovetail" / "__init__.py").open("a", encoding="utf-8") as file:
        file.write(
            "\nfrom torch.nn import functional as _functional\n_normalize = _functional.normalize\n"
            "_functional.normalize = lambda *args, **options: _normalize(*args, **options) * (1 + 2**-20)\n"
        )
    trees = {"old": ROOT, "same": ROOT, "other": tmp_path / "copy"}
    runs = {label: run_tree(tree, label, names, tmp_path, preset="paper") for label, tree in trees.items()}
    for name in names:
        assert row(name, runs["old"][name], runs["same"][name])[3] == "equal"
        assert "has other bits" in row(name, runs["old"][name], runs["other"][name])[3]
