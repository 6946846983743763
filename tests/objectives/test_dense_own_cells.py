"""DenseCL's negatives from the same image: against plain loops, and nothing where they are off or too near."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from dovetail.errors import DovetailError
from dovetail.heads.dense import DenseHeadSpec, DenseOutput
from dovetail.objectives.dense import DenseContrast, DenseContrastSpec, correspondences
from dovetail.schedules import Moment
from dovetail.views.view import View

NOW = Moment(0, 1, 1)
BATCH, SIDE = 2, 4


def view(*boxes: tuple[float, float, float, float], flipped: tuple[bool, ...] = (False, True)) -> View:
    return View(
        pixels=torch.zeros(BATCH, 3, 8, 8),
        box=torch.tensor(boxes),
        flipped=torch.tensor(flipped),
        source_px=torch.full((BATCH, 2), 10_000.0),
    )


VIEWS = [view((0.0, 0.0, 0.5, 0.5), (0.2, 0.1, 1.0, 0.9)), view((0.25, 0.25, 1.0, 1.0), (0.0, 0.0, 0.6, 0.8))]


def output(seed: int) -> DenseOutput:
    generator = torch.Generator().manual_seed(seed)
    embedding, pooled = (F.normalize(torch.randn(BATCH, 5, generator=generator), dim=1) for _ in range(2))
    cells = F.normalize(torch.randn(BATCH, 5, SIDE, SIDE, generator=generator), dim=1)
    return DenseOutput(embedding, cells, pooled, torch.randn(BATCH, 7, SIDE, SIDE, generator=generator))


def objective(cell_negatives: float = 0.0, *, at_once: int = 2**25) -> DenseContrast:
    torch.manual_seed(1)
    spec = DenseContrastSpec(queue=12, cell_negatives=cell_negatives, similarities_at_once=at_once)
    return spec.build(DenseHeadSpec(hidden=6, dim=5))


def answer(module: DenseContrast) -> tuple[Tensor, Tensor]:
    """Return the dense part and the gradient that the cells of the query get."""
    query, key = output(2), output(3)
    cells = query.cells.clone().requires_grad_()
    loss = module([query._replace(cells=cells), None], [None, key], VIEWS, NOW)  # type: ignore[list-item]
    loss.total.backward()
    assert cells.grad is not None
    return loss.parts["dense"], cells.grad


def place(view: View, image: int, cell: int) -> tuple[float, float]:
    """Return the centre of a cell in the source image."""
    x1, y1, x2, y2 = view.box[image].tolist()
    across, down = (cell % SIDE + 0.5) / SIDE, (cell // SIDE + 0.5) / SIDE
    across = 1 - across if bool(view.flipped[image]) else across
    return x1 + across * (x2 - x1), y1 + down * (y2 - y1)


def by_loops(module: DenseContrast, distance: float) -> Tensor:
    query, key = output(2), output(3)
    index = correspondences(query.features, key.features)
    losses = []
    for image in range(BATCH):
        cells, keys = query.cells[image].flatten(1).T, key.cells[image].flatten(1).T
        for cell in range(SIDE**2):
            match = int(index[image, cell])
            here, there = place(VIEWS[0], image, cell), place(VIEWS[1], image, match)
            apart = [
                math.dist(here, at) >= distance and math.dist(there, at) >= distance
                for at in (place(VIEWS[1], image, other) for other in range(SIDE**2))
            ]
            negatives = torch.cat([module.queue_dense.vectors.T, keys[torch.tensor(apart)]])
            logits = torch.cat([keys[match : match + 1], negatives]) @ cells[cell] / module.spec.temperature
            losses.append(F.cross_entropy(logits[None], torch.tensor([0])))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("distance", [0.05, 0.17, 0.41])
def test_cells_that_lie_apart_are_negatives(distance: float) -> None:
    module = objective(distance)
    dense, _ = answer(module)
    assert_close(dense, by_loops(module, distance), rtol=1e-4, atol=1e-5)
    assert float(dense) > float(answer(objective())[0])


def test_cells_sampled_at_their_centres_have_the_loss_of_the_map() -> None:
    def rows(one: DenseOutput) -> DenseOutput:
        return one._replace(cells=one.cells.flatten(2)[..., None], features=one.features.flatten(2)[..., None])

    def sampled(one: View) -> View:
        centres = [[place(one, image, cell) for cell in range(SIDE**2)] for image in range(BATCH)]
        return replace(one, points=torch.tensor(centres), map_size=(SIDE, SIDE))

    module = objective(0.17)
    views = [sampled(one) for one in VIEWS]
    loss = module([rows(output(2)), None], [None, rows(output(3))], views, NOW)  # type: ignore[list-item]
    assert_close(loss.parts["dense"], answer(module)[0])


def test_crops_that_share_nothing_have_a_loss_and_a_gradient() -> None:
    apart = [view((0.0, 0.0, 0.3, 0.3), (0.0, 0.0, 0.3, 0.3)), view((0.7, 0.7, 1.0, 1.0), (0.7, 0.7, 1.0, 1.0))]
    cells = output(2).cells.clone().requires_grad_()
    query = output(2)._replace(cells=cells)
    loss = objective(0.17)([query, None], [None, output(3)], apart, NOW)  # type: ignore[list-item]
    loss.total.backward()
    assert bool(loss.total.isfinite())
    assert cells.grad is not None
    assert bool(cells.grad.isfinite().all())


def test_without_cells_that_lie_apart_the_loss_is_densecls_to_the_bit() -> None:
    off, on = answer(objective()), answer(objective(1e6))
    assert torch.equal(off[0], on[0])
    assert torch.equal(off[1], on[1])


def test_pieces_have_the_same_value_and_gradient() -> None:
    whole, pieces = answer(objective(0.17)), answer(objective(0.17, at_once=70))
    assert_close(whole[0], pieces[0])
    assert_close(whole[1], pieces[1])


def test_the_gradient_pulls_a_cell_from_others_of_its_image() -> None:
    """Equal cells all over an image: only negatives from the same image give their likeness a gradient."""
    query, key = output(2), output(3)
    alike = key.cells.mean(dim=(2, 3), keepdim=True).expand_as(key.cells).contiguous()
    cells = F.normalize(alike, dim=1).requires_grad_()
    key = key._replace(cells=F.normalize(key.cells + 2 * alike, dim=1))
    losses = {}
    for distance in (0.0, 0.17):
        module = objective(distance)
        module.queue_dense.vectors.zero_()
        losses[distance] = module([query._replace(cells=cells), None], [None, key], VIEWS, NOW)  # type: ignore[list-item]
    more = losses[0.17].total - losses[0.0].total
    assert float(more.detach()) > 0
    (gradient,) = torch.autograd.grad(more, cells)
    others = F.normalize(key.cells.mean(dim=(2, 3), keepdim=True), dim=1)
    assert float((gradient * others).sum()) > 0  # a step down moves cells away from what their image shares


def test_negative_distances_are_refused() -> None:
    with pytest.raises(DovetailError, match=r"cell_negatives is -1; it must not be negative"):
        DenseContrastSpec(cell_negatives=-1)
