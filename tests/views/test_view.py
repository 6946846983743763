from __future__ import annotations

from dataclasses import replace

import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dovetail.views.batch import unit_boxes
from dovetail.views.sampling import Box
from dovetail.views.view import View, align, between_cells, corners_px, overlap_box, overlaps, sampled

CELLS = 16


@st.composite
def pairs(draw: st.DrawFn) -> tuple[View, View]:
    """Two views of one image of any size, flipped or not."""
    width, height = draw(st.integers(2, 300)), draw(st.integers(2, 300))

    def view() -> View:
        box_width, box_height = draw(st.integers(1, width)), draw(st.integers(1, height))
        top, left = draw(st.integers(0, height - box_height)), draw(st.integers(0, width - box_width))
        return View(
            pixels=torch.zeros(1, 3, 1, 1),
            box=unit_boxes([Box(top, left, box_height, box_width)], (width, height)),
            flipped=torch.tensor([draw(st.booleans())]),
            source_px=torch.tensor([[width, height]], dtype=torch.float32),
        )

    return view(), view()


def area(box: Tensor) -> Tensor:
    return (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])


def ramp(view: View) -> Tensor:
    """Return [1, 2, CELLS, CELLS]: the place in the image that each cell of the view shows, x and y."""
    share = (torch.arange(CELLS, dtype=torch.float64) + 0.5) / CELLS
    x1, y1, x2, y2 = view.box[0].double()
    x = x1 + (x2 - x1) * (1 - share if view.flipped[0] else share)
    y = y1 + (y2 - y1) * share
    return torch.stack([x.expand(CELLS, CELLS), y[:, None].expand(CELLS, CELLS)])[None]


@given(pairs())
def test_overlap_is_seen_alike_from_both_views(pair: tuple[View, View]) -> None:
    a, b = pair
    from_a, from_b = overlap_box(a, b), overlap_box(b, a)
    assert overlaps(from_a).equal(overlaps(from_b))
    if overlaps(from_a).all():
        assert from_a.min() >= -1e-6
        assert from_a.max() <= 1 + 1e-6
        torch.testing.assert_close(area(from_a) * area(a.box), area(from_b) * area(b.box), atol=1e-5, rtol=1e-4)


@given(pairs())
def test_a_view_overlaps_itself_whole(pair: tuple[View, View]) -> None:
    torch.testing.assert_close(overlap_box(pair[0], pair[0]), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))


@given(pairs())
def test_aligned_cells_show_the_same_place(pair: tuple[View, View]) -> None:
    a, b = pair
    boxes = overlap_box(a, b), overlap_box(b, a)
    aligned = [align(ramp(view), box, view.flipped)[0] for view, box in zip(pair, boxes, strict=True)]
    if not overlaps(boxes[0]).all():
        assert not torch.cat(aligned).any()
        return
    # Beyond the centres of a map's outer cells the border value repeats, so those bins show the border's place.
    inside = torch.ones(CELLS, CELLS, dtype=torch.bool)
    for view, box in zip(pair, boxes, strict=True):
        share = (torch.arange(CELLS) + 0.5) / CELLS
        x, y = box[0, 0] + (box[0, 2] - box[0, 0]) * share, box[0, 1] + (box[0, 3] - box[0, 1]) * share
        if view.flipped[0]:
            x = x.flip(0)
        edge = 0.5 / CELLS
        inside &= ((x >= edge) & (x <= 1 - edge))[None, :] & ((y >= edge) & (y <= 1 - edge))[:, None]
    torch.testing.assert_close(aligned[0][:, inside], aligned[1][:, inside], atol=1e-5, rtol=0)


def mirrored(view: View) -> View:
    """Return the view of the same place that is flipped where this one is not."""
    return replace(view, flipped=~view.flipped)


@given(pairs(), st.integers(1, 9))
def test_flipping_a_view_and_its_map_leaves_its_alignment(pair: tuple[View, View], size: int) -> None:
    a, b = pair
    maps = torch.rand(1, 2, size, size, generator=torch.Generator().manual_seed(size))
    box, other = overlap_box(a, b), overlap_box(mirrored(a), b)
    torch.testing.assert_close(other, torch.stack([1 - box[:, 2], box[:, 1], 1 - box[:, 0], box[:, 3]], dim=1))
    flipped = align(maps.flip(3), other, mirrored(a).flipped)
    torch.testing.assert_close(flipped, align(maps, box, a.flipped), atol=1e-4, rtol=0)
    assert overlap_box(mirrored(mirrored(a)), b).equal(box)
    assert overlap_box(a, mirrored(b)).equal(box)  # where a sees b does not depend on which way b looks


@given(pairs(), st.integers(3, 9))
def test_align_is_roi_align(pair: tuple[View, View], size: int) -> None:
    a, b = pair
    box = overlap_box(a, b)
    maps = torch.rand(1, 2, size, size, generator=torch.Generator().manual_seed(size))
    regions = torch.cat([torch.zeros(1, 1), box * size], dim=1)
    expected = torchvision.ops.roi_align(maps, regions, (size, size), sampling_ratio=1, aligned=True)
    expected = expected.flip(3) if a.flipped[0] else expected
    if overlaps(box).all():
        torch.testing.assert_close(align(maps, box, a.flipped), expected, atol=1e-4, rtol=0)


def test_sampling_and_products_of_matrices_agree() -> None:
    """At the border, beyond it, at cells' centres and between them; in values and gradients."""
    torch.manual_seed(0)
    maps = torch.rand(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    x, y = (torch.rand(2, count, dtype=torch.float64) * 1.4 - 0.2 for count in (7, 6))
    x[0, :3] = torch.tensor([0.0, 0.3, 1.0])
    found = [way(maps, x, y) for way in (sampled, between_cells)]
    torch.testing.assert_close(found[0], found[1])
    gradients = [torch.autograd.grad(one.square().sum(), maps)[0] for one in found]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_corners_of_a_flipped_view_change_places() -> None:
    view = View(
        pixels=torch.zeros(2, 3, 1, 1),
        box=unit_boxes([Box(0, 0, 10, 20), Box(2, 5, 4, 6)], (20, 10)),
        flipped=torch.tensor([True, False]),
        source_px=torch.tensor([[20.0, 10.0]] * 2),
    )
    expected = torch.tensor([[1.0, 0.0, 0.0, 1.0], [5 / 19, 2 / 9, 10 / 19, 5 / 9]])
    torch.testing.assert_close(corners_px(view), expected)


def test_corners_of_a_single_pixel_are_finite() -> None:
    view = View(torch.zeros(1, 3, 1, 1), torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([False]), torch.ones(1, 2))
    assert torch.isfinite(corners_px(view)).all()
