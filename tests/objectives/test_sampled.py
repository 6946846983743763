"""The laws of sampled maps: what SlotCon, DenseCL and PixPro lose at points, beside what they lose in all cells.

Shapes: B images, C channels, N points.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dovetail.heads.base import HeadSpec
from dovetail.heads.dense import DenseHeadSpec, PixelHeadSpec
from dovetail.heads.slots import SlotHeadSpec
from dovetail.objectives import pixels
from dovetail.objectives.dense import DenseContrastSpec
from dovetail.objectives.objective import Loss, Objective, ObjectiveSpec
from dovetail.objectives.pixels import PixelConsistencySpec, near
from dovetail.objectives.slots import SlotSpec
from dovetail.schedules import Moment
from dovetail.views.points import places, sample
from dovetail.views.view import View

NOW = Moment(0, 10, 5)
CHANNELS, SIDE = 6, 8
SPECS: dict[str, tuple[HeadSpec, ObjectiveSpec]] = {
    "slotcon": (SlotHeadSpec(hidden=12, dim=5, prototypes=7), SlotSpec(predictor_hidden=12)),
    "densecl": (DenseHeadSpec(hidden=12, dim=5), DenseContrastSpec(queue=16)),
    "pixpro": (PixelHeadSpec(hidden=12, dim=5, instance=True), PixelConsistencySpec(instance_weight=0.5)),
}
WHOLE = [[0.0, 0.0, 1.0, 1.0]] * 3
# Two views of three images, each pair overlapping in another way.
BOXES = (
    [[0.0, 0.0, 0.8, 0.7], [0.1, 0.2, 0.9, 0.9], [0.3, 0.1, 0.8, 0.6]],
    [[0.2, 0.1, 1.0, 0.8], [0.0, 0.1, 0.7, 1.0], [0.2, 0.2, 0.7, 0.9]],
)


@dataclass
class Method:
    """A student's and a teacher's head with the objective, in double precision."""

    student: nn.Module
    teacher: nn.Module
    objective: Objective

    def whole(self, maps: Sequence[Tensor], views: Sequence[View]) -> Loss:
        """Return the loss over all cells of two views' maps."""
        seen = [replace(view, points=None) for view in views]
        loss: Loss = self.objective([self.student(one) for one in maps], [self.teacher(one) for one in maps], seen, NOW)
        return loss

    def sampled(self, maps: Sequence[Tensor], views: Sequence[View]) -> Loss:
        """Return the loss over the views' points."""
        rows = [sample(one, places(view)) for one, view in zip(maps, views, strict=True)]
        seen = [replace(view, map_size=(one.shape[2], one.shape[3])) for one, view in zip(maps, views, strict=True)]
        loss: Loss = self.objective([self.student(one) for one in rows], [self.teacher(one) for one in rows], seen, NOW)
        return loss


def method_of(name: str) -> Method:
    torch.manual_seed(0)
    head, objective = SPECS[name]
    return Method(head.build(CHANNELS).double(), head.build(CHANNELS).double(), objective.build(head).double())


@pytest.fixture(params=SPECS)
def method(request: pytest.FixtureRequest) -> Method:
    return method_of(request.param)


def make_view(boxes: Sequence[Sequence[float]], flipped: bool = False, size: int = 200) -> View:
    count = len(boxes)
    box = torch.tensor(boxes, dtype=torch.float64)
    sides = torch.full((count, 2), float(size), dtype=torch.float64)
    return View(torch.zeros(count, 3, 4, 4), box, torch.full((count,), flipped), sides)


def make_maps(seed: int, count: int = 3, *, side: int = SIDE, grad: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, CHANNELS, side, side)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(grad) for _ in range(2)]


def at(views: Sequence[View], *points: Tensor) -> list[View]:
    """Return the views with points, one set for both or one for each."""
    sets = points if len(points) == len(views) else points * len(views)
    return [replace(view, points=one) for view, one in zip(views, sets, strict=True)]


def lattice(low: Tensor, high: Tensor, side: int) -> Tensor:
    """Return [B, side^2, 2]: the centres of side x side equal cells of boxes with corners [B, 2]."""
    steps = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    unit = torch.stack([steps.repeat(side), steps.repeat_interleave(side)], dim=1)
    return low[:, None] + unit * (high - low)[:, None]


def cell_centres(view: View) -> Tensor:
    return lattice(view.box[:, :2], view.box[:, 2:], SIDE)


def in_overlap(views: Sequence[View], side: int) -> Tensor:
    """Return the centres of a fine lattice on the overlap of the views' crops."""
    low, high = overlap(views)
    return lattice(low, high, side)


def overlap(views: Sequence[View]) -> tuple[Tensor, Tensor]:
    low = torch.stack([view.box[:, :2] for view in views]).amax(0)
    high = torch.stack([view.box[:, 2:] for view in views]).amin(0)
    return low, high


