"""Feature prediction against plain loops over cells."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dovetail.errors import DovetailError
from dovetail.heads.raw import RawHeadSpec
from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives.prediction import EPSILON, FeaturePrediction, FeaturePredictionSpec
from dovetail.schedules import Moment
from dovetail.views.view import View

NOW = Moment(0, 10, 5)


def view(box: list[float], *, flipped: bool = False, size: int = 8, role: str = "global", batch: int = 1) -> View:
    pixels = torch.zeros(batch, 3, size, size)
    boxes = torch.tensor([box] * batch)
    return View(pixels, boxes, torch.tensor([flipped] * batch), torch.full((batch, 2), 64.0), role)  # type: ignore[arg-type]


def objective(channels: int = 3, target_channels: int = 4) -> FeaturePrediction:
    torch.manual_seed(0)
    return FeaturePredictionSpec(channels, target_channels).build(RawHeadSpec()).double()


def at(maps: Tensor, x: float, y: float) -> list[float]:
    """Return a map [C, H, W] at (x, y) in its [0, 1] frame, bilinear between cells' centres, clamped at the edges."""
    height, width = maps.shape[1:]
    column, row = (min(max(one * side - 0.5, 0), side - 1) for one, side in ((x, width), (y, height)))
    left, top = min(int(column), width - 1), min(int(row), height - 1)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    across, down = column - left, row - top
    return [
        float(
            channel[top, left] * (1 - across) * (1 - down)
            + channel[top, right] * across * (1 - down)
            + channel[bottom, left] * (1 - across) * down
            + channel[bottom, right] * across * down
        )
        for channel in maps
    ]


@torch.no_grad()
def plain_loss(own: FeaturePrediction, maps: Tensor, target: Tensor, seen: View, other: View) -> tuple[float, int]:
    """Return the loss of one image by a loop over the target's cells, and how many of them lie inside."""
    conv = own.predictor[0].conv
    rows = target.flatten(1)
    mean, deviation = rows.mean(dim=1), (rows.var(dim=1, unbiased=False) + EPSILON).sqrt()
    height, width = target.shape[1:]
    (left, top, right, bottom), (a, b, c, d) = other.box[0].tolist(), seen.box[0].tolist()
    distances = []
    for row in range(height):
        for column in range(width):
            across = (column + 0.5) / width
            across = 1 - across if bool(other.flipped[0]) else across
            x, y = left + across * (right - left), top + (row + 0.5) / height * (bottom - top)
            u, v = (x - a) / (c - a), (y - b) / (d - b)
            u = 1 - u if bool(seen.flipped[0]) else u
            if not (0 <= u <= 1 and 0 <= v <= 1):
                continue
            predicted = conv.weight[:, :, 0, 0] @ torch.tensor(at(maps, u, v)).double() + conv.bias
            standard = (target[:, row, column] - mean) / deviation
            distances.append(1 - float(predicted @ standard / (predicted.norm() * standard.norm())))
    return math.fsum(distances) / max(len(distances), 1), len(distances)


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("box", [[0.25, 0.25, 1.0, 1.0], [0.4, 0.1, 1.0, 0.6]])
def test_the_loss_is_that_of_a_loop_over_cells(flips: tuple[bool, bool], box: list[float]) -> None:
    torch.manual_seed(1)
    own, maps, target = objective(), torch.randn(1, 3, 8, 8).double(), torch.randn(1, 4, 3, 3).double()
    seen = view([0.0, 0.125, 0.75, 0.875], flipped=flips[0])
    other = view(box, flipped=flips[1], role="local")
    expected, inside = plain_loss(own, maps[0], target[0], seen, other)
    assert 0 < inside < 9
    assert own([maps], [target], [seen, other], NOW).total.item() == pytest.approx(expected, rel=1e-6)


def test_without_a_cell_inside_the_loss_is_a_zero_with_a_gradient() -> None:
    own, maps = objective(), torch.randn(1, 3, 8, 8).double().requires_grad_()
    apart = [view([0.0, 0.0, 0.4, 0.4]), view([0.6, 0.6, 1.0, 1.0], role="local")]
    loss = own([maps], [torch.randn(1, 4, 3, 3).double()], apart, NOW).total
    loss.backward()
    assert loss.item() == 0
    assert maps.grad is not None
    assert float(maps.grad.abs().sum()) == 0


def test_a_map_that_tells_the_target_is_predicted() -> None:
    """The student's map is an affine function of the target on the same crop: fitted, the loss is zero."""
    torch.manual_seed(2)
    own, target = objective(4), torch.randn(2, 4, 8, 8).double()
    mixed = torch.einsum("dc,bchw->bdhw", torch.randn(4, 4).double(), target) + 0.3
    views = [view([0, 0, 1, 1], batch=2), view([0, 0, 1, 1], role="local", batch=2)]
    optimiser = torch.optim.LBFGS(own.parameters(), max_iter=400, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = own([mixed], [target], views, NOW).total
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[arg-type]
    assert float(closure().detach()) < 1e-6


def test_statistics_begin_with_the_first_batch_and_move_afterwards() -> None:
    own = objective()
    first, second = torch.randn(2, 4, 3, 3).double() + 5, torch.randn(2, 4, 3, 3).double()
    own.update([], [first])
    assert torch.allclose(own.mean, first.mean(dim=(0, 2, 3)))
    own.update([], [second])
    expected = 0.9 * first.mean(dim=(0, 2, 3)) + 0.1 * second.mean(dim=(0, 2, 3))
    assert torch.allclose(own.mean, expected)
    again = objective()
    again.load_state_dict(own.state_dict())
    views = [view([0, 0, 1, 1], batch=2), view([0, 0, 1, 1], role="local", batch=2)]
    maps = torch.randn(2, 3, 8, 8).double()
    assert torch.equal(own([maps], [second], views, NOW).total, again([maps], [second], views, NOW).total)


def test_tokens_are_predicted_as_maps() -> None:
    own, target = objective(), torch.randn(1, 4, 4, 4).double()
    views, maps = [view([0, 0, 1, 1]), view([0, 0, 1, 1], role="local")], torch.randn(1, 3, 8, 8).double()
    tokens = target.flatten(2).transpose(1, 2)
    assert torch.equal(own([maps], [target], views, NOW).total, own([maps], [tokens], views, NOW).total)


def test_only_features_as_they_are_can_be_compared() -> None:
    with pytest.raises(DovetailError, match="needs a RawHeadSpec"):
        FeaturePredictionSpec(3, 4).build(VectorHeadSpec(8, 4))
