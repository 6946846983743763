"""The tap and the views of image-level methods."""

from __future__ import annotations

import pytest
import torch

from dovetail.errors import DovetailError
from dovetail.recipe import Tap
from dovetail.recipes.image_parts import BYOL_PAIR, MOCO_VIEW, given, image_tap, one_dimensional_rate, pair_views
from dovetail.recipes.table import build
from dovetail.train.optimisers import group_key

MAP, TOKENS, VECTOR = (Tap(8, 16, kind, "encoder") for kind in ("map", "tokens", "vector"))


@pytest.mark.parametrize("vector", ["cls", "pooled"])
def test_a_vector_comes_before_maps(vector: str) -> None:
    assert image_tap({"patches": TOKENS, "c4": MAP, vector: VECTOR}) == vector


def test_of_maps_the_deepest_of_the_encoder() -> None:
    deeper = Tap(8, 64, "map", "decoder")
    assert image_tap({"c4": MAP, "c5": Tap(8, 32, "map", "encoder"), "p6": deeper}) == "c5"


def test_tokens_alone_are_refused() -> None:
    with pytest.raises(DovetailError):
        image_tap({"patches": TOKENS})


def test_byol_s_views_differ_in_blur_and_solarisation() -> None:
    first, second = (view.photometric for view in pair_views(*BYOL_PAIR, image_size=96, min_scale=0.3).views)
    assert (first.blur_p, first.solarise_p) == (1.0, 0.0)
    assert (second.blur_p, second.solarise_p) == (0.1, 0.2)


def test_moco_s_views_are_alike() -> None:
    first, second = pair_views(MOCO_VIEW, image_size=96, min_scale=0.3).views
    assert first == second
    assert (first.size_px, first.scale) == (96, (0.3, 1.0))


def test_only_none_is_replaced() -> None:
    assert (given(None, 2.0), given(0.0, 2.0)) == (2.0, 0.0)


LARS_METHODS = ["slotcon", "pixpro", "simclr", "moco-v3", "byol", "vicreg", "barlow", "zerocl"]


@pytest.mark.parametrize("method", LARS_METHODS)
def test_one_dimensional_tensors_take_the_rate_that_is_theirs(method: str) -> None:
    taps = {"c5": Tap(8, 32, "map", "encoder")}
    spec = build(method, taps, {"base_lr": 4.0, "bias_lr": 0.2}).optimiser
    assert spec.name == "lars"
    assert spec.peak_lr(256) * group_key("network.model.bn1.weight", torch.zeros(3), spec).lr_scale == pytest.approx(
        0.2
    )
    assert group_key("network.model.conv1.weight", torch.zeros(3, 3, 1, 1), spec).lr_scale == 1.0


def test_a_rate_relative_to_nothing_is_refused() -> None:
    assert one_dimensional_rate(None, 0.0) == ()
    with pytest.raises(DovetailError, match="above 0"):
        one_dimensional_rate(0.1, 0.0)
