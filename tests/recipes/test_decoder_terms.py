"""DeCon as a transformer: which terms it makes, with which weights, and what it refuses."""

from __future__ import annotations

import pytest

from dovetail.errors import DovetailError
from dovetail.heads.slots import SlotHeadSpec
from dovetail.objectives.dense import DenseContrastSpec
from dovetail.objectives.slots import SlotSpec
from dovetail.recipe import Cells, Recipe, Tap
from dovetail.recipes.table import RUN_WIDE, build, options_of
from dovetail.schedules import Cosine, Moment, value_at
from dovetail.views.plan import PointSpec
from tests.tiny import tiny_learner

TAPS = {
    "c5": Tap(512, 32, "map", "encoder"),
    "p2": Tap(64, 4, "map", "decoder"),
    "p3": Tap(64, 8, "map", "decoder"),
    "p4": Tap(64, 16, "map", "decoder"),
}
START = Moment(0, 10, 5)


def weights(recipe: Recipe) -> dict[str, float]:
    return {term.name: value_at(term.weight, START) for term in recipe.terms}


def test_one_level_is_the_finest_by_default() -> None:
    recipe = build("decon-sl", TAPS, {"alpha": 0.25})
    assert weights(recipe) == {"encoder": 0.25, "decoder_p2": 0.75}
    assert [term.tap for term in recipe.terms] == ["c5", "p2"]


def test_all_levels_share_the_decoder_weight_and_drop_laterals() -> None:
    recipe = build("decon-ml", TAPS, {"alpha": 0.4})
    assert weights(recipe) == pytest.approx({"encoder": 0.4, "decoder_p2": 0.2, "decoder_p3": 0.2, "decoder_p4": 0.2})
    assert recipe.lateral_dropout is not None
    assert recipe.lateral_dropout.p == 0.5
    assert build("decon-sl", TAPS).lateral_dropout is None


def test_alpha_zero_leaves_the_encoder_without_terms() -> None:
    assert weights(build("decon-sl", TAPS, {"alpha": 0.0})) == {"decoder_p2": 1.0}


@pytest.mark.parametrize(
    ("option", "value"), [("alpha", -0.1), ("alpha", 1.5), ("alpha", 1.0), ("lateral_dropout", 1.0)]
)
def test_shares_out_of_range_get_a_sentence(option: str, value: float) -> None:
    with pytest.raises(DovetailError, match=option):
        build("decon-sl", TAPS, {option: value})


def test_levels_by_name() -> None:
    recipe = build("decon-sl", TAPS, {"levels": "p4, p3"})
    assert [term.tap for term in recipe.terms] == ["c5", "p4", "p3"]
    with pytest.raises(DovetailError, match="has no level 'p7'; it has p2, p3, p4"):
        build("decon-sl", TAPS, {"levels": "p7"})


def test_a_model_without_a_decoder_gets_a_sentence() -> None:
    with pytest.raises(DovetailError, match="no decoder"):
        build("decon-sl", {"c5": TAPS["c5"]})


def test_decoder_prototypes_can_differ() -> None:
    recipe = build("decon-sl", TAPS, {"prototypes": 10, "decoder_prototypes": 20})
    assert [head.prototypes for term in recipe.terms if isinstance(head := term.head, SlotHeadSpec)] == [10, 20]


def test_the_decoder_can_have_negatives_of_its_own_images() -> None:
    for method in ("decon-sl-densecl", "slotcon+decon-sl-densecl"):
        encoder, decoder = build(method, TAPS, {"decoder_cell_negatives": 0.2}).terms
        assert isinstance(decoder.objective, DenseContrastSpec)
        assert decoder.objective.cell_negatives == 0.2
        assert getattr(encoder.objective, "cell_negatives", 0.0) == 0.0
    both = build("decon-sl-densecl", TAPS, {"cell_negatives": 0.7}).terms
    assert [term.objective.cell_negatives for term in both] == [0.7, 0.7]  # type: ignore[attr-defined]
    assert build("decon-sl-pixpro", TAPS, {"decoder_cell_negatives": 0.2}) == build("decon-sl-pixpro", TAPS)


def test_the_decoders_padding_is_the_recipes() -> None:
    assert build("decon-ml-densecl", TAPS).decoder_padding == "zeros"
    assert build("decon-ml-densecl", TAPS, {"decoder_padding": "reflect"}).decoder_padding == "reflect"


@pytest.mark.parametrize("base", ["pixpro", "slotcon"])
def test_every_option_of_the_decoders_method_reaches_it(base: str) -> None:
    """Those that mean the whole run, and those that the transformer has itself, are the other ones."""
    known = options_of(f"densecl+decon-sl-{base}")
    missing = {name for name in options_of(base) if f"decoder_{name}" not in known}
    whole = {"export", "optimiser", "encoder_lr_scale", "decoder_lr_scale", "encoder_init", "layer_decay"}
    assert missing == (set(options_of(base)) & RUN_WIDE) | whole
    plain = build(f"densecl+decon-sl-{base}", TAPS).terms[1]
    for name, parameter in options_of(base).items():
        if name in missing or name == "grid" or not isinstance(parameter.default, int | float):
            continue  # the transformer pools by `decoder_grid`
        value = parameter.default * 0.9 or 0.5 if isinstance(parameter.default, float) else parameter.default + 3
        value = not parameter.default if isinstance(parameter.default, bool) else value
        changed = build(f"densecl+decon-sl-{base}", TAPS, {f"decoder_{name}": value}).terms[1]
        assert changed != plain, name


