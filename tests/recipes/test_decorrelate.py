"""What is particular to Barlow Twins, ZeroCL and VICReg; what they share with others is in test_image."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dovetail.errors import DovetailError
from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives.decorrelate import BarlowSpec, VICRegSpec
from dovetail.objectives.whiten import ZeroCLSpec
from dovetail.recipe import Recipe, Tap
from dovetail.recipes.decorrelate import barlow, vicreg, zerocl

TAPS = {"c5": Tap(20, 32, "map", "encoder")}


def test_the_papers_settings() -> None:
    (term,) = barlow(TAPS).terms
    assert term.head == VectorHeadSpec(8192, 8192, layers=3, bias=False)
    assert term.objective == BarlowSpec(0.0051, 1.0)
    assert vicreg(TAPS).terms[0].objective == VICRegSpec(25.0, 25.0, 1.0, 1.0)
    assert zerocl(TAPS).terms[0].objective == ZeroCLSpec("both")


def test_options_reach_their_objectives() -> None:
    assert vicreg(TAPS, variance_scale=0.5).terms[0].objective == VICRegSpec(variance_scale=0.5)
    assert barlow(TAPS, loss_scale=0.1).terms[0].objective == BarlowSpec(loss_scale=0.1)
    assert zerocl(TAPS, mode="feature").terms[0].objective == ZeroCLSpec("feature")


def test_vicreg_s_views_are_alike_and_barlow_s_are_not() -> None:
    first, second = vicreg(TAPS).views.views
    assert first == second
    first, second = barlow(TAPS).views.views
    assert first != second


@pytest.mark.parametrize("recipe", [barlow, zerocl])
def test_a_learning_rate_of_zero_is_refused(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(DovetailError, match="above 0"):
        recipe(TAPS, base_lr=0.0)


@pytest.mark.parametrize(("recipe", "end"), [(barlow, 0.0016), (vicreg, 0.002)])
def test_the_rate_ends_at_a_share_of_its_peak(recipe: Callable[..., Recipe], end: float) -> None:
    optimiser = recipe(TAPS).optimiser
    for batch in (32, 2048):
        schedule = optimiser.lr_schedule(optimiser.peak_lr(batch))
        assert schedule.end == pytest.approx(end * batch / 2048)
