"""Freeze-then-joint: what stands still, for how long, and that resuming and several processes change nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dovetail.errors import DovetailError
from dovetail.networks.build import build_network
from dovetail.schedules import Moment
from dovetail.train.checkpoints import Checkpoints
from dovetail.train.freezing import EncoderFreeze, encoder_modules, encoder_weights
from dovetail.train.learner import Learner
from tests.tiny import CNN, VIT, make_views, tiny_learner
from tests.train.runs import differing, run, settings
from tests.train.test_engine import run_until


def state_of(learner: Learner) -> dict[str, Tensor]:
    """Return a copy of all of a learner's tensors."""
    return {name: value.clone() for name, value in learner.state_dict().items() if isinstance(value, Tensor)}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Return the parts in which something has moved: "student encoder", "teacher decoder", "student heads"."""
    found = set()
    for name in differing(before, after):
        branch, kind, *_ = name.split(".")
        if branch in ("student", "teacher"):
            part = ("encoder" if ".encoder." in name else "decoder") if kind == "network" else kind
            found.add(f"{branch} {part}")
    return found


DECODER = {f"{branch} {part}" for branch in ("student", "teacher") for part in ("decoder", "heads")}
ENCODER = {"student encoder", "teacher encoder"}


@pytest.mark.parametrize(
    "method", ["decon-sl", pytest.param("decon-ml-densecl", marks=pytest.mark.slow), "decon-sl-simclr"]
)
def test_the_encoder_and_its_statistics_stand_still_and_then_move(method: str, tmp_path: Path) -> None:
    before = state_of(tiny_learner(method))
    frozen, _ = run(
        tmp_path / "frozen", settings(steps_per_epoch=2, freeze_encoder_epochs=math.inf), learner=tiny_learner(method)
    )
    teacher = frozen.teacher is not None
    parts = DECODER if teacher else {"student decoder", "student heads"}
    assert moved(before, state_of(frozen)) == parts
    joint, _ = run(
        tmp_path / "joint", settings(steps_per_epoch=2, freeze_encoder_epochs=1.0), learner=tiny_learner(method)
    )
    assert moved(before, state_of(joint)) == parts | (ENCODER if teacher else {"student encoder"})
    assert not any(module.training for module in encoder_modules(frozen.student.network))
    assert all(module.training for module in joint.student.modules())


@pytest.mark.parametrize("epochs", [0.0, 1.0])
def test_statistics_of_the_encoder_can_stand_still_while_its_weights_move(epochs: float, tmp_path: Path) -> None:
    before = state_of(tiny_learner("decon-sl"))
    chosen = settings(steps_per_epoch=2, freeze_encoder_epochs=epochs, encoder_batch_norm="frozen")
    learner, _ = run(tmp_path, chosen, learner=tiny_learner("decon-sl"))
    changed = differing(before, state_of(learner))
    networks = {name for name in before if name.startswith(("student.network.", "teacher.network."))}
    statistics = {name for name in networks if ".encoder." in name and "running_" in name}
    assert {name.split(".")[0] for name in statistics} == {"student", "teacher"}
    assert not statistics & set(changed)
    assert moved(before, state_of(learner)) >= ENCODER
    assert any("decoder" in name and "running_" in name for name in changed)


def test_the_switch_comes_at_a_fraction_of_an_epoch() -> None:
    freeze = EncoderFreeze(1.5, distributed=False, sharded=False)
    assert [step for step in range(10) if freeze.holds(Moment(step, 10, 4))] == [0, 1, 2, 3, 4, 5]
    assert not EncoderFreeze(0.0, distributed=False, sharded=False).holds(Moment(0, 10, 4))
    assert EncoderFreeze(math.inf, distributed=False, sharded=False).holds(Moment(9, 10, 4))


def test_while_frozen_the_teachers_encoder_equals_the_students(tmp_path: Path) -> None:
    learner, _ = run(tmp_path, settings(epochs=1, freeze_encoder_epochs=math.inf))
    assert learner.teacher is not None
    student, teacher = (branch.network.model.state_dict() for branch in (learner.student, learner.teacher))
    encoder = [name for name in student if name.startswith("encoder.")]
    assert encoder
    assert all(torch.equal(student[name], teacher[name]) for name in encoder)


def test_after_the_switch_the_first_step_is_that_of_a_fresh_optimiser(tmp_path: Path) -> None:
    """No momentum or weight decay of the frozen time is left in the encoder: its optimiser has no state of it."""
    run(tmp_path / "a", settings(freeze_encoder_epochs=1.0, max_steps=3))
    state = Checkpoints(tmp_path / "a" / "checkpoints").load()
    assert state is not None
    learner = tiny_learner("decon-sl")
    known = sum(parameter.requires_grad for parameter in learner.parameters())
    assert len(state["optimiser"]["state"]) == known - len(encoder_weights(learner.student.network))


SWITCHED = settings(steps_per_epoch=2, freeze_encoder_epochs=1.0, save_every_steps=1)  # after two of four steps


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What a run that nothing ends is left with."""
    torch.manual_seed(0)
    learner, _ = run(tmp_path_factory.mktemp("whole"), SWITCHED)
    return learner.state_dict()


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_a_run_resumed_before_at_or_after_the_switch_ends_in_the_same_bits(
    killed_at: int, whole: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until(monkeypatch, killed_at, tmp_path / "cut", SWITCHED)
    resumed, result = run(tmp_path / "cut", SWITCHED, resume=True)
    assert result.steps == SWITCHED.total_steps == 4
    assert differing(whole, resumed.state_dict()) == []
    with pytest.raises(DovetailError, match=r"with freeze_encoder_epochs 1\.0, but it is 2\.0 now"):
        run(tmp_path / "cut", replace(SWITCHED, freeze_encoder_epochs=2.0), resume=True)


@pytest.mark.parametrize("model", [CNN, VIT, "smp/unet/resnet18", "timm/test_resnet", "timm/test_vit"])
def test_all_weights_but_the_decoders_are_the_encoders(model: str) -> None:
    network = build_network(model, image_size=64)
    names = {id(value): name for name, value in network.named_parameters()}
    weights = {names[id(value)] for value in encoder_weights(network)}
    decoder = {name for name in names.values() if ".decoder." in name or name.startswith("model.decoder.")}
    heads = {name for name in names.values() if "segmentation_head" in name}
    assert weights - heads == set(names.values()) - decoder - heads
    modules = {id(module) for module in encoder_modules(network)}
    with_weights = {
        name
        for name, module in network.model.named_modules()
        if id(module) not in modules and list(module.parameters(recurse=False))
    }
    assert all(name.startswith("decoder.") for name in with_weights)


def test_no_gradient_is_computed_for_a_frozen_encoder_and_processes_get_zeros() -> None:
    learner, moment = tiny_learner("decon-sl"), Moment(0, 10, 10)
    network, views = learner.student.network, make_views(learner.recipe.views)
    for distributed in (False, True):
        freeze = EncoderFreeze(1.0, distributed=distributed, sharded=False)
        learner.zero_grad()
        with freeze.applied(network, None, moment) as zeros:
            loss = learner(views, moment).total
        assert bool(zeros) == distributed
        whole = loss + sum(zeros)
        assert torch.equal(whole, loss)
        whole.backward()
        for weight in encoder_weights(network):
            assert weight.requires_grad
            assert weight.grad is None if not distributed else not weight.grad.any()
        freeze.drop_gradients(network, moment)
        assert all(weight.grad is None for weight in encoder_weights(network))
        assert any(value.grad is not None for value in network.parameters())
