"""The defaults of every method are the documented settings of its paper or its official code."""

from __future__ import annotations

import pytest

from dovetail.heads.aggregate import SelfPatchHeadSpec
from dovetail.heads.base import HeadSpec
from dovetail.heads.dense import DenseHeadSpec, PixelHeadSpec
from dovetail.heads.prototypes import PrototypeHeadSpec
from dovetail.heads.raw import RawHeadSpec
from dovetail.heads.segments import SegmentHeadSpec
from dovetail.heads.slots import SlotHeadSpec
from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives.contrast import KeyContrastSpec, NTXentSpec, QueueContrastSpec
from dovetail.objectives.decorrelate import BarlowSpec, VICRegSpec
from dovetail.objectives.dense import DenseContrastSpec
from dovetail.objectives.distill import DistillSpec
from dovetail.objectives.objective import ObjectiveSpec
from dovetail.objectives.patches import MaskedPatchSpec, SelfPatchSpec
from dovetail.objectives.pixels import PixelConsistencySpec
from dovetail.objectives.prediction import FeaturePredictionSpec
from dovetail.objectives.regress import RegressSpec
from dovetail.objectives.segments import SegmentContrastSpec
from dovetail.objectives.slots import SlotSpec
from dovetail.objectives.vector import PredictorSpec
from dovetail.objectives.whiten import ZeroCLSpec
from dovetail.recipe import Cells, LateralDropout, QueryRule, Recipe, SameHead, Tap
from dovetail.recipes.table import METHODS, build
from dovetail.schedules import Cosine, LinearByEpoch, Moment, value_at
from dovetail.views.plan import Photometric

CNN = {f"c{level}": Tap(2 ** (level + 6), 2**level, "map", "encoder") for level in (2, 3, 4, 5)}
PYRAMID = CNN | {f"p{level}": Tap(256, 2**level, "map", "decoder") for level in (2, 3, 4, 5)}
VIT = {
    "cls": Tap(384, 16, "vector", "encoder"),
    "patches": Tap(384, 16, "tokens", "encoder"),
    "patches_prenorm": Tap(384, 16, "tokens", "encoder"),
    "queries": Tap(384, 16, "tokens", "encoder"),
}
WARMED = LinearByEpoch(0.04, 0.07, 30)
FLAT = LinearByEpoch(0.04, 0.04, 0)
DINO_HEAD = PrototypeHeadSpec(2048, 256, 65536, layers=3, norm=False, learned_magnitude=False)
IBOT_HEAD = PrototypeHeadSpec(2048, 256, 8192, layers=3, norm=False, learned_magnitude=True)

# Method -> head and objective of its first term.
TERMS: dict[str, tuple[HeadSpec, ObjectiveSpec]] = {
    "slotcon": (SlotHeadSpec(4096, 256, 256), SlotSpec(0.1, 0.07, 0.07, 1e-6, 0.2, 0.5, 0.9, 4096)),
    "densecl": (DenseHeadSpec(2048, 128), DenseContrastSpec(0.2, 65536, 0.5)),
    "pixpro": (PixelHeadSpec(4096, 256, False), PixelConsistencySpec(0.7, 2.0, 0.0, 1, 0.0)),
    "simclr": (VectorHeadSpec(2048, 128, bias=False, last_norm="affine"), NTXentSpec(0.1)),
    "moco-v2": (VectorHeadSpec(2048, 128, norm=False), QueueContrastSpec(0.2, 65536, False)),
    "byol": (VectorHeadSpec(4096, 256), RegressSpec("teacher", "squared_distance", PredictorSpec(4096))),
    "detcon": (SegmentHeadSpec(4096, 256), SegmentContrastSpec(0.1, PredictorSpec(4096, last_bias=False), 1024)),
    "simsiam": (
        VectorHeadSpec(2048, 2048, 3, bias=False, last_norm="plain"),
        RegressSpec("student", "negative_cosine", PredictorSpec(512, bias=False, last_bias=True)),
    ),
    "barlow": (VectorHeadSpec(8192, 8192, 3, bias=False), BarlowSpec(0.0051, 1.0, 1e-5)),
    "zerocl": (VectorHeadSpec(8192, 8192, 3, bias=False), ZeroCLSpec("both", 0.01, 1e-4)),
    "vicreg": (VectorHeadSpec(8192, 8192, 3, bias=False), VICRegSpec(25.0, 25.0, 1.0, 1.0, 1e-4)),
    "moco-v3": (
        VectorHeadSpec(4096, 256, 3, bias=False, last_norm="plain"),
        KeyContrastSpec(0.2, PredictorSpec(4096, bias=False, last_norm="plain")),
    ),
    "dino": (DINO_HEAD, DistillSpec(0.1, FLAT, 0.9, "cross")),
    "ibot": (IBOT_HEAD, DistillSpec(0.1, WARMED, 0.9, "cross")),
    "selfpatch": (
        SelfPatchHeadSpec(DINO_HEAD, PrototypeHeadSpec(2048, 256, 4096), 4, 2, 64, False, 4.0),
        SelfPatchSpec(0.1, FLAT, 0.9, 0.1),
    ),
    "pqcl": (IBOT_HEAD, DistillSpec(0.1, WARMED, 0.9, "cross")),
    "encoder-targets": (RawHeadSpec(), FeaturePredictionSpec(256, 1024)),
}
TOKENS = {"moco-v3", "dino", "ibot", "selfpatch", "pqcl"}

