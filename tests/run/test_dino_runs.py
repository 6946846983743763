"""DINO from end to end on a CNN, and on a ViT whose patches do not divide the default size of local views."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

import dovetail

DINOV2 = "timm.create_model('vit_small_patch14_dinov2', depth=1, embed_dim=32, num_heads=2)"
SMALL = {"hidden": 16, "bottleneck": 8, "prototypes": 6, "local_crops": 1}


def test_a_vit_with_patches_of_14_px(
    pretrain: Callable[..., dovetail.Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = pretrain(model=DINOV2, method="dino", image_size=56, recipe=SMALL, out=tmp_path)
    assert run.finished
    assert "Local_size 98, because the model's patches have 14 px and 96 is not a multiple." in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["recipe"]["local_size"] == 98
    again = pretrain(out=tmp_path, model=DINOV2, method="dino", image_size=56, max_steps=3, resume=True)
    assert again.step == 3


@pytest.mark.parametrize("method", ["dino", "decon-sl-dino"])
def test_a_cnn(method: str, pretrain: Callable[..., dovetail.Run], tmp_path: Path) -> None:
    recipe = {**SMALL, "local_size": 32, "head_norm": True, "optimiser": "sgd"}
    run = pretrain(method=method, recipe=recipe, out=tmp_path)
    assert run.finished
    untrained = set(json.loads((tmp_path / "exported" / "model.json").read_text())["untrained"])
    names = load_file(tmp_path / "exported" / "model.safetensors").keys()
    decoder = {name for name in names if not name.startswith("encoder.")}
    assert untrained <= decoder
    assert (untrained == decoder) == (method == "dino")
