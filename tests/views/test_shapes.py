"""Views that are not square: the transposition law of the geometry, and coordinates of crops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dovetail.networks.vit_embed import query_cells
from dovetail.views.batch import collate, render, to_views
from dovetail.views.plan import MaskSpec, PointSpec, QuerySpec, SegmentSpec, ViewPlan, ViewSpec
from dovetail.views.points import centres_of_cells, place_points, places, sample
from dovetail.views.random import Purpose, stream
from dovetail.views.sampling import Box, draw_views, needed_shrink, resized_crop
from dovetail.views.segments import cells_of, cropped
from dovetail.views.view import View, align, corners_px, overlap_box

WIDE = (64, 96)
HEIGHT, WIDTH = 4, 6  # cells


def view_of(box: torch.Tensor, size: tuple[int, int] = WIDE) -> View:
    """Return a view of zeros, not mirrored, of an image of 200 x 300 pixels (or its transpose)."""
    source = [300.0, 200.0] if size == WIDE else [200.0, 300.0]
    view = View.of(torch.zeros(len(box), 3, *size), box=box)
    return replace(view, source_px=torch.tensor([source]).expand(len(box), 2))


def turned(boxes: torch.Tensor) -> torch.Tensor:
    """Return boxes [..., 4] of the transposed image."""
    return boxes[..., [1, 0, 3, 2]]


@pytest.fixture
def boxes() -> tuple[torch.Tensor, torch.Tensor]:
    corner = torch.rand(2, 5, 2) * 0.4
    first, second = torch.cat([corner, corner + 0.3 + 0.2 * torch.rand(2, 5, 2)], dim=2)
    return first, second


def test_overlaps_and_corners_of_the_transposed_image_are_transposed(boxes: tuple[torch.Tensor, torch.Tensor]) -> None:
    first, second = map(view_of, boxes)
    upright = [view_of(turned(one), (96, 64)) for one in boxes]
    assert torch.equal(overlap_box(*upright), turned(overlap_box(first, second)))
    assert torch.equal(corners_px(upright[0]), turned(corners_px(first)))


def test_maps_of_the_transposed_image_are_aligned_and_sampled_transposed(
    boxes: tuple[torch.Tensor, torch.Tensor],
) -> None:
    first, second = map(view_of, boxes)
    maps, still = torch.randn(5, 3, HEIGHT, WIDTH), torch.zeros(5, dtype=torch.bool)
    box = overlap_box(first, second)
    torch.testing.assert_close(align(maps.mT, turned(box), still), align(maps, box, still).mT)
    where = torch.rand(5, 7, 2)
    torch.testing.assert_close(sample(maps.mT, where.flip(2)), sample(maps, where))


def test_positions_of_cells_and_points_of_the_transposed_image_are_transposed(
    boxes: tuple[torch.Tensor, torch.Tensor],
) -> None:
    first, upright = view_of(boxes[0]), view_of(turned(boxes[0]), (96, 64))
    grid = centres_of_cells(first, HEIGHT, WIDTH).reshape(5, HEIGHT, WIDTH, 2)
    other = centres_of_cells(upright, WIDTH, HEIGHT).reshape(5, WIDTH, HEIGHT, 2)
    torch.testing.assert_close(other, grid.transpose(1, 2).flip(3))
    unit = np.random.default_rng(0).random((1, 9, 2))
    spec = PointSpec(9, margin=0.1)
    points = torch.stack([place_points(unit, one[None], spec)[0] for one in first.box])
    back = torch.stack([place_points(unit[..., ::-1].copy(), one[None], spec)[0] for one in upright.box])
    torch.testing.assert_close(back, points.flip(2))
    inside = places(replace(first, points=points))
    torch.testing.assert_close(places(replace(upright, points=back)), inside.flip(2))


def test_query_cells_of_the_transposed_image_are_transposed(boxes: tuple[torch.Tensor, torch.Tensor]) -> None:
    queries = boxes[1][:, None]
    first = replace(view_of(boxes[0]), query_box=queries)
    upright = replace(view_of(turned(boxes[0]), (96, 64)), query_box=turned(queries))
    grid = query_cells(first, 2, HEIGHT, WIDTH).reshape(5, 2, 2, 2)
    other = query_cells(upright, 2, WIDTH, HEIGHT).reshape(5, 2, 2, 2)
    torch.testing.assert_close(other, grid.transpose(1, 2).flip(3))


def test_crops_and_segments_of_the_transposed_image_are_transposed() -> None:
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 256, (3, 50, 80), dtype=np.uint8))
    box, other = Box(5, 10, 30, 50), Box(10, 5, 50, 30)
    crop = resized_crop(image, box, size_px=WIDE, interpolation="bilinear")
    assert tuple(crop.shape) == (3, *WIDE)
    upright = resized_crop(image.mT, other, size_px=(96, 64), interpolation="bilinear")
    assert int((upright.mT.int() - crop.int()).abs().max()) <= 1  # rounded after each direction
    labels, unit = rng.integers(0, 9, (50, 80)), np.array([0.1, 0.2, 0.7, 0.9])
    found = cropped(labels, unit, size_px=WIDE, flipped=False)
    assert torch.equal(cropped(labels.T, unit[[1, 0, 3, 2]], size_px=(96, 64), flipped=False), found.T)
    assert torch.equal(cells_of(found.T[None], WIDTH, HEIGHT)[0], cells_of(found[None], HEIGHT, WIDTH)[0].T)


@given(st.integers(0, 10**6), st.booleans())
def test_a_marker_is_where_its_crop_says(seed: int, tall: bool) -> None:
    """Plant a bright block in an image that is not square, and find it again by the box of each view."""
    height, width, size = (300, 180, (96, 64)) if tall else (180, 300, (64, 96))
    plan = ViewPlan((ViewSpec(size, scale=(0.3, 0.6)), ViewSpec(size, scale=(0.3, 0.6), flip_p=1.0)))
    draw = draw_views(stream(Purpose.VIEWS, seed=seed, epoch=0), plan, height=height, width=width)
    row, column = height // 2, width // 2
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, row - 4 : row + 4, column - 4 : column + 4] = 255
    made = render(image, draw, plan, source_px=(width, height), epoch=0, index=0, used=0)
    for crop, box, flipped in zip(made.crops, made.box, made.flipped, strict=True):
        assert tuple(crop.shape[1:]) == size
        weight = crop[0].double()
        if float(weight.sum()) < 64 * 255 * 0.3:  # not within this crop
            continue
        y = float((weight.sum(1) * (torch.arange(size[0]) + 0.5)).sum() / weight.sum()) / size[0]
        x = float((weight.sum(0) * (torch.arange(size[1]) + 0.5)).sum() / weight.sum()) / size[1]
        x = 1 - x if bool(flipped) else x
        left, top, right, bottom = (box * torch.tensor([width, height, width, height])).tolist()
        edge = min(column - left, right - column, row - top, bottom - row)
        if edge > 12:
            assert abs(left + x * (right - left) - column) < 1.0
            assert abs(top + y * (bottom - top) - row) < 1.0


@given(st.integers(0, 10**6))
def test_crops_are_stretched_at_most_as_the_ratio_says(seed: int) -> None:
    spec = ViewSpec((64, 128), scale=(0.05, 0.3))
    box = draw_views(stream(Purpose.VIEWS, seed=seed, epoch=0), ViewPlan((spec,)), height=400, width=500).boxes[0]
    stretch = (box.width / 128) / (box.height / 64)
    assert 3 / 4 * 0.97 < stretch < 4 / 3 * 1.03  # rounded to pixels


def test_the_views_of_a_plan_have_their_shapes_on_the_device() -> None:
    plan = ViewPlan(
        (ViewSpec((32, 64)), ViewSpec((32, 64)), ViewSpec((16, 32), role="local")),
        queries=QuerySpec(2, 16),
        masks=MaskSpec(patch_px=16, p=1.0, share=(0.5, 0.5), shape="random"),
        segments=SegmentSpec(3),
    )
    image, labels = torch.randint(0, 256, (3, 80, 90), dtype=torch.uint8), np.arange(7200).reshape(80, 90)
    draw = draw_views(stream(Purpose.VIEWS, seed=0, epoch=0), plan, height=80, width=90)
    made = render(image, draw, plan, source_px=(90, 80), epoch=0, index=0, used=0, labels=labels)
    views = to_views(collate([made]), plan)
    assert [tuple(view.pixels.shape) for view in views] == [(1, 3, 32, 64), (1, 3, 32, 64), (1, 3, 16, 32)]
    assert views[0].mask is not None
    assert tuple(views[0].mask.shape) == (1, 2, 4)
    assert views[2].segments is not None
    assert tuple(views[2].segments.shape) == (1, 16, 32)


def test_an_image_is_reduced_only_as_far_as_both_sides_allow() -> None:
    plan = ViewPlan((ViewSpec((32, 64)),))
    draw = draw_views(stream(Purpose.VIEWS, seed=0, epoch=0), plan, height=10, width=10)
    assert needed_shrink(replace(draw, boxes=[Box(0, 0, 192, 384)]), plan) == 4
    assert needed_shrink(replace(draw, boxes=[Box(0, 0, 192, 383)]), plan) == 2
    assert needed_shrink(replace(draw, boxes=[Box(0, 0, 191, 384)]), plan) == 2


def test_equal_sides_are_a_square() -> None:
    assert ViewSpec((64, 64)) == ViewSpec(64)
    assert ViewSpec(64).crop_ratio == ViewSpec(64).ratio
