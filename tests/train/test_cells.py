"""What a term sees of its tap: all cells, pooled, without a border, or sampled; and the views that go with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dovetail.errors import DovetailError
from dovetail.objectives.slots import SlotSpec
from dovetail.recipe import Cells, Tap, Term
from dovetail.train.cells import chosen_cells, view_of_cells
from dovetail.views.plan import PointSpec
from dovetail.views.view import View
from tests.tiny import START, make_views, tiny_learner

MAP = Tap(3, 4, "map", "decoder")


def view(points: torch.Tensor | None = None) -> View:
    box = torch.tensor([[0.0, 0.2, 0.8, 1.0]])
    return View(torch.zeros(1, 3, 32, 32), box, torch.tensor([False]), torch.full((1, 2), 50.0), points=points)


def test_a_border_is_cut_before_pooling_and_off_the_views_box() -> None:
    value = torch.arange(64.0).view(1, 1, 8, 8)
    cells = Cells(grid=2, border=2)
    expected = torch.nn.functional.adaptive_avg_pool2d(value[:, :, 2:6, 2:6], 2)
    torch.testing.assert_close(chosen_cells(cells, value, view()), expected)
    torch.testing.assert_close(view_of_cells(cells, view(), MAP).box, torch.tensor([[0.2, 0.4, 0.6, 0.8]]))
    assert view_of_cells(Cells(), view(), MAP).box.equal(view().box)


@pytest.mark.parametrize(("side", "kept"), [(8, 2), (5, 1), (2, 2), (1, 1)])
def test_a_small_map_keeps_its_middle(side: int, kept: int) -> None:
    value = torch.zeros(1, 1, side, side)
    assert chosen_cells(Cells(border=9), value, view()).shape == (1, 1, kept, kept)


def test_sampled_cells_are_rows_and_the_objective_learns_the_maps_size() -> None:
    points = torch.tensor([[[0.2, 0.4], [0.6, 0.9], [0.1, 0.3]]])
    cells = Cells(points=3)
    assert chosen_cells(cells, torch.zeros(1, 5, 8, 8), view(points)).shape == (1, 5, 3, 1)
    seen = view_of_cells(cells, view(points), MAP)
    assert seen.map_size == (8, 8)
    assert seen.points is points
    assert view_of_cells(Cells(), view(points), MAP).points is None
    with pytest.raises(DovetailError, match="the view has none"):
        chosen_cells(cells, torch.zeros(1, 5, 8, 8), view())


def test_cells_are_chosen_in_one_way() -> None:
    with pytest.raises(DovetailError, match="cannot have a grid or a border"):
        Cells(grid=4, points=3)


def test_terms_and_views_agree_on_the_points() -> None:
    recipe = tiny_learner("decon-sl", decoder_cells=24).recipe
    assert recipe.views.points == PointSpec(24)
    with pytest.raises(DovetailError, match=r"samples 24 points in the overlap of each view; set points=PointSpec"):
        replace(recipe, views=replace(recipe.views, points=None))
    byol = tiny_learner("decon-sl-byol").recipe
    with pytest.raises(DovetailError, match="compares whole feature maps"):
        byol.with_terms(*(replace(term, cells=Cells(points=24)) for term in byol.terms))


def test_the_encoder_of_a_sampled_run_is_compared_whole() -> None:
    """Its term's loss is the one that it has without points."""
    sampled, plain = tiny_learner("decon-sl", decoder_cells=24), tiny_learner("decon-sl")
    plain.load_state_dict(sampled.state_dict())
    views = make_views(sampled.recipe.views)
    found, expected = (learner(views, START).parts for learner in (sampled, plain))
    assert found["encoder/loss"].equal(expected["encoder/loss"])
    assert not found["decoder_p2/loss"].equal(expected["decoder_p2/loss"])


def test_without_a_border_the_gradient_stays_inside() -> None:
    learner = tiny_learner("decon-sl", border_cells=3)
    learner.recipe.check(learner.student.network.taps)
    term = learner.recipe.terms[1]
    assert isinstance(term, Term)
    assert isinstance(term.objective, SlotSpec)
    value = torch.randn(2, 4, 16, 16, requires_grad=True)
    chosen_cells(term.cells, value, make_views(learner.recipe.views, batch=2)[0]).square().sum().backward()
    assert value.grad is not None
    reached = value.grad.abs().sum((0, 1)) > 0
    assert reached[3:13, 3:13].all()
    assert int(reached.sum()) == 100
    loss = learner(make_views(learner.recipe.views), START).total
    assert torch.isfinite(loss)
    loss.backward()


def test_maps_are_averaged_over_the_segments_that_the_loss_is_told() -> None:
    """The map shows the number of each cell's segment, so the means are those numbers, without the border, too."""
    numbers = torch.arange(16.0).view(1, 1, 4, 4)
    pixels = numbers.repeat_interleave(8, 2).repeat_interleave(8, 3)
    segmented = replace(view(), pixels=torch.zeros(1, 3, 32, 32), segments=pixels[:, 0].int(), picks=torch.rand(1, 9))
    tap = replace(MAP, stride=8)
    for border, allowed in ((0, range(16)), (1, (5, 6, 9, 10))):
        cells = Cells(segments=9, border=border)
        ids = view_of_cells(cells, segmented, tap).ids
        assert ids is not None
        assert set(ids.flatten().tolist()) <= set(allowed)
        torch.testing.assert_close(chosen_cells(cells, numbers, segmented, tap)[0, 0, :, 0], ids[0].float())
    with pytest.raises(DovetailError, match=r"has 4 x 4 cells, expected 2 x 2"):
        chosen_cells(cells, numbers, segmented, replace(MAP, stride=16))
    with pytest.raises(DovetailError, match="the view has none; add segments"):
        chosen_cells(cells, numbers, view())
