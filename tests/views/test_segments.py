"""Segments follow the pixels through crops and flips, and maps are averaged over them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from dovetail.views.batch import collate, render, to_views
from dovetail.views.plan import Photometric, SegmentSpec, ViewPlan, ViewSpec
from dovetail.views.random import Purpose, stream
from dovetail.views.sampling import draw_views
from dovetail.views.segments import Segmented, averaged, cells_of, cropped, most_frequent, sampled_ids

PLAIN = Photometric(jitter_p=0, grey_p=0, blur_p=0)
PLAN = ViewPlan(
    (ViewSpec(32, photometric=PLAIN, interpolation="bilinear"),) * 2,
    mean=(0.0,),
    std=(1.0,),
    segments=SegmentSpec(count=5),
)


def test_a_mask_is_cropped_and_flipped_like_its_image() -> None:
    """The image is its mask, in four quadrants: away from their edges, pixels show the number of their segment."""
    labels = np.kron(np.array([[0, 1], [2, 3]]), np.ones((60, 80), dtype=int))
    pixels = torch.from_numpy(labels * 60).to(torch.uint8)[None]
    equal, flips = 0, set()
    for epoch in range(12):
        draw = draw_views(stream(Purpose.VIEWS, seed=0, epoch=epoch), PLAN, height=120, width=160)
        kwargs = {"source_px": (160, 120), "epoch": 0, "index": 0, "used": 0}
        sample = render(pixels, draw, PLAN, labels=labels, **kwargs)
        half = render(pixels, draw, PLAN, labels=labels[::2, ::2], **kwargs)  # a smaller mask
        views, halves = (to_views(collate([one]), PLAN) for one in (sample, half))
        for view, smaller in zip(views, halves, strict=True):
            assert view.segments is not None
            assert smaller.segments is not None
            shown = view.pixels[0, 0] * 255 / 60
            inside = (shown - shown.round()).abs() < 1e-3
            equal += int((view.segments[0][inside] == shown.round().int()[inside]).sum())
            assert (view.segments[0][inside] == shown.round().int()[inside]).float().mean() > 0.98
            assert (view.segments == smaller.segments).float().mean() > 0.95
            flips.add(bool(view.flipped))
    assert equal > 12 * 2 * 32 * 32 * 0.7
    assert flips == {True, False}


def test_segments_leave_the_views_as_they_are() -> None:
    plain = PLAN.without_side()
    for epoch in range(4):
        draws = [
            draw_views(stream(Purpose.VIEWS, seed=0, epoch=epoch), plan, height=50, width=70) for plan in (PLAN, plain)
        ]
        assert draws[0].boxes == draws[1].boxes
        assert draws[0].flipped == draws[1].flipped
        assert np.array_equal(draws[0].photometrics, draws[1].photometrics)
        assert draws[0].picks is not None
        assert draws[0].picks.shape == (2, 5)
        assert draws[1].picks is None


def test_a_crop_takes_the_nearest_pixels() -> None:
    labels = np.arange(16).reshape(4, 4)
    whole = cropped(labels, np.array([0.0, 0, 1, 1]), size_px=4, flipped=False)
    assert whole.tolist() == labels.tolist()
    corner = cropped(labels, np.array([0.5, 0, 1, 0.5]), size_px=4, flipped=True)
    assert corner.tolist() == [[3, 3, 2, 2]] * 2 + [[7, 7, 6, 6]] * 2


def test_the_most_frequent_value_and_of_several_the_smallest() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-3, 4, (50, 9), generator=generator, dtype=torch.int32)
    for row, found in zip(values.tolist(), most_frequent(values).tolist(), strict=True):
        counts = Counter(row)
        most = max(counts.values())
        assert found == min(value for value, count in counts.items() if count == most)


def test_cells_have_the_segment_of_most_of_their_pixels() -> None:
    segments = torch.tensor([[[5, 5, 1, 2], [5, 0, 2, 2], [7, 7, 7, 7], [7, 7, 7, 7]]])
    assert cells_of(segments, 2, 2).tolist() == [[[5, 2], [7, 7]]]
    assert cells_of(segments, 1, 1).tolist() == [[[7]]]
    assert cells_of(segments, 4, 4).equal(segments)
    assert cells_of(segments[:, :3, :3], 2, 2).shape == (1, 2, 2)  # 3 pixels over 2 cells
    assert cells_of(segments, 8, 8)[0, ::2, ::2].equal(segments[0])  # more cells than pixels


def test_all_segments_of_an_image_are_equally_probable() -> None:
    cells = torch.tensor([[[9, 9, 9], [9, 9, 4]], [[1, 1, 1], [1, 1, 1]]])
    picks = torch.tensor([[0.0, 0.49, 0.5, 0.999999], [0.0, 0.3, 0.9, 1.0 - 2**-24]])
    assert sampled_ids(cells, picks).tolist() == [[4, 4, 9, 9], [1, 1, 1, 1]]


def test_maps_are_averaged_over_the_cells_of_a_segment() -> None:
    maps = torch.arange(2 * 3 * 4.0).view(1, 4, 2, 3)
    where = Segmented(torch.tensor([[[0, 0, 6], [6, 0, 6]]]), torch.tensor([[6, 0, 6]]))
    pooled = averaged(maps, where)
    flat = maps[0].flatten(1)
    assert pooled.shape == (1, 4, 3, 1)
    torch.testing.assert_close(pooled[0, :, 0, 0], flat[:, [2, 3, 5]].mean(1))
    torch.testing.assert_close(pooled[0, :, 1, 0], flat[:, [0, 1, 4]].mean(1))
    assert pooled[0, :, 2].equal(pooled[0, :, 0])
