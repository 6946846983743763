"""The study's pictures are drawn from runs with its own settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from benchmarks.evidence import pictures
from benchmarks.evidence.arms import TINY
from PIL import Image

from tests.benchmarks.test_evidence import TEXTURES


@pytest.mark.slow
def test_pictures_of_maps_and_slots_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(
        TEXTURES,
        model="smp.FPN(encoder_name='tu-resnet10t', decoder_pyramid_channels=32, decoder_segmentation_channels=32)",
    )
    monkeypatch.setattr(pictures, "BUDGETS", {TINY: small})
    assert pictures.main(["--budget", TINY, "--cache", str(tmp_path / "cache"), "--out", str(tmp_path)]) == 0
    terms = ("encoder", "decoder_p2")
    wanted = {f"results_pca_{name}.png" for name in pictures.MAPS}
    wanted |= {f"results_slots_{term}_{when}.png" for term in terms for when in ("before", "after")}
    assert {path.name for path in tmp_path.glob("*.png")} == wanted
    for name in wanted:
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 200
