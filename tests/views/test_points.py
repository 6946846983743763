from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.errors import RecipeError
from dovetail.views.batch import unit_boxes
from dovetail.views.plan import PointSpec, ViewPlan, ViewSpec
from dovetail.views.points import corners, inner, place_points, places, sample, shared
from dovetail.views.random import Purpose, stream
from dovetail.views.sampling import draw_views
from dovetail.views.view import View, overlap_box, overlaps


def view(box: list[list[float]], flipped: bool = False, points: torch.Tensor | None = None) -> View:
    count = len(box)
    return View(
        torch.zeros(count, 3, 8, 8, dtype=torch.float64),
        torch.tensor(box, dtype=torch.float64),
        torch.full((count,), flipped),
        torch.full((count, 2), 100.0),
        points=points,
    )


def centres(height: int, width: int) -> torch.Tensor:
    """Return [1, H W, 2]: the centres of a map's cells in its own frame."""
    x, y = (torch.arange(width) + 0.5).double() / width, (torch.arange(height) + 0.5).double() / height
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=1)[None]


@given(st.integers(0, 10**6), st.integers(1, 900), st.integers(1, 900), st.floats(0, 0.4))
@settings(max_examples=60)
def test_points_lie_in_every_crop_that_shares_them(seed: int, height: int, width: int, margin: float) -> None:
    spec = PointSpec(7, "overlap", margin)
    plan = ViewPlan((ViewSpec(32), ViewSpec(32), ViewSpec(16, role="local", scale=(0.01, 0.1))), points=spec)
    draw = draw_views(stream(Purpose.VIEWS, seed=seed, epoch=0), plan, height=height, width=width)
    assert draw.points is not None
    boxes = unit_boxes(draw.boxes, (width, height))[:2]
    points = place_points(draw.points, boxes, spec)
    assert points.shape == (2, 7, 2)
    tolerance = 1e-6
    rim = margin * (boxes[:, 2:] - boxes[:, :2]) - tolerance
    for own, box, inside in zip(points, boxes, rim, strict=True):
        assert (own >= box[:2] + inside).all()
        assert (own <= box[2:] - inside).all()
    low, high = boxes[:, :2] + rim + tolerance, boxes[:, 2:] - rim - tolerance
    meet = bool((low.amax(0) < high.amin(0)).all())
    assert torch.equal(points[0], points[1]) is (meet or torch.equal(boxes[0], boxes[1]))


def test_points_are_uniform_in_the_overlap() -> None:
    boxes = torch.tensor([[0.0, 0.2, 0.6, 0.8], [0.4, 0.0, 1.0, 0.6]])  # common: x 0.4 to 0.6, y 0.2 to 0.6
    unit = np.random.default_rng(0).random((1, 40_000, 2))
    points = place_points(unit, boxes, PointSpec(40_000))[0]
    share = (points - torch.tensor([0.4, 0.2])) / torch.tensor([0.2, 0.4])
    counts = torch.histogramdd(share, bins=[4, 4], range=[0.0, 1.0, 0.0, 1.0]).hist
    assert (counts - 2500).abs().max() < 4 * 2500**0.5


def test_crops_apart_and_views_of_their_own_have_points_of_their_own() -> None:
    apart = torch.tensor([[0.0, 0.0, 0.3, 0.3], [0.6, 0.6, 1.0, 1.0]])
    points = place_points(np.random.default_rng(0).random((1, 9, 2)), apart, PointSpec(9))
    assert not torch.equal(points[0], points[1])
    assert all(((own >= box[:2]) & (own <= box[2:])).all() for own, box in zip(points, apart, strict=True))
    both = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2)
    own = place_points(np.random.default_rng(0).random((2, 9, 2)), both, PointSpec(9, "view"))
    assert not torch.equal(own[0], own[1])


