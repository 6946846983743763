"""Every method of the table trains on views that are not square."""

from __future__ import annotations

import pytest
import torch

from dovetail.recipes.table import examples
from dovetail.schedules import Moment
from tests.tiny import START, make_views, tiny_learner

SIZE = (64, 96)
# A family each: dense losses with aligned maps, matched cells, distances; segments; images; tokens, masks and queries.
QUICK = {"slotcon", "decon-ml-densecl", "decon-sl-pixpro", "decon-sl-detcon", "moco-v2", "encoder-targets"}
QUICK |= {"dino", "ibot", "selfpatch", "pqcl", "adclr-dino", "adclr+decon"}
METHODS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in examples()]


@pytest.mark.parametrize("method", METHODS)
def test_two_steps_on_views_of_64x96(method: str) -> None:
    learner = tiny_learner(method, image_size=SIZE)
    plan = learner.recipe.views
    assert plan.views[0].size_px == SIZE
    assert all(spec.sides[0] < spec.sides[1] for spec in plan.views)
    trained = [value for value in learner.parameters() if value.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.05)
    for step in range(2):
        total = learner(make_views(plan, seed=step), START).total
        assert torch.isfinite(total)
        optimiser.zero_grad()
        total.backward()
        assert all(value.grad is not None for value in trained)
        optimiser.step()
        learner.update()
        learner.move_teacher(Moment(50, 100, 10))


def test_quick_methods_are_in_the_table() -> None:
    assert set(examples()) >= QUICK
