"""DINO, iBOT and SelfPatch as recipes: views, masks, freezing, and who sees what."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dovetail.errors import DovetailError
from dovetail.networks.build import build_network
from dovetail.networks.vit import ViTNetwork, build_vit
from dovetail.recipe import Recipe, SameHead, Tap
from dovetail.recipes.table import build
from dovetail.recipes.tokens import METHODS, dino, ibot, selfpatch
from dovetail.schedules import Moment, value_at
from dovetail.train.learner import Learner
from dovetail.train.reference import build_learner
from dovetail.views.plan import ViewPlan
from tests.networks.vits import tiny_vit
from tests.tiny import START, make_views

SMALL: dict[str, Any] = {
    "hidden": 24,
    "bottleneck": 8,
    "prototypes": 12,
    "image_size": 32,
    "local_size": 16,
    "local_crops": 2,
}
RECIPES: dict[str, Callable[[dict[str, Tap]], Recipe]] = {
    "dino": lambda taps: dino(taps, **SMALL),
    "dino_magnitude": lambda taps: dino(taps, learned_magnitude=True, head_norm=True, **SMALL),
    "ibot": lambda taps: ibot(taps, **SMALL),
    "ibot_separate": lambda taps: ibot(taps, shared_head=False, patch_prototypes=7, **SMALL),
    "ibot_norm": lambda taps: ibot(taps, head_norm=True, **SMALL),
    "selfpatch": lambda taps: selfpatch(taps, patch_prototypes=9, head_channels=16, **SMALL),
    "selfpatch_norm": lambda taps: selfpatch(taps, patch_prototypes=9, head_channels=16, head_norm=True, **SMALL),
}


def learner(name: str = "dino", **options: Any) -> Learner:
    """Return a learner on a tiny ViT, in training mode, with stochastic depth."""
    torch.manual_seed(0)
    network: ViTNetwork = build_vit(tiny_vit(drop_path_rate=0.2, **options))
    return Learner(RECIPES[name](network.taps), network).train()


def one_step(made: Learner, seed: int = 0) -> None:
    """Take one plain step and move the teacher."""
    made(make_views(made.recipe.views, seed=seed), START).total.backward()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad)
                parameter.grad = None
    made.update()
    made.move_teacher(Moment(50, 100, 10))


def check_next_loss_is_bit_equal(made: Learner, restored: Learner) -> None:
    """Train one of two equal learners, load its state into the other, and compare their next losses."""
    one_step(made)
    restored.load_state_dict(copy.deepcopy(made.state_dict()))
    losses = []
    for one in (made, restored):
        torch.manual_seed(4)
        losses.append(one(make_views(one.recipe.views, seed=2), START).total)
    assert torch.equal(*losses)


@pytest.mark.parametrize("name", RECIPES)
def test_all_that_is_trained_gets_a_gradient(name: str) -> None:
    made = learner(name)
    made(make_views(made.recipe.views), START).total.backward()
    trained = {name: parameter for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in trained.items() if parameter.grad is None] == []
    assert ("student.network.mask_token" in trained) is name.startswith("ibot")


@pytest.mark.parametrize("name", RECIPES)
def test_saved_and_loaded_the_next_loss_is_bit_equal(name: str) -> None:
    check_next_loss_is_bit_equal(learner(name), learner(name))


def test_masks_reach_the_student_only() -> None:
    made = learner("ibot")
    views = make_views(made.recipe.views)
    seen: dict[str, list[bool]] = {"student": [], "teacher": []}
    assert made.teacher is not None
    for branch, network in (("student", made.student.network), ("teacher", made.teacher.network)):
        network.register_forward_pre_hook(
            lambda _, inputs, branch=branch: seen[branch].append(inputs[0].mask is not None)  # type: ignore[misc]
        )
    made(views, START)
    assert seen == {"student": [True, False], "teacher": [False]}


def test_masks_change_the_students_global_tokens() -> None:
    made = learner("ibot").eval()
    views = make_views(made.recipe.views)
    masked = made.student(views)
    plain = made.student([view.without_mask() for view in views])
    assert not torch.allclose(masked["cls"][0], plain["cls"][0])
    torch.testing.assert_close(masked["cls"][2], plain["cls"][2])


def test_selfpatchs_teacher_sees_local_views_and_dinos_does_not() -> None:
    for name, count in (("selfpatch", 4), ("dino", 2)):
        made = learner(name)
        targets = made.teacher_outputs(make_views(made.recipe.views))
        assert [len(outputs) for outputs in targets.values()] == [count]


def test_local_views_of_one_size_go_through_as_one_batch() -> None:
    made = learner()
    sizes: list[tuple[int, ...]] = []
    made.student.network.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].pixels.shape)))
    made(make_views(made.recipe.views), START)
    assert sizes == [(8, 3, 32, 32), (8, 3, 16, 16)]


def test_the_teacher_has_no_stochastic_depth() -> None:
    made = learner()
    views = make_views(made.recipe.views)
    targets = [made.teacher_outputs(views)["cls"][0] for _ in range(2)]
    assert torch.equal(*targets)


def test_prototypes_are_frozen_at_first_and_decay_is_for_matrices() -> None:
    made = learner("ibot_separate")
    optimiser = made.recipe.optimiser
    (rule,) = optimiser.rules
    named = [name for name, _ in made.student.named_parameters()]
    frozen = [name for name in named if re.search(rule.pattern, name)]
    assert frozen == [
        f"heads.cls.last_layer{suffix}.{part}" for suffix in ("", "_patch") for part in ("direction", "magnitude")
    ]
    assert rule.frozen_epochs == 1
    assert not optimiser.decay_one_dimensional
    assert optimiser.clip_each_parameter
    assert optimiser.clip_norm == 3.0
    assert value_at(optimiser.weight_decay, Moment(0, 100, 10)) == pytest.approx(0.04)
    assert value_at(optimiser.weight_decay, Moment(100, 100, 10)) == pytest.approx(0.4)
    schedule = optimiser.lr_schedule(optimiser.peak_lr(1024))
    peaks = [step for step in range(400) if schedule(Moment(step, 400, 10)) == pytest.approx(2e-3, rel=1e-9)]
    assert peaks == [99, 100]


def test_defaults_are_the_official_codes() -> None:
    taps = build_vit(tiny_vit(patch_size=16, img_size=224)).taps
    plans: dict[str, ViewPlan] = {name: make(taps).views for name, make in METHODS.items()}
    assert {name: len(plan.views) for name, plan in plans.items()} == {"dino": 10, "ibot": 12, "selfpatch": 10}
    for plan in plans.values():
        assert [view.size_px for view in plan.views[:3]] == [224, 224, 96]
        assert [view.photometric.blur_p for view in plan.views[:3]] == [1.0, 0.1, 0.5]
        assert [view.photometric.solarise_p for view in plan.views[:3]] == [0.0, 0.2, 0.0]
    assert plans["dino"].views[0].scale == (0.4, 1.0)
    assert plans["ibot"].masks is not None
    assert plans["ibot"].masks.patch_px == 16
    assert dino(taps).head_of(dino(taps).terms[0]).prototypes == 65536  # type: ignore[attr-defined]


def test_separate_heads_share_all_but_prototypes() -> None:
    taps = build_vit(tiny_vit()).taps
    assert ibot(taps, **SMALL).terms[1].head == SameHead("cls")
    assert ibot(taps, shared_head=False, **SMALL).terms[1].head == SameHead("cls", "patch")


def test_a_vit_without_class_token_is_pooled() -> None:
    network = build_vit(tiny_vit(class_token=False, global_pool="avg"))
    assert dino(network.taps, **SMALL).terms[0].tap == "pooled"


def test_mistakes_are_told() -> None:
    taps = build_vit(tiny_vit()).taps
    with pytest.raises(DovetailError, match=r"local_size 20 .* patch size 8; set it to 16"):
        dino(taps, **SMALL | {"local_size": 20})
    only_maps = {"c5": Tap(8, 32, "map", "encoder")}
    for make in (ibot, selfpatch):
        with pytest.raises(DovetailError, match="needs the patches of a ViT, but the model has only c5"):
            make(only_maps)


def test_dino_trains_a_cnn_on_its_pooled_map() -> None:
    torch.manual_seed(0)
    network = build_network("timm/test_resnet+fpn", image_size=32)
    recipe = dino(network.taps, head_norm=True, **SMALL)
    (term,) = recipe.terms
    assert (term.tap, network.taps[term.tap].kind) == ("c5", "map")
    made = Learner(recipe, network).train()
    head = made.student.heads["cls"]
    maps = torch.randn(2, network.taps["c5"].channels, 3, 2)
    head.eval()
    torch.testing.assert_close(head(maps), head(maps.mean(dim=(2, 3))))
    head.train()
    before = {name: value.clone() for name, value in made.named_parameters()}
    one_step(made)
    moved = {name.split(".")[0] for name, value in made.named_parameters() if not value.equal(before[name])}
    assert moved == {"student", "teacher"}


def test_decon_repeats_dino_on_the_decoder_of_a_cnn() -> None:
    network = build_network("timm/test_resnet+fpn", image_size=32)
    recipe = build("decon-ml-dino", network.taps, {**SMALL, "decoder_hidden": 16})
    assert [term.tap for term in recipe.terms] == ["c5", "p2", "p3", "p4", "p5"]
    assert [term.head.hidden for term in recipe.terms] == [24, 16, 16, 16, 16]  # type: ignore[union-attr]
    one_step(build_learner(recipe, network).train())


@pytest.mark.parametrize("method", ["ibot", "selfpatch", "pqcl", "adclr", "adclr-ibot"])
def test_methods_on_tokens_need_a_vit(method: str) -> None:
    taps = build_network("timm/test_resnet", image_size=32).taps
    with pytest.raises(DovetailError, match=r"choose (a ViT|one of timm's)"):
        build(method, taps)
