"""Boxes of crops: SlotCon's overlap in each view's own frame, PixPro's corners in the photograph's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dovetail.views.batch import unit_boxes
from dovetail.views.sampling import Box, accepts
from dovetail.views.view import View, corners_px, overlap_box, overlaps
from tests.golden.vectors import Comparison, Golden

# The official code computes in float32, and so do we: an absolute error, whatever the size of the numbers. Ours grows
# as a crop gets small, as boxes are shares of the photograph: a rounding of 2^-24 counts in units of the crop's side.
TOLERANCE = 1e-6
ROUNDING = 2.0**-22


def check(golden: Golden) -> Iterator[Comparison]:
    """Yield one comparison for every stored number."""
    for number, case in enumerate(golden.sidecar["slotcon"]):
        yield from _slotcon(f"slotcon {number}", case)
    for number, case in enumerate(golden.sidecar["pixpro"]):
        view = _view(case, case["box_top_left_height_width"], case["flipped"])
        yield _close(f"pixpro {number}", corners_px(view)[0], case["stored_coords"])


def _slotcon(name: str, case: dict[str, Any]) -> Iterator[Comparison]:
    boxes = [Box(*case[f"view{number}_box_top_left_height_width"]) for number in (1, 2)]
    for stored, flipped in (("coords_before_flip", [False, False]), ("stored_coords", case["flipped"])):
        views = [_view(case, box, flip) for box, flip in zip(boxes, flipped, strict=True)]
        ours = [overlap_box(views[0], views[1]), overlap_box(views[1], views[0])]
        tolerance = max(TOLERANCE, ROUNDING * largest_ratio(case, boxes))
        yield _close(f"{name} {stored}", torch.cat(ours), case[stored], tolerance)
        intersects = torch.tensor([case["intersection_area"] > 0] * 2)
        yield Comparison(f"{name} overlaps", overlaps(torch.cat(ours)), intersects)
    area = boxes[0].intersection(boxes[1])
    yield Comparison(f"{name} area", torch.tensor(area), torch.tensor(case["intersection_area"]))
    accepted = accepts(*boxes, target_area=boxes[1].height * boxes[1].width, min_overlap=0.01)
    yield Comparison(
        f"{name} accepted", torch.tensor(accepted), torch.tensor(case["accept_by_1pct_rule_of_realised_area"])
    )


def largest_ratio(case: dict[str, Any], boxes: list[Box]) -> float:
    """Return the largest side of the photograph in sides of a crop."""
    return max(max(case["image_width"] / box.width, case["image_height"] / box.height) for box in boxes)


def _view(case: dict[str, Any], box: list[int] | Box, flipped: bool) -> View:
    source_px = (case["image_width"], case["image_height"])
    return View(
        pixels=torch.zeros(1, 3, 1, 1),
        box=unit_boxes([Box(*box)], source_px),
        flipped=torch.tensor([flipped]),
        source_px=torch.tensor([source_px], dtype=torch.float32),
    )


def _close(what: str, ours: Tensor, expected: list[Any], tolerance: float = TOLERANCE) -> Comparison:
    return Comparison(what, ours, torch.tensor(expected), tolerance=tolerance, scale=1.0)