# Method -> optimiser, learning rate at 256 images, decay at the start, epochs of warm-up, first rate's share of the
# peak, epochs, batch, teacher's momentum at the start (or throughout).
RUNS = {
    "slotcon": ("lars", 1.0, 1e-5, 5, 0.01, 800, 512, 0.99),
    "densecl": ("sgd", 0.3, 1e-4, 0, 1, 800, 256, 0.999),
    "pixpro": ("lars", 1.0, 1e-5, 5, 0.01, 100, 1024, 0.99),
    "simclr": ("lars", 0.3, 1e-6, 10, 0, 1000, 4096, None),
    "moco-v2": ("sgd", 0.03, 1e-4, 0, 1, 200, 256, 0.999),
    "moco-v3": ("adamw", 1.5e-4, 0.1, 40, 0, 300, 4096, 0.99),
    "byol": ("lars", 0.2, 1.5e-6, 10, 0, 1000, 4096, 0.996),
    "detcon": ("lars", 0.2, 1.5e-6, 3, 0, 300, 4096, 0.996),
    "simsiam": ("sgd", 0.05, 1e-4, 0, 1, 100, 512, None),
    "barlow": ("lars", 0.2, 1.5e-6, 10, 0, 1000, 2048, None),
    "zerocl": ("lars", 0.3, 1e-6, 10, 0, 400, 256, None),
    "vicreg": ("lars", 0.2, 1e-6, 10, 0, 1000, 2048, None),
    "dino": ("adamw", 5e-4, 0.04, 10, 0, 100, 1024, 0.996),
    "ibot": ("adamw", 5e-4, 0.04, 10, 0, 800, 1024, 0.996),
    "selfpatch": ("adamw", 5e-4, 0.04, 10, 0, 300, 1024, 0.996),
    "pqcl": ("adamw", 5e-4, 0.04, 10, 0, 100, 512, 0.996),
    "encoder-targets": ("adamw", 1.6e-2, 0.01, 0.5, 0, 10, 32, 0.99),
}


def recipe_of(method: str) -> Recipe:
    return build(method, VIT if method in TOKENS else PYRAMID if method == "encoder-targets" else CNN)


def test_no_method_is_left_out() -> None:
    assert TERMS.keys() == RUNS.keys() == METHODS.keys()


@pytest.mark.parametrize("method", TERMS)
def test_head_and_objective(method: str) -> None:
    term = recipe_of(method).terms[0]
    assert (term.head, term.objective) == TERMS[method]
    assert (term.weight, term.cells) == (1.0, Cells(segments=16) if method == "detcon" else Cells())


@pytest.mark.parametrize("method", RUNS)
def test_optimiser_and_length(method: str) -> None:
    recipe = recipe_of(method)
    optimiser, start = recipe.optimiser, Moment(0, recipe.epochs * 10, 10)
    momentum = None if recipe.teacher_momentum is None else pytest.approx(value_at(recipe.teacher_momentum, start))
    first = optimiser.lr_schedule(1.0)(start)
    decay = pytest.approx(value_at(optimiser.weight_decay, start))
    lengths = (optimiser.warmup_epochs, pytest.approx(first), recipe.epochs, recipe.batch_size, momentum)
    assert RUNS[method] == (optimiser.name, optimiser.base_lr, decay, *lengths)
    assert optimiser.momentum == 0.9


@pytest.mark.parametrize("method", ["dino", "ibot", "selfpatch", "pqcl", "adclr-dino"])
def test_the_rate_at_the_end_is_an_option(method: str) -> None:
    end = Moment(999, 1000, 10)
    for options, expected in (({}, 1e-6), ({"final_lr": 2e-4}, 2e-4)):
        optimiser = build(method, VIT, options).optimiser
        assert optimiser.final_lr == expected
        assert optimiser.lr_schedule(1e-3)(end) == pytest.approx(expected, abs=1e-8)


def test_ibots_patches_share_the_head_and_have_their_own_centre() -> None:
    patches = recipe_of("ibot").terms[1]
    assert patches.head == SameHead("cls")
    assert patches.objective == MaskedPatchSpec(0.1, WARMED, 0.9)
    late = build("ibot", VIT, {"mask_start_epoch": 7}).terms[1].objective
    assert late == MaskedPatchSpec(0.1, LinearByEpoch(0.04, 0.07, 30, delay_epochs=7), 0.9)