def test_cells_are_sampled_where_a_level_has_more_than_its_share() -> None:
    recipe = build("decon-ml", TAPS, {"decoder_cells": 600})
    cells = {term.name: term.cells for term in recipe.terms}
    assert cells["encoder"] == Cells()
    assert cells["decoder_p2"] == cells["decoder_p3"] == Cells(points=200)
    assert cells["decoder_p4"] == Cells(grid=56)  # 14 x 14 of its own
    assert recipe.views.points == PointSpec(200, "overlap")
    assert build("decon-sl", TAPS, {"decoder_cells": 3136}).views.points is None
    assert build("decon-ml-densecl", TAPS, {"decoder_cells": 600}).views.points == PointSpec(200, "view")


def test_heads_of_whole_images_see_the_whole_map() -> None:
    recipe = build("decon-sl-byol", TAPS, {"decoder_cells": 196})
    assert recipe.terms[1].cells == Cells(grid=56)
    assert recipe.views.points is None


def test_published_cells_are_all_pooled() -> None:
    recipe = build("decon-ml", TAPS)
    assert [term.cells for term in recipe.terms] == [Cells(), *[Cells(grid=56)] * 3]
    assert recipe.views.points is None


def test_heads_are_recomputed_on_many_cells_only() -> None:
    for options, recomputed in (({"decoder_cells": 196}, False), ({"decoder_cells": 400}, True), ({}, True)):
        assert build("decon-sl", TAPS, options).terms[1].checkpoint_head is recomputed


def test_the_border_is_that_of_the_coarsest_level_sampled() -> None:
    recipe = build("decon-ml", TAPS, {"decoder_cells": 600, "border_cells": 2})
    assert recipe.views.points == PointSpec(200, "overlap", margin=2 / 28)
    assert recipe.terms[3].cells == Cells(grid=56, border=2)
    with pytest.raises(DovetailError, match="border_cells 30 leaves no cell"):
        build("decon-sl", TAPS, {"decoder_cells": 196, "border_cells": 30})


def test_the_width_of_the_decoders_heads_can_differ() -> None:
    encoder, decoder = build("decon-sl", TAPS, {"hidden": 64, "decoder_hidden": 16}).terms
    assert [getattr(term.head, "hidden") for term in (encoder, decoder)] == [64, 16]  # noqa: B009
    assert isinstance(decoder.objective, SlotSpec)
    assert decoder.objective.predictor_hidden == 16
    for base, predictor in (("byol", 16), ("moco-v3", 16), ("simsiam", 512)):
        objective = build(f"decon-sl-{base}", TAPS, {"hidden": 64, "decoder_hidden": 16}).terms[1].objective
        assert getattr(objective, "predictor").hidden == predictor  # noqa: B009
    plain, narrow = (build("simclr+decon-sl", TAPS, options) for options in ({}, {"decoder_hidden": 16}))
    assert [getattr(one.terms[1].head, "hidden") for one in (plain, narrow)] == [4096, 16]  # noqa: B009


def test_another_base_on_the_decoder() -> None:
    recipe = build("densecl+decon-sl", TAPS)
    names = [(term.name, type(term.objective).__name__) for term in recipe.terms]
    assert names[-1] == ("decoder_p2", "SlotSpec")
    assert names[0][1] != "SlotSpec"
    assert recipe.views.min_overlap > 0  # SlotCon needs crops that overlap


def test_every_level_of_a_base_has_its_own_head_and_objective() -> None:
    for base in ("densecl", "pixpro", "simclr"):
        recipe = build(f"decon-ml-{base}", TAPS)
        assert [term.tap for term in recipe.terms][1:] == ["p2", "p3", "p4"]
        assert len({term.name for term in recipe.terms}) == 4


def test_a_method_without_a_teacher_takes_that_of_the_decoders() -> None:
    recipe = build("simclr+decon-sl-byol", TAPS, {"decoder_momentum": 0.9})
    assert recipe.teacher_momentum == Cosine(0.9, 1.0)
    assert build("simclr+decon-sl-barlow", TAPS).teacher_momentum is None
    assert build("byol+decon-sl-simclr", TAPS, {"momentum": 0.8}).teacher_momentum == Cosine(0.8, 1.0)


def test_the_decoders_group_weight_is_its_own() -> None:
    encoder, decoder = build("decon-sl", TAPS, {"decoder_group_weight": 0.25}).terms
    assert (encoder.objective.group_weight, decoder.objective.group_weight) == (0.5, 0.25)  # type: ignore[attr-defined]
    same = build("decon-sl", TAPS, {"group_weight": 0.3}).terms
    assert [term.objective.group_weight for term in same] == [0.3, 0.3]  # type: ignore[attr-defined]
    with pytest.raises(DovetailError, match=r"decoder_group_weight is 1\.5"):
        build("decon-sl", TAPS, {"decoder_group_weight": 1.5})


@pytest.mark.parametrize("dropped", [True, False])
def test_the_teacher_sees_all_laterals_where_asked_to(dropped: bool) -> None:
    learner = tiny_learner("decon-ml", teacher_lateral_dropout=dropped)
    assert learner.student.network.rules.lateral_dropout is not None
    assert learner.teacher is not None
    assert (learner.teacher.network.rules.lateral_dropout is not None) == dropped
