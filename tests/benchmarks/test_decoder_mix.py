"""The study of mixed decoders: what it measures is kept, and the page has the means over seeds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from benchmarks.evidence.rows import CONTINUED, IMAGENET, RANDOM, Pretraining, Row
from benchmarks.evidence.scales import SCALES
from torch import nn

from benchmarks import decoder_mix


def test_measures_every_share_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Row("whole", Pretraining("decon-sl-simsiam"), init=None, starts=("all",))
    settings = {"ROWS": (RANDOM, whole), "SHARES": (1.0, 0.5), "LABELS": 4, "STEPS": 2, "SCORES": tmp_path}
    for name, value in settings.items():
        monkeypatch.setattr(decoder_mix, name, value)
    options = argparse.Namespace(seeds=[1], cache=tmp_path / "cache", results=tmp_path)
    decoder_mix.study(options, SCALES["tiny"])
    lines = (tmp_path / "decoder_mix.jsonl").read_text()
    found = [json.loads(line) for line in lines.splitlines()]
    assert [(one["row"], one["share"]) for one in found] == [(RANDOM.name, 1.0), ("whole", 1.0), ("whole", 0.5)]
    assert all(1 < one["rank"] <= 128 for one in found)
    assert found[1]["rank"] != found[2]["rank"]
    decoder_mix.study(options, SCALES["tiny"])
    assert (tmp_path / "decoder_mix.jsonl").read_text() == lines


def test_the_page_has_means_over_seeds() -> None:
    cells = [(IMAGENET.name, 1.0, 0.2), (IMAGENET.name, 1.0, 0.3), (CONTINUED.name, 0.5, 0.4)]
    known = [
        {"row": row, "seed": seed, "share": share, "rank": 10.0, "train": 0.5, "choose": miou}
        for seed, (row, share, miou) in enumerate(cells)
    ]
    rows = [line for line in decoder_mix.page(known).splitlines() if line.startswith(("| Im", "| De"))]
    assert rows == [
        f"| {IMAGENET.name} | 1 | 2 | 10 | 50.0 | 25.0 |",
        f"| {CONTINUED.name} | 0.5 | 1 | 10 | 50.0 | 40.0 |",
    ]


def test_only_weights_of_the_decoder_are_mixed_and_keep_their_norm() -> None:
    torch.manual_seed(0)
    model, other = (nn.ModuleDict({name: nn.Conv2d(64, 64, 3) for name in ("encoder", "decoder")}) for _ in range(2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    decoder_mix.mix(model, other.state_dict(), 0.6)
    after = model.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == {"decoder.weight"}
    expected = 0.6 * before["decoder.weight"] + 0.8 * other.state_dict()["decoder.weight"]
    assert torch.allclose(after["decoder.weight"], expected)
    assert float(after["decoder.weight"].norm()) == pytest.approx(float(before["decoder.weight"].norm()), rel=0.02)
