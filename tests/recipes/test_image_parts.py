"""The tap and the views of image-level methods."""

from __future__ import annotations

import pytest

from dovetail.errors import DovetailError
from dovetail.recipe import Tap
from dovetail.recipes.image_parts import byol_views, given, image_tap, moco_views

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
    first, second = (view.photometric for view in byol_views(96, 0.3).views)
    assert (first.blur_p, first.solarise_p) == (1.0, 0.0)
    assert (second.blur_p, second.solarise_p) == (0.1, 0.2)


def test_moco_s_views_are_alike() -> None:
    first, second = moco_views(96, 0.3).views
    assert first == second
    assert (first.size_px, first.scale) == (96, (0.3, 1.0))


def test_only_none_is_replaced() -> None:
    assert (given(None, 2.0), given(0.0, 2.0)) == (2.0, 0.0)