def test_ibots_masks() -> None:
    masks = recipe_of("ibot").views.masks
    assert masks is not None
    assert (masks.patch_px, masks.share, masks.p, masks.shape, masks.start_epoch) == (16, (0.1, 0.5), 0.5, "block", 0)


@pytest.mark.parametrize(
    ("method", "globals_", "locals_", "count"),
    [("dino", 0.4, 0.4, 8), ("ibot", 0.25, 0.25, 10), ("selfpatch", 0.25, 0.25, 8), ("pqcl", 0.25, 0.25, 0)],
)
def test_crops_of_tokens(method: str, globals_: float, locals_: float, count: int) -> None:
    views = recipe_of(method).views.views
    crops = [(view.role, view.size_px, view.scale) for view in views]
    assert crops == [("global", 224, (globals_, 1.0))] * 2 + [("local", 96, (0.05, locals_))] * count
    assert {view.interpolation for view in views} == {"bicubic"}


def test_selfpatchs_teacher_sees_all_views_and_dinos_the_global_ones() -> None:
    assert recipe_of("selfpatch").teacher_views == ("global", "local")
    assert recipe_of("dino").teacher_views == recipe_of("ibot").teacher_views == ("global",)


def test_adclrs_queries() -> None:
    recipe = build("adclr-dino", VIT)
    queries, term = recipe.views.queries, recipe.terms[-1]
    assert queries is not None
    assert (queries.count, queries.size_px, queries.scale, queries.independent) == (10, 16, (0.05, 0.25), False)
    assert (queries.ratio, queries.flip_p, queries.photometric.blur_p) == ((3 / 4, 4 / 3), 0.5, 0.5)
    assert (term.tap, term.head, term.weight, term.roles) == ("queries", SameHead("cls"), 1.0, ("global",))
    assert term.objective == DistillSpec(0.1, FLAT, 0.9, "cross")
    own = {"query_weight": 0.3, "query_centre_momentum": 0.5, "independent_queries": True}
    other = build("adclr-ibot", VIT, own)
    assert other.terms[-1].weight == 0.3
    assert other.terms[-1].objective == DistillSpec(0.1, WARMED, 0.5, "cross")
    assert other.views.queries is not None
    assert other.views.queries.independent


def test_pqcls_queries() -> None:
    recipe = build("pqcl", VIT)
    queries, term = recipe.views.queries, recipe.terms[-1]
    assert queries is not None
    assert (queries.count, queries.size_px, queries.scale, queries.independent) == (1, 96, (0.05, 0.25), False)
    assert (queries.ratio, queries.flip_p, queries.photometric) == ((3 / 4, 4 / 3), 0, Photometric())
    assert (term.tap, term.head, term.weight, term.roles) == ("queries", SameHead("cls"), 1.0, ("global",))
    assert term.objective == DistillSpec(0.1, WARMED, 0.9, "same")
    assert [one.weight for one in recipe.terms] == [1.0, 1.0, 1.0]
    assert recipe.query_rule == QueryRule("unidirectional", "sincos", 6, "mask", reference_positions=False)
    assert [view.photometric for view in recipe.views.views] == [Photometric(blur_p=1.0)] * 2


def test_decons_levels_and_weights() -> None:
    single, all_levels = build("decon-sl", PYRAMID), build("decon-ml", PYRAMID, {"alpha": 0.2})
    assert [(term.tap, term.weight) for term in single.terms] == [("c5", 0.5), ("p2", 0.5)]
    assert single.lateral_dropout is None
    expected = [("c5", 0.2), *((f"p{level}", pytest.approx(0.2)) for level in (2, 3, 4, 5))]
    assert [(term.tap, term.weight) for term in all_levels.terms] == expected
    assert all_levels.lateral_dropout is not None
    assert (all_levels.lateral_dropout.p, all_levels.lateral_dropout.kind) == (0.5, "channel")
    assert {term.objective for term in single.terms} == {TERMS["slotcon"][1]}
    assert {term.head for term in single.terms} == {TERMS["slotcon"][0]}
    assert single.teacher_momentum == Cosine(0.99, 1.0)


def test_who_is_exported() -> None:
    exported = {method: recipe_of(method).export for method in METHODS}
    teachers = {method for method, branch in exported.items() if branch == "teacher"}
    assert teachers == {"slotcon", "dino", "ibot", "selfpatch", "pqcl"}


def test_lateral_dropout_is_what_is_asked_for() -> None:
    recipe = build("decon-ml", PYRAMID, {"lateral_dropout": 0.3, "lateral_dropout_kind": "path"})
    assert recipe.lateral_dropout == LateralDropout(0.3, "path")
