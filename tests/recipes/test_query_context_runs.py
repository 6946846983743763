"""Runs of PQCL: resumed in the same bits, started from weights, drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import dovetail
from dovetail.errors import DovetailError
from dovetail.networks.vit import build_vit
from dovetail.networks.vit_embed import sincos_grid
from dovetail.report.visualize import attention
from tests.run.stopping import Stopping

VIT = "timm/test_vit"
HEADS = {"hidden": 16, "bottleneck": 8, "prototypes": 16}
PQCL: dict[str, Any] = {"method": "pqcl", "recipe": HEADS | {"query_size": 32}}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small images of noise."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(8):
        Image.fromarray(rng.integers(0, 255, (72, 80, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def pretrain(data: Any, out: Path, **options: Any) -> dovetail.Run:
    given: dict[str, Any] = {"model": VIT, "image_size": 64, "batch_size": 4, "workers": 0, "precision": "32-true"}
    return dovetail.pretrain(data=data, out=out, report_every_minutes=0.0, **(given | options))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "exported" / "model.safetensors")


def test_a_resumed_run_ends_in_the_same_bits_and_with_the_positions_it_began_with(photos: Path, tmp_path: Path) -> None:
    pretrain(Stopping(photos, None), tmp_path / "whole", max_steps=6, **PQCL)
    with pytest.raises(DovetailError, match="--resume"):
        pretrain(Stopping(photos, 10), tmp_path / "parts", max_steps=6, **PQCL)
    assert not (tmp_path / "parts" / "exported").exists()
    dovetail.pretrain(out=tmp_path / "parts", resume=True, data=Stopping(photos, None))
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    expected = sincos_grid(build_vit("test_vit", image_size=64).vit)
    torch.testing.assert_close(whole["pos_embed"], expected, rtol=0, atol=1e-6)


def test_weights_with_learned_positions_are_refused_and_taken_with_learned_ones(photos: Path, tmp_path: Path) -> None:
    recipe = HEADS | {"local_crops": 0}
    pretrain(photos, tmp_path / "dino", max_steps=1, method="dino", recipe=recipe)
    init = str(tmp_path / "dino" / "exported" / "model.safetensors")
    with pytest.raises(DovetailError, match=r"have learned ones; add --recipe\.query_positions learned"):
        pretrain(photos, tmp_path / "refused", max_steps=1, init=init, **PQCL)
    learned = PQCL["recipe"] | {"query_positions": "learned"}
    assert pretrain(photos, tmp_path / "learned", max_steps=1, init=init, method="pqcl", recipe=learned).finished
    # Its own weights are a start for it.
    pretrain(photos, tmp_path / "own", max_steps=1, **PQCL)
    own = str(tmp_path / "own" / "exported" / "model.safetensors")
    assert pretrain(photos, tmp_path / "again", max_steps=1, init=own, **PQCL).finished


@pytest.mark.parametrize("options", [PQCL, {"method": "adclr", "recipe": HEADS | {"query_tokens_per_side": 2}}])
def test_the_attention_of_queries_of_several_tokens_is_drawn(
    options: dict[str, Any], photos: Path, tmp_path: Path
) -> None:
    pretrain(photos, tmp_path / "run", max_steps=1, **options)
    drawn = attention(run=tmp_path / "run", images=photos, out=tmp_path / "pictures", most=1)
    assert [path.name for path in drawn] == ["attention.png", "queries.png"]
