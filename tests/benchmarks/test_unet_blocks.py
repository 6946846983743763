"""The study of a Unet's blocks: what it measures is kept, and only the blocks that are kept stay pre-trained."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from benchmarks.evidence.rows import Pretraining, Row
from benchmarks.evidence.scales import SCALES

from benchmarks import unet_blocks
from dovetail.networks.build import build_network


def test_measures_every_part_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Row("random", init=None, network="unet", starts=("random",))
    whole = Row("whole", Pretraining("decon-sl-simsiam"), init=None, network="unet", starts=("all",))
    settings = {"ROWS": (plain, whole), "LABELS": 4, "STEPS": 2, "SCORES": tmp_path}
    for name, value in settings.items():
        monkeypatch.setattr(unet_blocks, name, value)
    options = argparse.Namespace(seeds=[1], cache=tmp_path / "cache", results=tmp_path)
    unet_blocks.study(options, SCALES["tiny"])
    lines = (tmp_path / "unet_blocks.jsonl").read_text()
    found = [json.loads(line) for line in lines.splitlines()]
    assert [(one["row"], one["kept"]) for one in found] == [
        ("random", "no block"),
        *(("whole", kept) for kept in unet_blocks.KEPT),
    ]
    assert len({one["rank"] for one in found}) == len(found)  # each part makes another map
    unet_blocks.study(options, SCALES["tiny"])
    assert (tmp_path / "unet_blocks.jsonl").read_text() == lines


def test_keeps_the_blocks_that_are_named_and_the_encoder() -> None:
    torch.manual_seed(0)
    model, other = (build_network("smp/unet/tu-resnet10t", image_size=64).model for _ in range(2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    unet_blocks.keep_blocks(model, other.state_dict(), (0, 1))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {".".join(name.split(".")[:3]) for name in changed} == {f"decoder.blocks.{block}" for block in (2, 3, 4)}


def test_the_page_has_means_over_seeds() -> None:
    cells = [(unet_blocks.IMAGENET.name, "no block", 0.2), (unet_blocks.IMAGENET.name, "no block", 0.3)]
    cells.append((unet_blocks.DECON.name, "last two blocks", 0.4))
    known = [
        {"row": row, "seed": seed, "kept": kept, "rank": 10.0, "train": 0.5, "choose": miou}
        for seed, (row, kept, miou) in enumerate(cells)
    ]
    rows = [line for line in unet_blocks.page(known).splitlines() if line.startswith(("| Im", "| De"))]
    assert rows == [
        f"| {unet_blocks.IMAGENET.name} | no block | 2 | 10.0 | 50.0 | 25.0 |",
        f"| {unet_blocks.DECON.name} | last two blocks | 1 | 10.0 | 50.0 | 40.0 |",
    ]
