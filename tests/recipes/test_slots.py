"""SlotCon's recipe has the settings of its official code."""

from __future__ import annotations

import pytest

from dovetail.heads.slots import SlotHeadSpec
from dovetail.objectives.slots import SlotSpec
from dovetail.recipe import Cells, Recipe, Tap
from dovetail.recipes.slots import slotcon
from dovetail.schedules import Cosine, Moment
from dovetail.views.plan import Photometric, ViewSpec

TAPS = {f"c{level}": Tap(2 ** (level + 6), 2**level, "map", "encoder") for level in (2, 3, 4, 5)}


@pytest.fixture
def recipe() -> Recipe:
    return slotcon(TAPS)


def test_one_term_on_the_deepest_map(recipe: Recipe) -> None:
    (term,) = recipe.terms
    assert (term.tap, term.weight, term.cells, term.roles) == ("c5", 1.0, Cells(), ("global",))
    assert term.head == SlotHeadSpec(hidden=4096, dim=256, prototypes=256)
    assert term.objective == SlotSpec(
        student_temperature=0.1,
        teacher_temperature=0.07,
        grouping_temperature=0.07,
        grouping_eps=1e-6,
        contrast_temperature=0.2,
        group_weight=0.5,
        centre_momentum=0.9,
        predictor_hidden=4096,
        reference_disjoint_crops=False,
    )


def test_the_grouping_has_the_teachers_temperature() -> None:
    objective = slotcon(TAPS, teacher_temperature=0.05).terms[0].objective
    assert isinstance(objective, SlotSpec)
    assert (objective.teacher_temperature, objective.grouping_temperature) == (0.05, 0.05)


def test_views_are_byols_pair_on_overlapping_crops(recipe: Recipe) -> None:
    colours = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "jitter_p": 0.8, "grey_p": 0.2}
    pair = [
        ViewSpec(
            size_px=224,
            scale=(0.08, 1.0),
            ratio=(3 / 4, 4 / 3),
            interpolation="bicubic",
            flip_p=0.5,
            photometric=Photometric(
                **colours, blur_p=blur, blur_sigma_px=(0.1, 2.0), solarise_p=solarise, solarise_threshold=128
            ),
        )
        for blur, solarise in ((1.0, 0.0), (0.1, 0.2))
    ]
    assert list(recipe.views.views) == pair
    assert (recipe.views.min_overlap, recipe.views.overlap_tries) == (0.01, 10)


def test_the_learning_rate_warms_up_from_a_hundredth_and_ends_at_a_millionth(recipe: Recipe) -> None:
    optimiser = recipe.optimiser
    assert (optimiser.name, optimiser.momentum, optimiser.weight_decay) == ("lars", 0.9, 1e-5)
    assert not optimiser.decay_one_dimensional
    peak = optimiser.peak_lr(recipe.batch_size)
    assert (recipe.epochs, recipe.batch_size, peak) == (800, 512, 2.0)
    rate = optimiser.lr_schedule(peak)
    at = [rate(Moment(epoch, 800, 1)) for epoch in (0, 5, 800)]
    assert at == pytest.approx([0.02, 2.0, 1e-6])


def test_the_teacher_slows_down_and_is_exported(recipe: Recipe) -> None:
    assert recipe.teacher_momentum == Cosine(0.99, 1.0)
    assert (recipe.teacher_buffers, recipe.forward_views, recipe.export) == ("own", "per_view", "teacher")
    assert not recipe.shuffle_batch_norm