def drawn(views: Sequence[View], count: int, generator: torch.Generator) -> Tensor:
    """Return points uniform in the overlap, [B, count, 2]."""
    low, high = overlap(views)
    unit = torch.rand(len(low), count, 2, generator=generator, dtype=torch.float64)
    return low[:, None] + unit * (high - low)[:, None]


@pytest.mark.parametrize("flips", [(False, False), (True, False), (True, True)])
def test_at_all_cell_centres_the_loss_is_that_over_all_cells(method: Method, flips: tuple[bool, bool]) -> None:
    """SlotCon's where both crops are one, so that the overlap's bins are the cells; the others' for any crops."""
    boxes = (WHOLE, WHOLE) if isinstance(method.objective.spec, SlotSpec) else BOXES
    views = [make_view(box, flip) for box, flip in zip(boxes, flips, strict=True)]
    maps = make_maps(1)
    points = [cell_centres(view) for view in views]
    whole, sampled = method.whole(maps, views), method.sampled(maps, at(views, *points))
    torch.testing.assert_close(sampled.total, whole.total, rtol=1e-9, atol=1e-11)
    for part, value in whole.parts.items():
        torch.testing.assert_close(sampled.parts[part], value, rtol=1e-9, atol=1e-11)


def test_at_all_cell_centres_the_gradient_is_that_over_all_cells(method: Method) -> None:
    views, gradients = [make_view(WHOLE), make_view(WHOLE, True)], []
    for loss_of, seen in ((method.whole, views), (method.sampled, at(views, *map(cell_centres, views)))):
        maps = make_maps(1, grad=True)
        parameters = [*method.student.parameters(), *method.objective.parameters()]
        gradients.append(torch.autograd.grad(loss_of(maps, seen).total, [*maps, *parameters], allow_unused=True))
    for whole, sampled in zip(*gradients, strict=True):
        torch.testing.assert_close(sampled, whole, rtol=1e-7, atol=1e-10)


def test_centres_and_queues_move_as_over_all_cells(method: Method) -> None:
    maps, view = make_maps(1), make_view(WHOLE)
    outputs = []
    for inputs in (maps, [sample(one, places(replace(view, points=cell_centres(view)))) for one in maps]):
        objective = method_of(next(name for name, spec in SPECS.items() if spec[1] == method.objective.spec)).objective
        objective.update([method.student(one) for one in inputs], [method.teacher(one) for one in inputs])
        outputs.append(dict(objective.named_buffers()))
    assert outputs[0].keys() == outputs[1].keys()
    for name, value in outputs[0].items():
        torch.testing.assert_close(outputs[1][name], value)


def test_flipping_a_views_map_and_flag_together_changes_nothing(method: Method) -> None:
    maps, views = make_maps(2), [make_view(box) for box in BOXES]
    seen = at(views, drawn(views, 20, torch.Generator().manual_seed(0)))
    expected = method.sampled(maps, seen).total
    flipped = [replace(seen[0], flipped=~seen[0].flipped), seen[1]]
    torch.testing.assert_close(method.sampled([maps[0].flip(3), maps[1]], flipped).total, expected)
    assert not torch.allclose(method.sampled(maps, flipped).total, expected)


