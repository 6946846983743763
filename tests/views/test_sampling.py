from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from dovetail.data.reading.decode import open_bytes
from dovetail.errors import DataError
from dovetail.views import photometric
from dovetail.views.batch import unit_boxes
from dovetail.views.plan import MaskSpec, QuerySpec, ViewPlan, ViewSpec
from dovetail.views.random import Purpose, stream
from dovetail.views.sampling import (
    Box,
    Draw,
    accepts,
    draw_views,
    needed_shrink,
    on_grid,
    random_box,
    resized_crop,
    shrink_of,
)
from tests.data.photos import encoded

SIZES = st.integers(1, 2000)


def generator(seed: int) -> np.random.Generator:
    return stream(Purpose.VIEWS, seed=seed, epoch=0)


@given(st.integers(0, 10**6), SIZES, SIZES, st.floats(0.01, 0.9))
def test_boxes_lie_inside(seed: int, height: int, width: int, low: float) -> None:
    box, area = random_box(generator(seed), height=height, width=width, scale=(low, 1.0), ratio=(3 / 4, 4 / 3))
    assert box.height >= 1
    assert box.width >= 1
    assert box.top >= 0
    assert box.left >= 0
    assert box.top + box.height <= height
    assert box.left + box.width <= width
    assert 0 < area <= height * width


@given(st.integers(0, 10**6), SIZES, SIZES, st.floats(0, 1))
def test_views_and_queries_of_any_photograph_lie_inside(seed: int, height: int, width: int, min_overlap: float) -> None:
    views = (ViewSpec(32), ViewSpec(32, scale=(0.05, 1.0)), ViewSpec(16, role="local", scale=(0.01, 0.1)))
    plan = ViewPlan(views, min_overlap=min_overlap, queries=QuerySpec(count=3, size_px=8))
    draw = draw_views(generator(seed), plan, height=height, width=width)
    again = draw_views(generator(seed), plan, height=height, width=width)
    assert (draw.boxes, draw.flipped) == (again.boxes, again.flipped)
    assert draw.queries is not None
    boxes = unit_boxes([*draw.boxes, *draw.queries.boxes], (width, height))
    assert len(boxes) == 6
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    assert (boxes[:, :2] < boxes[:, 2:]).all()


@pytest.mark.parametrize(("height", "width"), [(120, 160), (40, 400)])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    scale, ratio, count = (0.08, 1.0), (3 / 4, 4 / 3), 1500
    torch.manual_seed(0)
    image = torch.zeros(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)], float)
    rng = generator(0)
    ours = np.array([random_box(rng, height=height, width=width, scale=scale, ratio=ratio)[0] for _ in range(count)])
    for column in range(4):
        error = np.hypot(theirs[:, column].std(), ours[:, column].std()) / count**0.5
        assert abs(theirs[:, column].mean() - ours[:, column].mean()) < 4 * error
        assert abs(theirs[:, column].std() - ours[:, column].std()) < 4 * error


def test_overlap_rule_counts_the_target_area() -> None:
    first, second = Box(0, 0, 10, 10), Box(9, 0, 10, 10)
    assert first.intersection(second) == 10
    assert accepts(first, second, target_area=100.0, min_overlap=0.1)
    assert not accepts(first, second, target_area=100.1, min_overlap=0.1)
    assert first.intersection(Box(10, 10, 5, 5)) == 0


def test_second_view_overlaps_the_first() -> None:
    spec = ViewSpec(32, scale=(0.05, 0.1))
    missed = {0.0: 0, 0.3: 0}
    for min_overlap in missed:
        plan = ViewPlan((spec, spec), min_overlap=min_overlap)
        for seed in range(200):
            first, second = draw_views(generator(seed), plan, height=100, width=100).boxes
            missed[min_overlap] += first.intersection(second) < 0.25 * second.height * second.width
    assert missed[0.0] > 150
    assert missed[0.3] < missed[0.0] * 0.75


def test_impossible_overlap_still_gives_a_box() -> None:
    plan = ViewPlan((ViewSpec(32, scale=(0.01, 0.02)), ViewSpec(32, scale=(0.9, 1.0))), min_overlap=0.9)
    assert len(draw_views(generator(0), plan, height=50, width=50).boxes) == 2


def test_draw_has_what_the_plan_asks_for() -> None:
    local = ViewSpec(16, scale=(0.05, 0.25), role="local")
    queries = QuerySpec(count=5, size_px=8, independent=True)
    plan = ViewPlan((ViewSpec(32), ViewSpec(32), local), queries=queries, masks=MaskSpec(patch_px=8, p=1.0))
    draw = draw_views(generator(0), plan, height=40, width=60)
    assert len(draw.boxes) == len(draw.flipped) == len(draw.photometrics) == 3
    assert [mask.shape for mask in draw.masks] == [(4, 4), (4, 4)]
    assert draw.queries is not None
    assert len(draw.queries.boxes) == 5
    assert draw.queries.photometrics.shape[:2] == (2, 5)


def test_nothing_is_masked_before_the_start_epoch() -> None:
    plan = ViewPlan((ViewSpec(32),), masks=MaskSpec(patch_px=4, p=1.0, start_epoch=2))
    before, after = (draw_views(generator(0), plan, height=40, width=60, epoch=epoch) for epoch in (1, 2))
    assert not before.masks[0].any()
    assert after.masks[0].any()
    assert before.boxes == after.boxes