@pytest.mark.parametrize("region", ["overlap", "view"])
def test_views_are_the_same_with_and_without_points(region: Literal["overlap", "view"]) -> None:
    plan = ViewPlan((ViewSpec(32), ViewSpec(32)), min_overlap=0.01)
    with_points = replace(plan, points=PointSpec(5, region))
    draws = [
        draw_views(stream(Purpose.VIEWS, seed=1, epoch=2, index=3), one, height=60, width=90)
        for one in (plan, with_points, with_points)
    ]
    assert draws[0].boxes == draws[1].boxes
    assert draws[0].flipped == draws[1].flipped
    assert np.array_equal(draws[0].photometrics, draws[1].photometrics)
    assert draws[1].points is not None
    assert np.array_equal(draws[1].points, draws[2].points)
    assert draws[1].points.shape == (1 if region == "overlap" else 2, 5, 2)
    other = draw_views(stream(Purpose.VIEWS, seed=1, epoch=3, index=3), with_points, height=60, width=90)
    assert not np.array_equal(draws[1].points, other.points)


def test_wrong_specs_get_a_sentence() -> None:
    with pytest.raises(RecipeError, match="number of points is 0"):
        PointSpec(0)
    with pytest.raises(RecipeError, match=r"margin is 0\.5"):
        PointSpec(margin=0.5)


def test_places_are_mirrored_where_the_view_is() -> None:
    points = torch.tensor([[[0.25, 0.4], [0.5, 0.6]]], dtype=torch.float64)
    box = [[0.2, 0.3, 0.7, 0.8]]
    expected = torch.tensor([[[0.1, 0.2], [0.6, 0.6]]], dtype=torch.float64)
    torch.testing.assert_close(places(view(box, points=points)), expected)
    expected[..., 0] = 1 - expected[..., 0]
    torch.testing.assert_close(places(view(box, True, points)), expected)


def test_shared_points_are_told_image_by_image() -> None:
    points = torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(0))
    other = points.clone()
    other[1, 2, 0] += 0.1
    box = [[0.0, 0.0, 1.0, 1.0]] * 3
    assert shared(view(box, points=points), view(box, points=other)).tolist() == [True, False, True]


@pytest.mark.parametrize(("height", "width"), [(5, 7), (1, 4), (1, 1), (2, 2)])
def test_sampling_is_bilinear_with_clamped_edges(height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)
    where = torch.rand(2, 50, 2, generator=generator, dtype=torch.float64)
    expected = F.grid_sample(maps, where[:, None] * 2 - 1, padding_mode="border", align_corners=False)  # [2, 3, 1, 50]
    found = sample(maps, where)
    torch.testing.assert_close(found, expected.transpose(2, 3))
    last = maps.to(memory_format=torch.channels_last)
    torch.testing.assert_close(sample(last, where), found)
    weights = corners(where, height, width).weight
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 50, dtype=torch.float64))
    assert (weights >= 0).all()


def test_at_centres_the_cells_themselves_are_sampled() -> None:
    maps = torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = sample(maps, centres(4, 6).expand(2, -1, -1))
    torch.testing.assert_close(found[..., 0], maps.flatten(2), rtol=0, atol=1e-14)


def test_the_gradient_of_sampling_is_right() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    where = torch.rand(2, 5, 2, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda value: sample(value, where), (maps,))


def test_half_precision_maps_stay_so() -> None:
    assert sample(torch.zeros(1, 2, 4, 4, dtype=torch.bfloat16), torch.rand(1, 3, 2)).dtype == torch.bfloat16


def test_a_crop_and_a_flip_show_the_same_cells_at_the_same_points() -> None:
    """The right half of a view, mirrored, gives the same rows, away from the new edge."""
    maps = torch.randn(1, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    points = torch.rand(1, 30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    points = points * torch.tensor([0.4, 1.0], dtype=torch.float64) + torch.tensor([0.6, 0.0], dtype=torch.float64)
    whole = sample(maps, places(view([[0.0, 0.0, 1.0, 1.0]], points=points)))
    half = maps[..., 4:].flip(3)
    torch.testing.assert_close(sample(half, places(view([[0.5, 0.0, 1.0, 1.0]], True, points))), whole)


def test_the_inner_part_of_a_view_overlaps_where_its_map_does() -> None:
    one, other = view([[0.0, 0.0, 0.8, 0.8]]), view([[0.7, 0.0, 1.0, 1.0]], True)
    assert overlaps(overlap_box(one, other)).all()
    small = inner(one, (0.25, 0.25))
    torch.testing.assert_close(small.box, torch.tensor([[0.2, 0.2, 0.6, 0.6]], dtype=torch.float64))
    assert not overlaps(overlap_box(small, other)).any()