def test_cropping_a_view_off_the_points_changes_nothing(method: Method) -> None:
    """The half of a map that no point is near can be cut off with the view's box.

    In an image of many pixels: PixPro's frame ends half a pixel inside a crop.
    """
    left, right = make_view(WHOLE, size=10**10), make_view([[0.5, 0.0, 1.0, 1.0]] * 3, size=10**10)
    other, maps = make_view(WHOLE, True, size=10**10), make_maps(2)
    unit = torch.rand(3, 20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = unit * torch.tensor([0.4, 1.0], dtype=torch.float64) + torch.tensor([0.6, 0.0], dtype=torch.float64)
    expected = method.sampled(maps, at([left, other], points)).total
    cropped = [maps[0][..., SIDE // 2 :], maps[1]]
    torch.testing.assert_close(method.sampled(cropped, at([right, other], points)).total, expected)


def test_the_order_of_points_changes_nothing(method: Method) -> None:
    maps, views = make_maps(2), [make_view(box) for box in BOXES]
    points = drawn(views, 20, torch.Generator().manual_seed(0))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    expected = method.sampled(maps, at(views, points)).total
    torch.testing.assert_close(method.sampled(maps, at(views, points[:, order])).total, expected)


def group_of(method: Method, maps: Sequence[Tensor], views: Sequence[View]) -> Tensor:
    """Return SlotCon's group loss at the views' points, with the heads' BatchNorm as it is on average."""
    method.student.eval()
    method.teacher.eval()
    return method.sampled(maps, views).parts["group"]


DRAWS, POINTS = 300, 16


def many(loss_of: Callable[[list[View]], Tensor], views: Sequence[View]) -> Tensor:
    """Return [DRAWS, ...]: a value at so many draws of points."""
    generator = torch.Generator().manual_seed(0)
    return torch.stack([loss_of(at(views, drawn(views, POINTS, generator))) for _ in range(DRAWS)])


def test_the_sampled_group_loss_is_an_unbiased_estimate_of_that_over_the_whole_overlap() -> None:
    """Its mean over draws is the integral's, within four standard errors; one draw's error shrinks with the number of
    points, as that of a mean of N independent values: sigma / sqrt(N), sigma the deviation between places.
    """
    method, maps, views = method_of("slotcon"), make_maps(3), [make_view(BOXES[0]), make_view(BOXES[1], True)]
    with torch.no_grad():
        full = group_of(method, maps, at(views, in_overlap(views, 64)))
        losses = many(lambda seen: group_of(method, maps, seen), views)
        places_of = in_overlap(views, 16)
        each = torch.stack([group_of(method, maps, at(views, places_of[:, [i]])) for i in range(256)])
    error = losses.std() / DRAWS**0.5
    assert abs(losses.mean() - full) < 4 * error
    assert error < 0.01 * full  # so that the bound says something
    # `each` has one place of the lattice in all three images, which deviates as much as three places do, or so.
    assert losses.std() < 2 * each.std() / POINTS**0.5


def test_the_gradient_of_the_sampled_group_loss_is_an_unbiased_estimate_too() -> None:
    method, maps = method_of("slotcon"), make_maps(3, grad=True)
    views = [make_view(BOXES[0]), make_view(BOXES[1], True)]
    names = ("prototypes.weight", "projector.0.conv.weight")
    weights = [method.student.get_parameter(name) for name in names]

    def gradient(seen: list[View]) -> Tensor:
        parts = torch.autograd.grad(group_of(method, maps, seen), [*weights, *maps])
        return torch.cat([part.flatten() for part in parts])

    full, found = gradient(at(views, in_overlap(views, 64))), many(gradient, views)
    error = (found.var(0).sum() / DRAWS).sqrt()  # of the mean as a whole vector
    assert (found.mean(0) - full).norm() < 2 * error
    assert error < 0.1 * full.norm()


def test_over_a_smooth_map_the_whole_overlaps_group_loss_is_that_over_all_cells() -> None:
    """Cells are resampled behind the head in one form and in front of it in the other, and their number is that of the
    map in one: the difference is at least halved with cells half as wide.
    """
    method, views = method_of("slotcon"), [make_view(BOXES[0]), make_view(BOXES[1], True)]
    method.student.eval()
    method.teacher.eval()
    differences = []
    for side in (8, 16, 32, 64):
        maps = [F.interpolate(one, side, mode="bicubic", align_corners=False) for one in make_maps(3, side=4)]
        with torch.no_grad():
            whole = method.whole(maps, views).parts["group"]
            sampled = method.sampled(maps, at(views, in_overlap(views, 64))).parts["group"]
        differences.append(float((sampled - whole).abs() / whole))
    assert all(after < before / 2 for before, after in itertools.pairwise(differences))
    assert differences[-1] < 5e-3


def test_views_without_common_points_are_left_out_of_the_group_loss() -> None:
    method, views = method_of("slotcon"), [make_view(box) for box in BOXES]
    maps = make_maps(4)
    points = drawn(views, 20, torch.Generator().manual_seed(0))
    own = points.clone()
    own[2] = points[2] + 0.01  # the third image's views have points of their own
    with_all = group_of(method, maps, at(views, points, own))
    alone = [replace(view, box=view.box[:2], flipped=view.flipped[:2], points=points[:2]) for view in views]
    torch.testing.assert_close(with_all, group_of(method, [one[:2] for one in maps], alone))


@pytest.mark.parametrize("name", ["slotcon", "pixpro"])
def test_crops_apart_give_a_zero_with_a_graph(name: str) -> None:
    method, maps = method_of(name), make_maps(4, grad=True)
    views = [make_view([[0.0, 0.0, 0.2, 0.2]] * 3), make_view([[0.7, 0.7, 1.0, 1.0]] * 3)]
    loss = method.sampled(maps, at(views, *map(cell_centres, views)))
    part = loss.parts["group"] if name == "slotcon" else loss.parts["pixel"]
    assert float(part.detach()) == 0
    loss.total.backward()
    assert all(one.grad is not None and torch.isfinite(one.grad).all() for one in maps)
    assert all(value.grad is not None for value in method.student.parameters())


def test_every_place_of_pixpro_is_near_itself() -> None:
    """So no image with an overlap is without a positive pair, however fine the map."""
    views = [make_view(box) for box in BOXES]
    points = drawn(views, 9, torch.Generator().manual_seed(0))
    seen = [replace(view, map_size=(56, 56)) for view in at(views, points)]
    rows = torch.zeros(3, 5, 9, 1)
    mask = near(*(pixels.cell_centres(view, rows) for view in seen), distance=0.7)
    assert mask.diagonal(dim1=1, dim2=2).all()
    assert not mask.all()