@pytest.mark.parametrize(("interpolation", "pillow"), [("bicubic", Image.BICUBIC), ("bilinear", Image.BILINEAR)])
@pytest.mark.parametrize("size", [9, 40])
def test_resized_crop_is_pillows(interpolation: str, pillow: Image.Resampling, size: int) -> None:
    array = generator(1).integers(0, 256, (30, 44, 3), dtype=np.uint8)
    box = Box(3, 5, 20, 31)
    crop = Image.fromarray(array).crop((5, 3, 36, 23)).resize((size, size), pillow).transpose(Image.FLIP_LEFT_RIGHT)
    ours = resized_crop(
        torch.from_numpy(array).permute(2, 0, 1),
        box,
        size_px=size,
        interpolation=interpolation,  # type: ignore[arg-type]
        flipped=True,
    )
    difference = ours.permute(1, 2, 0).int() - torch.from_numpy(np.asarray(crop).copy()).int()
    assert difference.abs().max() <= 2


@given(SIZES, SIZES)
def test_one_crop_of_any_size_of_photograph(height: int, width: int) -> None:
    box, _ = random_box(generator(0), height=height, width=width, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    pixels = torch.full((2, height, width), 77, dtype=torch.uint8)
    assert resized_crop(pixels, box, size_px=8, interpolation="bicubic").eq(77).all()


@pytest.mark.parametrize(("side", "shrink"), [(75, 1), (95, 1), (96, 2), (191, 2), (192, 4), (383, 4), (5000, 8)])
def test_shrink_leaves_half_as_many_pixels_again(side: int, shrink: int) -> None:
    plan = ViewPlan((ViewSpec(32, scale=(1.0, 1.0), ratio=(1.0, 1.0)),))
    draw = draw_views(generator(0), plan, height=side, width=side)
    assert needed_shrink(replace(draw, boxes=[Box(0, 0, side, side)]), plan) == shrink


@given(st.integers(0, 10**6), st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 40))
def test_boxes_on_the_grid_of_a_smaller_photograph_are_whole(seed: int, height: int, width: int, size: int) -> None:
    views = (ViewSpec(size), ViewSpec(size, scale=(0.05, 1.0)))
    plan = ViewPlan(views, queries=QuerySpec(count=3, size_px=size))
    drawn = draw_views(generator(seed), plan, height=height, width=width)
    shrink = needed_shrink(drawn, plan)
    draw = on_grid(drawn, shrink, (width, height))
    assert drawn.queries is not None
    assert draw.queries is not None
    before, after = [*drawn.boxes, *drawn.queries.boxes], [*draw.boxes, *draw.queries.boxes]
    assert all(edge % shrink == 0 for box in after for edge in box)
    for old, new in zip(before, after, strict=True):
        assert 0 <= new.top < new.top + new.height <= height
        assert 0 <= new.left < new.left + new.width <= width
        ends = ((old.top, new.top), (old.left, new.left))
        sides = ((old.top + old.height, new.top + new.height), (old.left + old.width, new.left + new.width))
        assert all(abs(one - other) < shrink for one, other in ends + sides)


@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
def test_the_divisor_is_told_by_sizes(shrink: int) -> None:
    pixels = torch.zeros(3, -(-1001 // shrink), -(-1333 // shrink), dtype=torch.uint8)
    assert shrink_of(pixels, (1333, 1001)) == shrink
    with pytest.raises(DataError, match="expected 1333 x 1003"):
        shrink_of(torch.zeros(3, 300, 400), (1333, 1003))


def test_crop_of_a_shrunk_photograph_shows_the_same_place() -> None:
    x = torch.linspace(0, 255, 800)
    pixels = torch.stack([x.expand(600, 800), x[:600, None].expand(600, 800)]).to(torch.uint8)
    small = torch.nn.functional.interpolate(pixels[None], size=(150, 200), mode="bilinear", antialias=True)[0]
    draw = Draw([Box(101, 203, 301, 401)], [False], np.zeros((1, photometric.NUM_PARAMETERS)), None, [])
    (box,) = on_grid(draw, 4, (800, 600)).boxes
    assert box == Box(100, 204, 300, 400)
    full = resized_crop(pixels, box, size_px=32, interpolation="bicubic")
    shrunk = resized_crop(small, box, size_px=32, interpolation="bicubic", shrink=4)
    assert (full.int() - shrunk.int()).abs().max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_views_of_a_jpeg_decoded_smaller_are_those_of_the_whole(interpolation: Literal["bilinear", "bicubic"]) -> None:
    coarse = Image.fromarray(generator(2).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    photograph = open_bytes(encoded(coarse.resize((1503, 1002)), "JPEG", quality=95), 3)
    plan = ViewPlan((ViewSpec(64, scale=(0.3, 1.0), interpolation=interpolation), ViewSpec(64, scale=(0.3, 1.0))))
    for seed in range(5):
        draw = draw_views(generator(seed), plan, height=1002, width=1503)
        shrink = needed_shrink(draw, plan)
        assert shrink > 1
        small = photograph.decode(shrink)
        assert shrink_of(small, (1503, 1002)) == shrink
        box = on_grid(draw, shrink, (1503, 1002)).boxes[0]
        options = {"size_px": 64, "interpolation": interpolation}
        whole = resized_crop(photograph.decode(1), box, **options)  # type: ignore[arg-type]
        ours = resized_crop(small, box, **options, shrink=shrink)  # type: ignore[arg-type]
        difference = (whole.int() - ours.int()).abs().float()
        assert difference.mean() < 1
        assert difference.max() <= 4
